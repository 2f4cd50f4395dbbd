"""The model card: what a person must know before using a model, written from what the run recorded."""

from collections.abc import Mapping
from typing import Any

from service.manifest import Task
from training.pictures import TRUNCATIONS
from training.recipe import Recipe


def render(
    name: str, facts: Mapping[str, Any], recipe: Recipe, paper: str, images_seen: int, seconds: float,
    evaluation: Mapping[str, Any] | None, *, task: Task = Task.GENERATE,
) -> str:  # fmt: skip
    """CARD.md of one model, Markdown.

    Args:
        name: the model's.
        facts: the run's recipe.json.
        recipe: as trained.
        paper: of the family.
        images_seen: real images shown in training, by this run and by those that it was begun from.
        seconds: the training loops', likewise, each by its run's clock.
        evaluation: evaluation.json of the same weights, or None when there is none.
        task: what the model serves.
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
        _caption(task, recipe),
        "",
        f"- **{_does(task, recipe, data)}",
        f"- **Family**: {facts['family']}, recipe `{recipe.name}`, objective `{recipe.objective}`. {paper}.",
        f"- **Training data**: {data['name']}, {data['train']:,} images ({data['license']}); "
        f"{data['test']:,} held out.",
        f"- **Training**: {_shown(facts, images_seen, seconds, machine)}, seed {facts['seed']}, "
        f"torch {facts['torch']}, source {facts['commit']}{_begun(facts)}.",
        f"- **License of the data**: {data['license']}; {terms}.",
        "",
        "## Evaluation",
        "",
    ]
    lines += _evaluation(evaluation)
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in _limits(data, recipe, task))]
    if recipe.notes:
        lines += ["", "## Departures from the paper", ""]
        lines += [f"- {what}: {why}" for what, why in recipe.notes.items()]
    return "\n".join(lines) + "\n"


def _shown(facts: Mapping[str, Any], images_seen: int, seconds: float, machine: str) -> str:
    """What this run took, and apart from it what those before took: it may have been elsewhere and by another clock."""
    before = facts.get("started_from") or {"images": 0, "seconds": 0.0}
    own = f"{(images_seen - before['images']) / 1000:,.0f} kimg, {(seconds - before['seconds']) / 60:.0f} minutes"
    text = f"{own} of {_clock(facts)} time on {machine}"
    if not before["images"]:
        return text
    minutes = f" and {before['seconds'] / 60:.0f} minutes" if before["seconds"] else ""
    return f"{text}, after {before['images'] / 1000:,.0f} kimg{minutes} of what it was begun from"


def _begun(facts: Mapping[str, Any]) -> str:
    model = (facts.get("started_from") or {}).get("model")
    return f"; begun from `{model}`" if model else ""


def _clock(facts: Mapping[str, Any]) -> str:
    return "CPU" if facts.get("clock") == "cpu" else "wall-clock"


def _caption(task: Task, recipe: Recipe) -> str:
    if recipe.cycle_weight:
        shown = "an image of one set, translated, and back again; then one of the other set"
        return f"Held-out images in a fixed random order, none left out: {shown}, from left to right."
    if task is not Task.GENERATE:
        return "Held-out images in a fixed random order, none left out: input, output, target, from left to right."
    cuts = ", ".join(f"{cut:g}" for cut in TRUNCATIONS)
    return (
        "Top: seeds from 0 on, in order, none left out"
        + (", one row per class." if recipe.classes else ".")
        + f" Middle: the first ten seeds at truncations {cuts}, from top to bottom. Bottom: the ways from seed 0 to 1, "
        "2 to 3 and 4 to 5."
    )


def _does(task: Task, recipe: Recipe, data: Mapping[str, Any]) -> str:
    if task is Task.UPSCALE:
        return f"Enlarges** RGB images of any size by {recipe.scale}; trained on inputs made by `{recipe.degradation}`."
    if task is Task.TRANSLATE:
        made = f"trained on pairs made by `{recipe.degradation}`" if recipe.degradation else "trained on given images"
        return f"Translates** RGB images of any size; {made}."
    kind = "grey" if recipe.channels == 1 else "RGB"
    classes = f"{recipe.classes} classes: {', '.join(data['classes'])}" if recipe.classes else "unconditional"
    return f"Draws**: {recipe.size} x {recipe.size} px, {kind}, {classes}."


def _evaluation(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["Not evaluated. `python -m training evaluate --run DIR` does it; export again afterwards."]
    return [
        f"On held-out images, {evaluation['samples']:,} samples"
        + (", all rows in one run:" if "tables" in evaluation else " at truncation 1, all rows in one run:"),
        "",
        str(evaluation["table"]).strip(),
    ]


def _limits(data: Mapping[str, Any], recipe: Recipe, task: Task) -> list[str]:
    limits = [f"It knows what {data['name']} shows and nothing else; its mistakes and gaps are that set's."]
    if task is Task.GENERATE:
        limits.append(f"{recipe.size} px is its only size; enlarging shows the pixels.")
    else:
        limits.append(f"It was trained on crops of {recipe.size} px; what needs a wider view it cannot know.")
    if recipe.degradation == "night":
        limits.append(
            "Its nights are made by a rule from photographs by day, for lack of pairs; they are no real nights."
        )
    if data["name"].split(",")[0] == "faces":
        limits.append("The faces are drawings put together from one artist's parts, not photographs of people.")
    return limits
