"""Each fault, injected into a real run, is called by its name; healthy figures call nobody."""

import json

import numpy as np
import pytest
from tinytraining import shrunk, spying, tiny_trainer

from training.families import FAMILIES
from training.monitors import watchers
from training.monitors.collapse import Collapse
from training.monitors.imbalance import Imbalance
from training.monitors.non_convergence import NonConvergence
from training.monitors.vanishing_gradient import VanishingGradient


def events(directory):
    rows = [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "event"]


def names(directory):
    return {row["monitor"] for row in events(directory)}


def easy_images(recipe, count=64):
    """Two kinds of flat images with a little grain: what a tiny net can learn and a tiny D can tell from noise."""
    random = np.random.default_rng(0)
    base = np.where(np.arange(count) % 2, 60, 190)[:, None, None, None]
    grain = random.integers(-20, 20, (count, recipe.size, recipe.size, recipe.channels))
    return (base + grain).astype(np.uint8)


def run(directory, recipe, family="gan", **given):
    trainer = tiny_trainer(
        directory, family, recipe, images=easy_images(recipe), monitors=watchers(), tick_kimg=0.04, **given
    )
    trainer.train()
    return names(directory)


LONG = {"total_kimg": 2.0, "batch_size": 8, "decay_from": 1.0, "ema_kimg": 0.1}


def test_a_healthy_run_is_left_in_peace(tmp_path):
    assert run(tmp_path, shrunk("gan", learning_rate=2e-3, **LONG)) == set()


def test_the_minimax_game_against_a_discriminator_that_wins(tmp_path):
    """The fault of 2014: D is certain, minimax saturates, and the generator is told nothing."""
    recipe = shrunk(
        "gan", objective="minimax", r1_gamma=0.0, discriminator_learning_rate=2e-2, learning_rate=1e-5,
        discriminator_width=32, **LONG,
    )  # fmt: skip
    found = run(tmp_path, recipe)
    assert {"vanishing_gradient", "imbalance"} <= found
    (event,) = (row for row in events(tmp_path) if row["monitor"] == "vanishing_gradient")
    assert event["evidence"]["saturation"] < 0.05 and event["severity"] == "warning"


def test_the_same_with_the_non_saturating_objective_does_not_vanish(tmp_path):
    recipe = shrunk(
        "gan", objective="non_saturating", r1_gamma=0.0, discriminator_learning_rate=2e-2, learning_rate=1e-5,
        discriminator_width=32, **LONG,
    )  # fmt: skip
    assert "vanishing_gradient" not in run(tmp_path, recipe)


def test_a_generator_that_draws_one_picture(tmp_path):
    """z is withheld from it: whatever it learns, it can only be one picture."""

    def constant(phase, nets, batch):
        batch.z.zero_()

    recipe = shrunk("dcgan", generator_norm="none", **LONG)
    trainer = tiny_trainer(
        tmp_path, spying(FAMILIES["dcgan"], constant), recipe, images=easy_images(recipe), monitors=watchers(),
        tick_kimg=0.04,
    )  # fmt: skip
    trainer.train()
    assert "collapse" in names(tmp_path)


def test_evaluations_that_fall_apart_are_noticed_in_a_run(tmp_path):
    values = iter([0.5, 0.4, 0.3, 0.6, 0.7, 0.8, 0.9])
    trainer = tiny_trainer(
        tmp_path, "gan", shrunk("gan", **{**LONG, "total_kimg": 0.5}), monitors=watchers(), tick_kimg=1.0,
        evaluate_kimg=0.08, evaluate_samples=8, evaluate=lambda images: {"kid_lite0": next(values)},
    )  # fmt: skip
    trainer.train()
    told = [row for row in events(tmp_path) if row["monitor"] == "non_convergence"]
    assert len(told) == 1 and "the best was 0.3: the run is falling apart" in told[0]["message"]


# The rules themselves


def said(monitor, name, values, **others):
    return [i for i, value in enumerate(values) if monitor.observe(float(i), {name: value, **others})]


def test_vanishing_is_said_once_and_again_after_a_recovery():
    values = [1.0, 2.0, 1.0, 1.0, 1.0, 1e-4, 1e-4, 1e-4, 0.5, 1e-4, 1e-4, 1e-4]
    assert said(VanishingGradient(), "gradient_generator", values) == [6, 10]
    assert VanishingGradient().observe(0.0, {"other": 1.0}) == []


def test_imbalance_needs_to_last():
    assert said(Imbalance(warmup=0), "pair_accuracy", [1.0, 1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]) == [7]
    assert said(Imbalance(), "pair_accuracy", [1.0] * 7 + [0.9] * 9) == []
    assert said(Imbalance(), "pair_accuracy", [0.87] * 100) == []


def test_collapse_needs_to_last():
    assert said(Collapse(warmup=0), "diversity", [0.1, 0.1, 0.5, 0.1, 0.1, 0.1, 0.1]) == [5]
    assert said(Collapse(), "diversity", [0.0, 0.1, 0.2, 0.3, 0.6, 0.9]) == []


@pytest.mark.parametrize(
    "values, told",
    [
        ([0.5, 0.4, 0.3, 0.2, 0.1], []),
        ([0.5, 0.2, 0.21, 0.2, 0.19], []),
        ([0.5, *[0.499] * 6], [6]),  # a five-hundredth is no improvement
        ([0.5, *[0.52] * 12], [6]),  # said once
        ([0.2, 0.3, 0.19, 0.3], []),  # twice in a row is needed
        ([0.2, 0.3, 0.3, 0.3], [2]),
        ([-0.001, 0.004, 0.005], []),  # noise about zero
    ],
)
def test_non_convergence(values, told):
    assert said(NonConvergence(), "kid_lite0", values) == told
