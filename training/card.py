"""The model card: what a person must know before using a model, written from what the run recorded."""

from collections.abc import Mapping
from typing import Any

from training.recipe import Recipe


def render(
    name: str, facts: Mapping[str, Any], recipe: Recipe, paper: str, images_seen: int, seconds: float,
    evaluation: Mapping[str, Any] | None,
) -> str:  # fmt: skip
    """CARD.md of one model, Markdown.

    Args:
        name: the model's.
        facts: the run's recipe.json.
        recipe: as trained.
        paper: of the family.
        images_seen: real images shown in training.
        seconds: wall-clock time of the training loop.
        evaluation: evaluation.json of the same weights, or None when there is none.
    """
    data = facts["data"]
    device = facts.get("device", "cpu")
    plural = "" if facts["threads"] == 1 else "s"
    machine = f"{facts['threads']} CPU thread{plural} shared with other work" if device == "cpu" else device
    terms = "settle it before you pass the weights on" if data["license"] == "unknown" else (
        "the weights are offered under the same terms"
    )  # fmt: skip
    lines = [
        f"# {name}",
        "",
        "![samples](samples.png)",
        "",
        "Seeds from 0 on, in order, none left out" + (", one row per class." if recipe.classes else "."),
        "",
        f"- **Draws**: {recipe.size} x {recipe.size} px, {'grey' if recipe.channels == 1 else 'RGB'}"
        + (f", {recipe.classes} classes: {', '.join(data['classes'])}." if recipe.classes else ", unconditional."),
        f"- **Family**: {facts['family']}, recipe `{recipe.name}`, objective `{recipe.objective}`. {paper}.",
        f"- **Training data**: {data['name']}, {data['train']:,} images ({data['license']}); "
        f"{data['test']:,} held out.",
        f"- **Training**: {images_seen / 1000:,.0f} kimg, {seconds / 60:.0f} minutes of wall-clock time on "
        f"{machine}, seed {facts['seed']}, torch {facts['torch']}, "
        f"source {facts['commit']}.",
        f"- **License of the data**: {data['license']}; {terms}.",
        "",
        "## Evaluation",
        "",
    ]
    lines += _evaluation(evaluation)
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in _limits(data, recipe))]
    if recipe.notes:
        lines += ["", "## Departures from the paper", ""]
        lines += [f"- {what}: {why}" for what, why in recipe.notes.items()]
    return "\n".join(lines) + "\n"


def _evaluation(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["Not evaluated. `python -m training evaluate --run DIR` does it; export again afterwards."]
    return [
        f"On held-out images, {evaluation['samples']:,} samples at truncation 1, all rows in one run:",
        "",
        str(evaluation["table"]).strip(),
    ]


def _limits(data: Mapping[str, Any], recipe: Recipe) -> list[str]:
    limits = [
        f"It knows what {data['name']} shows and nothing else; its mistakes and gaps are that set's.",
        f"{recipe.size} px is its only size; enlarging shows the pixels.",
    ]
    if data["name"] == "faces":
        limits.append("The faces are drawings put together from one artist's parts, not photographs of people.")
    return limits
