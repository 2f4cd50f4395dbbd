"""ProGAN: the schedule, fading without jumps in both players and in the reals, and what may be exported."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tinytraining import shrunk, spying, tiny_run, tiny_trainer

from training import checkpoint
from training.export import read_run
from training.families import FAMILIES
from training.families.progan import as_shown, grow, level_at
from training.progressive import WHOLE
from training.recipe import RecipeError

PROGAN = FAMILIES["progan"]


def small(recipe="modern", **changes):
    return shrunk("progan", recipe, **{"size": 16, "grow_until": 0.5, "total_kimg": 0.16, **changes})


@pytest.mark.parametrize(
    "done, level",
    [(0, 0), (0.12, 0), (0.1875, 0.5), (0.25, 1), (0.3, 1), (0.4375, 1.5), (0.499, 1.992), (0.5, 2), (1, 2)],
)
def test_each_octave_stays_and_the_next_fades_in(done, level):
    assert level_at(done, octaves=2, grow_until=0.5) == pytest.approx(level)


def test_without_growing_it_is_whole_from_the_start():
    assert level_at(0.0, octaves=4, grow_until=0.0) == 4


def test_the_level_never_falls_and_never_jumps():
    levels = [level_at(done, 4, 0.6) for done in np.linspace(0, 1, 2001)]
    steps = np.diff(levels)
    assert steps.min() >= 0 and steps.max() < 0.01 and levels[0] == 0 and levels[-1] == 4


def test_a_run_grows_and_its_average_with_it(tmp_path):
    seen = []

    def spy(phase, nets, batch):
        if phase == "generator":
            with torch.no_grad():
                seen.append((int(nets["generator"].level), nets["generator"](batch.z).shape[-1]))

    trainer = tiny_trainer(tmp_path, spying(PROGAN, spy), small())
    while trainer.kimg < trainer.recipe.total_kimg:
        stats = trainer.step()
        assert int(trainer.ema.level) == int(trainer.nets["generator"].level)
        assert trainer.sample(range(2), None).shape == (2, 16, 16, 3)  # enlarged while it is small
        assert np.isfinite(list(stats.values())).all()
    levels = [level for level, _ in seen]
    assert levels[0] == 0 and levels[-1] == 2 * WHOLE and stats["level"] == 2
    assert {side for _, side in seen} == {4, 8, 16}
    assert all(side == 4 * 2 ** -(-level // WHOLE) for level, side in seen)


def test_weights_not_in_use_are_left_alone(tmp_path):
    trainer = tiny_trainer(tmp_path, "progan", small(grow_until=1.0, total_kimg=100.0))
    before = {name: p.detach().clone() for name, p in trainer.nets.named_parameters()}
    trainer.step()
    moved = {name for name, p in trainer.nets.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in moved if ".blocks.1" in name or ".blocks.2" in name} == set()
    assert {"generator.to_colours.0.weight", "discriminator.rungs.0.weight"} <= moved
    assert not {"generator.to_colours.1.weight", "discriminator.rungs.2.weight"} & moved


def test_fading_in_begins_and_ends_without_a_jump():
    torch.manual_seed(0)
    net, z = PROGAN.nets(small())["generator"], torch.randn(3, 8)
    with torch.no_grad():
        one = net.draw(z, 1, 1.0)
        torch.testing.assert_close(net.draw(z, 2, 1e-4), F.interpolate(one, scale_factor=2.0), atol=0.01, rtol=0.01)
        torch.testing.assert_close(net.draw(z, 2, 1 - 1e-4), net.draw(z, 2, 1.0), atol=0.01, rtol=0.01)


def test_reals_are_shown_as_the_fakes_are():
    real = torch.randn(2, 3, 16, 16)
    assert torch.equal(as_shown(real, 0, 1.0), real)
    assert as_shown(real, 2, 1.0).shape == (2, 3, 4, 4)
    torch.testing.assert_close(as_shown(real, 2, 1.0), F.avg_pool2d(real, 4))
    half = as_shown(real, 1, 0.5)
    coarse = F.interpolate(F.avg_pool2d(real, 4), scale_factor=2.0)
    torch.testing.assert_close(half, (coarse + F.avg_pool2d(real, 2)) / 2)


def test_resuming_in_the_middle_of_growing(tmp_path):
    recipe = small()
    one = tiny_trainer(tmp_path / "one", "progan", recipe)
    for _ in range(5):
        one.step()
    assert 0 < int(one.nets["generator"].level) < 2 * WHOLE
    checkpoint.save(tmp_path / "one" / "last.pt", one.state())
    reading = one.step()
    other = tiny_trainer(tmp_path / "other", "progan", recipe)
    other.restore(checkpoint.load(tmp_path / "one" / "last.pt"))
    assert other.step() == reading


def test_a_run_that_has_not_grown_up_is_not_exported(tmp_path):
    run = read_run(tiny_run(tmp_path, "progan", small(), steps=2))
    with pytest.raises(RecipeError, match="has grown to 4 px of 16 px so far"):
        run.family.exports(run.nets, run.recipe, ())
    # In its last fade it may be: the newest octave then counts fully.
    grow(run.nets, 0.45, small())
    assert run.family.exports(run.nets, run.recipe, ())


def test_it_grows_a_ladder_only():
    with pytest.raises(RecipeError, match="progan grows a 'ladder'"):
        PROGAN.nets(replace(small(), discriminator_kind="strided"))
    with pytest.raises(RecipeError, match=r"feature_weight is 0\.5, but VGG16 sees nothing"):
        PROGAN.nets(small(feature_weight=0.5))


def test_drift_pulls_logits_to_zero(tmp_path):
    rows = tiny_trainer(tmp_path, "progan", small("paper", drift=0.5)).step()
    assert rows["loss_drift"] >= 0.5 * rows["real_logit"] ** 2 * 0.999
