"""Every family and recipe, under every objective: builds, moves what it trains, comes back, exports."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from tinytraining import PAIRS, differing, shrunk, spying, tiny_trainer
from torch import nn

from service.engine.latents import latents_from_seeds, noise_from_seeds
from service.manifest import Task
from service.package import verify_package
from training import checkpoint
from training.families import FAMILIES
from training.losses import OBJECTIVES, with_objective
from training.recipe import RecipeError

EQUALISED = {"progan", "stylegan"}
"""Families whose weights have deviation 1, which clipping would crush."""
CASES = [(family, recipe, None) for family, recipe in PAIRS]
CASES += [
    (family, recipe, objective)
    for family, recipe in PAIRS
    for objective in OBJECTIVES
    if FAMILIES[family].recipes[recipe].objective in OBJECTIVES
    and (family not in EQUALISED or objective != "wasserstein")
]

pairs = pytest.mark.parametrize("family, recipe", PAIRS)


def test_every_family_says_what_it_is():
    for name, family in FAMILIES.items():
        assert family.name == name and family.paper.startswith("arXiv:")
        assert {"paper", "modern"} <= family.recipes.keys()
        for key, recipe in family.recipes.items():
            recipe.validate()
            assert recipe.name == key and bool(recipe.classes) == family.conditional


@pairs
def test_builds_at_full_size(family, recipe):
    whole = FAMILIES[family].recipes[recipe]
    with torch.device("meta"):  # shapes without numbers: the published sizes cost nothing
        nets = FAMILIES[family].nets(whole)
        labels = torch.zeros(5, dtype=torch.int64) if whole.classes else None
        images = nets["generator"](torch.zeros(5, whole.latent_dim), labels)
    assert nets.training and images.shape == (5, whole.channels, whole.size, whole.size)
    if whole.objective not in OBJECTIVES:
        assert set(nets) == {"generator"}
        return
    assert set(nets) == {"generator", "discriminator"}
    with torch.device("meta"):
        assert nets["discriminator"](images, labels).shape == (5,)


@pairs
def test_pictures_lie_in_range_and_depend_on_every_input(family, recipe):
    small = shrunk(family, recipe)
    torch.manual_seed(0)
    generator = FAMILIES[family].nets(small)["generator"].eval()
    z = torch.randn(2, small.latent_dim).repeat(2, 1)
    labels = torch.tensor([0, 0, 1, 1]) if small.classes else None
    images = generator(z * 3, labels)
    assert images.abs().max() <= 1 and not torch.equal(images[0], images[1])
    if small.classes:
        nn.init.normal_(next(p for n, p in generator.named_parameters() if "label" in n or "shift" in n))
        images = generator(z * 3, labels)
        assert not torch.equal(images[0], images[2])


def test_unknown_architecture_is_refused():
    for name, family in FAMILIES.items():
        with pytest.raises(RecipeError, match=r"architecture is 'capsule'.*builds"):
            family.nets(shrunk(name, architecture="capsule"))


@pytest.mark.parametrize("family", sorted(EQUALISED))
def test_equalised_weights_are_not_clipped(family):
    with pytest.raises(RecipeError, match=r"clip is 0\.01.*wasserstein_gp"):
        FAMILIES[family].nets(with_objective(shrunk(family), "wasserstein"))


def _ignores_a_shift(objective: str) -> bool:
    """Whether adding a constant to all logits leaves D's loss alone, so that its last bias has nothing to follow."""
    real, fake = torch.linspace(-3, 2, 16), torch.linspace(-1, 4, 16)
    loss = OBJECTIVES[objective].discriminator
    return torch.allclose(loss(real, fake), loss(real + 3, fake + 3), atol=1e-5)


def _last_biases(discriminator: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are added to every logit, one for each head."""
    heads = [(n, m) for n, m in discriminator.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    assert heads
    return {f"{name}.bias": head.bias for name, head in heads}


def test_who_ignores_a_shift():
    assert {name for name in OBJECTIVES if _ignores_a_shift(name)} == {"wasserstein", "wasserstein_gp", "relativistic"}


@pytest.mark.parametrize("family, recipe, objective", CASES)
def test_one_iteration_moves_what_it_trains(tmp_path, family, recipe, objective):
    whole = FAMILIES[family].recipes[recipe]
    small = shrunk(family, whole if objective is None else with_objective(whole, objective))
    seen = []

    def weights(nets):
        return {(net, name): p.detach().clone() for net in nets for name, p in nets[net].named_parameters()}

    spied = spying(FAMILIES[family], lambda phase, nets, batch: seen.append((phase, weights(nets))))
    if spied.grow is not None:  # in the middle of the last fade, where everything is in use
        spied = replace(
            spied, grow=lambda nets, done, recipe: FAMILIES[family].grow(nets, 0.75, replace(recipe, grow_until=1))
        )
    trainer = tiny_trainer(tmp_path, spied, small)
    biases = _last_biases(trainer.nets["discriminator"]) if "discriminator" in trainer.nets else {}
    # With all logits within its margin hinge, too, is blind to a shift: begin outside of it.
    for bias in biases.values():
        nn.init.constant_(bias, 2.0)
    first = weights(trainer.nets)
    stats = trainer.step()
    assert np.isfinite(list(stats.values())).all()
    phases = trainer.phases
    assert [phase for phase, _ in seen] == [phase.name for phase in phases]  # at iteration 0 all have their turn
    assert (small.objective in OBJECTIVES) == ("discriminator" in [phase.name for phase in phases])
    penalised = small.r1_gamma or small.r2_gamma or small.gp_lambda
    assert ("penalty" in [phase.name for phase in phases]) == bool(penalised)
    states = [state for _, state in seen] + [weights(trainer.nets)]
    for phase, before, after in zip(phases, states, states[1:], strict=False):
        moved = {net for (net, name), value in after.items() if not torch.equal(value, before[net, name])}
        assert moved == (set(phase.trains) if phase.step else set()), phase.name
    still = {key for key, value in weights(trainer.nets).items() if torch.equal(value, first[key])}
    assert still <= (
        {("discriminator", name) for name in biases} if biases and _ignores_a_shift(small.objective) else set()
    )
    assert {net for net, _ in first} == set().union(*(phase.trains for phase in phases))
    if small.clip:
        assert max(p.abs().max() for p in trainer.nets["discriminator"].parameters()) <= small.clip


@pairs
def test_checkpoint_round_trip(tmp_path, family, recipe):
    small = shrunk(family, recipe)
    one = tiny_trainer(tmp_path / "one", family, small)
    one.step()
    checkpoint.save(tmp_path / "one" / "last.pt", one.state())
    other = tiny_trainer(tmp_path / "other", family, small)
    assert differing({"nets": one.state()["nets"]}, {"nets": other.state()["nets"]})
    other.restore(checkpoint.load(tmp_path / "one" / "last.pt"))
    assert differing(one.state(), other.state(), besides=()) == []
    reading = one.step()
    one_after = checkpoint.random_state()
    torch.manual_seed(99)  # what is not restored from the file would now be missed
    other.restore(checkpoint.load(tmp_path / "one" / "last.pt"))
    assert other.step() == reading
    assert differing({"random": one_after}, {"random": checkpoint.random_state()}) == []
    assert differing(one.state(), other.state()) == []


def _drawn(folder, manifest, z, labels):
    """What a server answers: one graph, or z to w to every layer, with the constant noise."""

    def run(graph, feed):
        session = onnxruntime.InferenceSession(folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, feed)[0]

    if manifest.generate.style_layers is None:
        (graph,) = (
            n
            for n, g in manifest.graphs.items()
            if g.inputs[0].shape == ("batch", manifest.generate.latent_dim) and g.outputs[0].kind == "image"
        )
        return run(
            graph,
            {"z": z}
            if labels is None
            else {"z": z, "label": np.eye(len(manifest.generate.labels), dtype=np.float32)[labels]},
        )
    w = run("mapping", {"z": z})
    feed = {"styles": np.repeat(w[:, None], manifest.generate.style_layers, axis=1)}
    for tensor in manifest.graphs["synthesis"].inputs:
        if tensor.kind == "noise":
            feed[tensor.name] = noise_from_seeds([0] * len(z), z.shape[1], tensor.shape[1])
    return run("synthesis", feed)


@pytest.mark.slow
@pairs
def test_export_parity_and_dynamic_batch(exported, family, recipe):
    run, folder = exported(family, recipe)
    manifest = verify_package(folder)
    assert manifest.tasks[0] == Task.GENERATE and manifest.family == family
    assert manifest.generate.latent_dim == run.recipe.latent_dim
    assert manifest.generate.labels == (run.classes or None)
    for rows in (1, 2, 5, 16):  # two of them other than export itself proves
        seeds = range(50, 50 + rows)
        labels = None
        if run.recipe.classes:
            labels = np.arange(rows, dtype=np.int64)[::-1].copy() % run.recipe.classes
        image = _drawn(folder, manifest, latents_from_seeds(seeds, run.recipe.latent_dim), labels)
        expected = run.sample(seeds, labels)
        assert image.dtype == np.uint8 and image.shape == expected.shape == (rows, 8, 8, run.recipe.channels)
        apart = np.abs(image.astype(int) - expected.astype(int))
        assert apart.max() <= 1 and (apart > 0).sum() <= 1 + apart.size // 10_000


def test_a_family_that_needs_labels_says_so(tmp_path):
    small = shrunk("cgan")
    with pytest.raises(RecipeError, match="cgan needs labelled images"):
        tiny_trainer(tmp_path, "cgan", small, labels=None)
    with pytest.raises(RecipeError, match="cgan needs labelled images"):
        tiny_trainer(tmp_path, "cgan", replace(small, classes=0))
