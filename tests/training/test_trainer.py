"""The loop's promises: the same run twice, resumed, cut into microbatches, in bf16, with a gradient gone bad."""

import io
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tinytraining import differing, flat, shrunk, spying, tiny_images, tiny_trainer

from training import checkpoint
from training.families import FAMILIES
from training.family import Losses
from training.losses import with_objective
from training.monitors.blow_up import BlowUp
from training.recipe import Recipe, RecipeError
from training.runlog import RunLog
from training.trainer import Trainer, TrainOptions


def steps(trainer, count):
    for _ in range(count):
        trainer.step()
    return trainer


def rows_of(directory, kind="train"):
    rows = [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if row["kind"] == kind]


def weights(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


# Determinism and resumption


def test_same_seed_same_weights(tmp_path):
    recipe = shrunk("cgan", mirror=True, augment="color,translation,cutout")
    one, same, other = (
        steps(tiny_trainer(tmp_path / str(index), "cgan", recipe, seed=seed), 3) for index, seed in enumerate((5, 5, 6))
    )
    assert differing(one.state(), same.state()) == []
    assert any(path.startswith("/nets/generator") for path in differing(one.state(), other.state()))


@pytest.mark.parametrize("family", ["gan", "cgan"])
def test_resumed_equals_uninterrupted(tmp_path, family):
    recipe = shrunk(family, "paper" if family == "gan" else "modern", augment="translation")  # gan's has dropout
    whole = steps(tiny_trainer(tmp_path / "whole", family, recipe, seed=3), 7)
    begun = steps(tiny_trainer(tmp_path / "begun", family, recipe, seed=3), 4)
    checkpoint.save(tmp_path / "last.pt", begun.state())
    torch.manual_seed(1234)
    np.random.seed(1234)
    resumed = tiny_trainer(tmp_path / "begun", family, recipe, seed=3)
    resumed.restore(checkpoint.load(tmp_path / "last.pt"))
    assert resumed.kimg == begun.kimg == 0.032
    steps(resumed, 3)
    assert differing(whole.state(), resumed.state()) == []


class InterruptAt:
    """A monitor that stands for a person at the keyboard."""

    def __init__(self, kimg):
        self.kimg = kimg

    def observe(self, kimg, stats):
        if kimg >= self.kimg:
            raise KeyboardInterrupt
        return ()


def test_stats_of_a_resumed_run_tell_one_story(tmp_path):
    recipe = shrunk("gan")
    options = {"tick_kimg": 0.001, "snapshot_kimg": 0.02}  # a row a step, a checkpoint every third
    tiny_trainer(tmp_path / "whole", "gan", recipe, **options).train()
    broken = tiny_trainer(tmp_path / "broken", "gan", recipe, monitors=[InterruptAt(0.048)], **options)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert [row["kimg"] for row in rows_of(tmp_path / "broken")] == [0.008, 0.016, 0.024, 0.032, 0.04, 0.048]
    state = checkpoint.load(tmp_path / "broken" / "last.pt")
    assert state["sampler"]["shown"] == 32
    resumed = tiny_trainer(tmp_path / "broken", "gan", recipe, **options)
    resumed.restore(state)
    assert [row["kimg"] for row in rows_of(tmp_path / "broken")] == [0.008, 0.016, 0.024, 0.032]
    resumed.train()
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    ends = [checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "broken")]
    assert differing(*ends) == []


def test_resuming_with_another_recipe_is_said_and_takes_effect(tmp_path):
    recipe = shrunk("gan")
    begun = steps(tiny_trainer(tmp_path / "a", "gan", recipe), 2)
    other = tiny_trainer(tmp_path / "b", "gan", recipe.replaced(learning_rate=0.5, total_kimg=9.0))
    other.restore(begun.state())
    said = other.log.out.getvalue()
    assert "learning_rate 0.0004 -> 0.5" in said and "total_kimg 0.08 -> 9.0" in said and "beta1" not in said
    assert {group["lr"] for optimiser in other.optimisers.values() for group in optimiser.param_groups} == {0.5}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"generator_width": 4}, "does not fit this run"),
        ({"optimiser": "rmsprop"}, "optimiser was 'adam', cannot become 'rmsprop'"),
    ],
)
def test_foreign_checkpoints_are_refused(tmp_path, changes, message):
    begun = tiny_trainer(tmp_path / "a", "gan", shrunk("gan"))
    other = tiny_trainer(tmp_path / "b", "gan", shrunk("gan").replaced(**changes))
    with pytest.raises(checkpoint.CheckpointError, match=message):
        other.restore(begun.state())


def test_a_checkpoint_of_another_family_seed_or_set_is_refused(tmp_path):
    begun = tiny_trainer(tmp_path / "a", "gan", shrunk("gan")).state()
    with pytest.raises(checkpoint.CheckpointError, match="family 'gan', not 'dcgan'"):
        tiny_trainer(tmp_path / "b", "dcgan", shrunk("dcgan")).restore(begun)
    with pytest.raises(checkpoint.CheckpointError, match="with seed 0, this run has 24 with seed 1"):
        tiny_trainer(tmp_path / "b", "gan", shrunk("gan"), seed=1).restore(begun)
    images, _ = tiny_images(shrunk("gan"), count=23)
    with pytest.raises(checkpoint.CheckpointError, match="saw 24 images"):
        tiny_trainer(tmp_path / "b", "gan", shrunk("gan"), images=images).restore(begun)


# One step in detail


@pytest.mark.parametrize("objective", ["non_saturating", "relativistic", "wasserstein_gp"])
def test_microbatches_add_up_to_the_batch(tmp_path, objective):
    # Nets without batch statistics or dropout; 4 x 8 latents are whole blocks of torch's normal generator.
    recipe = with_objective(shrunk("gan", "paper", dropout=0.0), objective).replaced(optimiser="sgd", gp_lambda=0.0)
    whole = tiny_trainer(tmp_path / "whole", "gan", recipe)
    before = weights(whole.nets)
    expected = [whole.step() for _ in range(3)]
    parts = tiny_trainer(tmp_path / "parts", "gan", recipe.replaced(microbatch=4))
    for stats in expected:
        found = parts.step()
        # How much images vary is no mean over rows.
        assert (stats.pop("diversity", None) is None) == (found.pop("diversity", None) is None)
        assert found == pytest.approx(stats, rel=1e-4, abs=1e-6)
    for name, value in weights(parts.nets).items():
        moved = (value - before[name]).abs().max()
        apart = (value - whole.nets.state_dict()[name]).abs().max()
        assert apart <= 1e-4 * moved + 1e-7


def test_turns(tmp_path):
    """Lazy penalties every fourth iteration, the generator once in three."""
    turns = []
    recipe = shrunk("gan").replaced(discriminator_steps=3, penalty_every=4, r1_gamma=0.1)
    spied = spying(FAMILIES["gan"], lambda phase, nets, batch: turns.append((trainer.iteration, phase)))
    trainer = tiny_trainer(tmp_path, spied, recipe)
    steps(trainer, 8)
    assert [iteration for iteration, phase in turns if phase == "penalty"] == [0, 4]
    assert [iteration for iteration, phase in turns if phase == "discriminator"] == list(range(8))
    assert [iteration for iteration, phase in turns if phase == "generator"] == [0, 3, 6]


def test_a_head_start_leaves_the_generator_as_it_was(tmp_path):
    turns = []
    recipe = shrunk("gan").replaced(head_start_kimg=0.04)
    spied = spying(FAMILIES["gan"], lambda phase, nets, batch: turns.append((trainer.iteration, phase)))
    trainer = tiny_trainer(tmp_path, spied, recipe)
    before = weights(trainer.nets["generator"])
    held = 0
    while trainer.kimg + recipe.batch_size / 1000 <= 0.04:
        trainer.step()
        held += 1
    after = trainer.nets["generator"].named_parameters()
    assert held and all(torch.equal(value, before[name]) for name, value in after)
    steps(trainer, 2)
    assert [iteration for iteration, phase in turns if phase == "generator"] == [held, held + 1]
    assert {iteration for iteration, phase in turns if phase == "discriminator"} == set(range(held + 2))


def test_a_penalty_adds_to_the_discriminators_next_step(tmp_path):
    recipe = shrunk("gan", "paper", dropout=0.0, beta1=0.0, learning_rate=0.1)
    with_penalty = recipe.replaced(r1_gamma=4.0, penalty_every=1)
    plain, penalised = (tiny_trainer(tmp_path, "gan", each) for each in (recipe, with_penalty))
    start = weights(plain.nets["discriminator"])
    # Latents differ (the penalty's turn draws some), so only what the penalty itself adds to a known gradient counts.
    real = torch.from_numpy(penalised.images[penalised.sampler.next().numpy()]).permute(0, 3, 1, 2) / 127.5 - 1
    at = real.requires_grad_(True)
    net = penalised.nets["discriminator"]
    (slope,) = torch.autograd.grad(net(at).sum(), at, create_graph=True)
    (2.0 * slope.square().sum(dim=(1, 2, 3)).mean()).backward()
    added = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    penalised.sampler.shown = 0

    def without_adversary(phase, nets, batch):
        return None if phase == "penalty" else Losses({phase: 0.0 * nets[phase_net(phase)](inputs(phase, batch)).sum()})

    def phase_net(phase):
        return phase

    def inputs(phase, batch):
        return batch.z if phase == "generator" else batch.real

    penalised.family = spying(FAMILIES["gan"], without_adversary)
    penalised.step()
    for name, value in net.named_parameters():
        expected = start[name] if added[name] is None else start[name] - 0.1 * added[name]
        torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=1e-7)


def test_learning_rates_fall_linearly(tmp_path):
    recipe = shrunk("gan", "paper", learning_rate=2.0, discriminator_learning_rate=1.0, decay_from=0.5, decay_to=0.1)
    trainer = tiny_trainer(tmp_path, "gan", recipe)  # ten steps
    rates = []
    for _ in range(10):
        trainer.step()
        rates.append([trainer.optimisers[name].param_groups[0]["lr"] for name in ("generator", "discriminator")])
    expected = np.array([1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1])
    np.testing.assert_allclose(rates, np.stack([2 * expected, expected], axis=1), rtol=1e-9)


def test_decay_from_1_is_never(tmp_path):
    recipe = shrunk("gan", "paper", learning_rate=2.0, decay_from=1.0, decay_to=0.0, total_kimg=0.02)
    trainer = steps(tiny_trainer(tmp_path, "gan", recipe), 3)  # 24 images: beyond the end
    assert trainer.optimisers["generator"].param_groups[0]["lr"] == 2.0


def test_half_life_of_the_average(tmp_path):
    recipe = shrunk("dcgan", ema_kimg=0.016, ema_rampup=1.0)
    trainer = tiny_trainer(tmp_path, "dcgan", recipe)
    mean = weights(trainer.ema)
    # At most all images seen: 8 in the first step, then 16 = ema_kimg. A batch is 8.
    for half_life in (8, 16, 16, 16):
        trainer.step()
        keep = 0.5 ** (8 / half_life)
        for name, now in trainer.nets["generator"].state_dict().items():
            averaged = now if name.endswith("num_batches_tracked") else keep * mean[name] + (1 - keep) * now
            torch.testing.assert_close(trainer.ema.state_dict()[name], averaged, rtol=1e-5, atol=1e-6)
        mean = weights(trainer.ema)
    assert not trainer.ema.training and not any(p.requires_grad for p in trainer.ema.parameters())


def test_no_average_is_the_generator_itself(tmp_path):
    trainer = steps(tiny_trainer(tmp_path, "dcgan", shrunk("dcgan", ema_kimg=0.0)), 2)
    for name, value in trainer.nets["generator"].state_dict().items():
        assert torch.equal(trainer.ema.state_dict()[name], value)


def test_images_and_labels_reach_the_loss_in_order_and_paired(tmp_path):
    recipe = shrunk("cgan")
    images, labels = tiny_images(recipe)
    seen = []
    spied = spying(FAMILIES["cgan"], lambda phase, nets, batch: seen.append((phase, batch)))
    steps(tiny_trainer(tmp_path, spied, recipe), 3)  # an epoch of 24 images
    shown = [batch for phase, batch in seen if phase == "discriminator"]
    pixels = torch.cat([(batch.real + 1) * 127.5 for batch in shown]).permute(0, 2, 3, 1).round().numpy()
    places = [int(np.flatnonzero((images == row).all(axis=(1, 2, 3)))[0]) for row in pixels]
    assert sorted(places) == list(range(24)) and places != list(range(24))
    assert torch.cat([batch.labels for batch in shown]).tolist() == labels[places].tolist()


@pytest.mark.parametrize("mirror", [False, True])
def test_mirror(tmp_path, mirror):
    recipe = shrunk("gan", mirror=mirror)
    images, _ = tiny_images(recipe)
    seen = []
    spied = spying(
        FAMILIES["gan"], lambda phase, nets, batch: seen.append(batch.real) if phase == "generator" else None
    )
    steps(tiny_trainer(tmp_path, spied, recipe), 3)
    pixels = ((torch.cat(seen) + 1) * 127.5).permute(0, 2, 3, 1).round().numpy()
    straight = sum((images == row).all(axis=(1, 2, 3)).any() for row in pixels)
    flipped = sum((images == row[:, ::-1]).all(axis=(1, 2, 3)).any() for row in pixels)
    assert straight + flipped == 24
    assert (flipped > 4 and straight > 4) if mirror else flipped == 0


def test_bf16_in_the_nets_but_not_in_the_penalties(tmp_path):
    recipe = shrunk("cgan", precision="bf16")
    modes = {}

    def spy(phase, nets, batch):
        modes[phase] = torch.is_autocast_enabled("cpu")

    half = tiny_trainer(tmp_path / "half", spying(FAMILIES["cgan"], spy), recipe)
    full = tiny_trainer(tmp_path / "full", "cgan", recipe.replaced(precision="fp32"))
    for _ in range(3):
        stats, exact = half.step(), full.step()
        assert np.isfinite(list(stats.values())).all()
    assert modes == {"penalty": False, "discriminator": True, "generator": True}
    assert stats != exact and stats["loss_discriminator"] == pytest.approx(exact["loss_discriminator"], rel=0.1)
    assert {p.dtype for p in half.nets.parameters()} == {torch.float32}


# When it goes wrong


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("victim", ["discriminator", "generator", "penalty"])
def test_a_step_on_a_gradient_that_is_not_finite_is_left_out(tmp_path, victim, poison):
    recipe = shrunk("dcgan", penalty_every=1, total_kimg=0.032)

    def spy(phase, nets, batch):
        if phase == victim and trainer.iteration == 1:
            losses = FAMILIES["dcgan"].loss(phase, nets, batch, recipe)
            return replace(losses, terms={name: term * poison for name, term in losses.terms.items()})
        return None

    trainer = tiny_trainer(tmp_path, spying(FAMILIES["dcgan"], spy), recipe, tick_kimg=0.001, monitors=[BlowUp()])
    trainer.step()
    struck = "generator" if victim == "generator" else "discriminator"
    spared = {"generator": "discriminator", "discriminator": "generator"}[struck]
    before = {name: weights(net) for name, net in trainer.nets.items()}
    moments = flat(trainer.optimisers[struck].state_dict())
    stats = trainer.step()
    assert not np.isfinite(stats[f"gradient_{struck}"]) and np.isfinite(stats[f"gradient_{spared}"])
    parameters = dict(trainer.nets[struck].named_parameters())
    assert all(torch.equal(value, before[struck][name]) for name, value in parameters.items())
    after = flat(trainer.optimisers[struck].state_dict())
    assert all(not isinstance(v, torch.Tensor) or torch.equal(v, after[k]) for k, v in moments.items())
    spared_weights = dict(trainer.nets[spared].named_parameters())
    assert not all(torch.equal(value, before[spared][name]) for name, value in spared_weights.items())
    assert np.isfinite(list(trainer.step().values())).all()  # nothing of it is left behind
    assert all(torch.isfinite(value).all() for value in trainer.state()["ema"].values())


def test_the_omission_is_reported(tmp_path):
    recipe = shrunk("gan", "paper", total_kimg=0.032)

    def spy(phase, nets, batch):
        if phase == "discriminator" and trainer.iteration == 2:
            return Losses({"discriminator": nets["discriminator"](batch.real).sum() * float("nan")})
        return None

    trainer = tiny_trainer(tmp_path, spying(FAMILIES["gan"], spy), recipe, tick_kimg=0.001, monitors=[BlowUp()])
    trainer.train()
    events = rows_of(tmp_path, kind="event")
    assert [(event["kimg"], event["monitor"], event["severity"]) for event in events] == [
        (0.024, "blow_up", "error")
    ] * 2
    assert any("gradient_discriminator is not finite; its steps were left out" in event["message"] for event in events)
    assert "blow_up: gradient_discriminator" in trainer.log.out.getvalue()
    assert [row["loss_discriminator"] is None for row in rows_of(tmp_path)] == [False, False, True, False]


def test_blow_up_tells_a_jump_from_a_quiet_run():
    quiet, loud = BlowUp(), BlowUp()
    for index in range(8):
        stats = {"gradient_generator": 1.0 + index % 2, "real_logit": 1e9 * (index == 7)}
        assert quiet.observe(index, stats) == loud.observe(index, stats) == []
    assert quiet.observe(8, {"gradient_generator": 900.0}) == []
    (event,) = loud.observe(8, {"gradient_generator": 5000.0})
    assert (event.severity, event.evidence) == ("warning", {"value": 5000.0, "median": 1.5})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"images": np.zeros((24, 8, 8), np.uint8)}, r"images are \[24, 8, 8\] uint8, .*\[N, 8, 8, 1\] uint8"),
        ({"images": np.zeros((24, 9, 8, 1), np.uint8)}, r"images are \[24, 9, 8, 1\]"),
        ({"images": np.zeros((24, 8, 8, 3), np.uint8)}, r"images are \[24, 8, 8, 3\]"),
        ({"images": np.zeros((24, 8, 8, 1), np.float32)}, "images are .* float32"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8), "labels": np.zeros(0, np.int64)}, "images are none"),
        ({"labels": np.full(24, 3)}, r"labels lie in 3\.\.3, the recipe has 3 classes"),
        ({"labels": np.arange(24) % 3 - 1}, r"labels lie in -1\.\.1"),
        ({"labels": np.zeros(23, np.int64)}, r"labels are \[23\] int64, must be \[24\] int64"),
        ({"labels": np.zeros((24, 1), np.int64)}, r"labels are \[24, 1\]"),
        ({"labels": np.zeros(24, np.float64)}, "labels are .* float64"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, given, message):
    with pytest.raises(RecipeError, match=message):
        tiny_trainer(tmp_path, "cgan", shrunk("cgan"), **given)


def test_a_recipe_that_cannot_train_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="size is 30"):
        tiny_trainer(tmp_path, "dcgan", replace(shrunk("dcgan"), size=30))
    with pytest.raises(RecipeError, match="augment names 'sepia', must be of color, translation, cutout"):
        tiny_trainer(tmp_path, "dcgan", shrunk("dcgan", augment="color,sepia"))


# A whole run


def test_evaluations_mark_the_best(tmp_path):
    recipe = shrunk("cgan")
    figures, given = iter([5.0, 2.0, 3.0, 4.0]), []

    def evaluate(images):
        given.append(images)
        return {"kid_lite0": np.float64(next(figures)), "recall": 0.5}

    options = {"evaluate_kimg": 0.02, "evaluate_samples": 7, "snapshot_kimg": 10.0}
    trainer = tiny_trainer(tmp_path, "cgan", recipe, evaluate=evaluate, **options)
    trainer.train()
    assert {(images.shape, images.dtype.name) for images in given} == {((7, 8, 8, 1), "uint8")}
    rows = rows_of(tmp_path, kind="evaluation")
    assert [(row["kimg"], row["kid_lite0"]) for row in rows] == [(0.024, 5), (0.048, 2), (0.072, 3), (0.08, 4)]
    best, last = (checkpoint.load(tmp_path / name) for name in ("best.pt", "last.pt"))
    assert (best["sampler"]["shown"], best["best"]) == (48, 2.0)
    assert (last["sampler"]["shown"], last["best"]) == (80, 2.0)


def test_the_last_checkpoint_knows_a_best_found_after_it(tmp_path):
    trainer = tiny_trainer(tmp_path, "gan", shrunk("gan"), evaluate=lambda images: {"kid_lite0": 1.0})
    trainer.train()  # evaluates once, at the end, after the last snapshot
    assert checkpoint.load(tmp_path / "last.pt")["best"] == 1.0


def test_an_evaluation_that_was_cut_short_is_made_up_for(tmp_path):
    def cut(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, "gan", shrunk("gan"), evaluate=cut).train()
    trainer = tiny_trainer(tmp_path, "gan", shrunk("gan"), evaluate=lambda images: {"kid_lite0": 1.0})
    trainer.restore(checkpoint.load(tmp_path / "last.pt"))
    assert trainer.done >= 1
    trainer.train()
    assert checkpoint.load(tmp_path / "best.pt")["best"] == 1.0 and len(rows_of(tmp_path, kind="evaluation")) == 1
    again = tiny_trainer(tmp_path, "gan", shrunk("gan"), evaluate=cut)
    again.restore(checkpoint.load(tmp_path / "last.pt"))
    again.train()  # once is enough


def test_a_resumed_run_is_evaluated_when_an_uninterrupted_one_would_be(tmp_path):
    options = {"evaluate_kimg": 0.03, "evaluate_samples": 7, "snapshot_kimg": 0.001}
    told = lambda images: {"kid_lite0": 1.0}  # noqa: E731
    whole = tiny_trainer(tmp_path / "whole", "gan", shrunk("gan"), evaluate=told, **options)
    whole.train()
    for _ in range(20):
        part = tiny_trainer(tmp_path / "parts", "gan", shrunk("gan"), evaluate=told, **options, stop_after_s=1e-9)
        if (tmp_path / "parts" / "last.pt").exists():
            part.restore(checkpoint.load(tmp_path / "parts" / "last.pt"))
        part.train()
    assert rows_of(tmp_path / "parts", kind="evaluation") == rows_of(tmp_path / "whole", kind="evaluation") != []


def test_out_of_time_stops_with_a_checkpoint(tmp_path):
    tiny_trainer(tmp_path, "gan", shrunk("gan"), stop_after_s=1e-9).train()
    assert checkpoint.load(tmp_path / "last.pt")["iteration"] == 1
    assert len(rows_of(tmp_path)) == 1 and (tmp_path / "samples" / "0000000.0.png").is_file()


@pytest.mark.parametrize("name", ["wall", "cpu"])
def test_a_run_within_a_time_follows_the_clock_and_says_what_it_reached(tmp_path, monkeypatch, name):
    clock = iter(range(10_000))
    monkeypatch.setattr("training.trainer.CLOCKS", {name: lambda: float(next(clock))})
    recipe = shrunk("dcgan", total_kimg=1000.0, decay_from=0.5, decay_to=0.0)
    trainer = tiny_trainer(tmp_path, "dcgan", recipe, within_s=60.0, clock=name)
    rates = []
    step = trainer.step

    def watched():
        rates.append((trainer.done, trainer.optimisers["generator"].param_groups[0]["lr"]))
        return step()

    trainer.step = watched
    trainer.train()
    assert rates[0][0] == 0 and trainer.seconds >= 60
    assert trainer.recipe.total_kimg == trainer.kimg < 1000
    assert checkpoint.load(tmp_path / "last.pt")["recipe"]["total_kimg"] == trainer.kimg
    # The rate seen in a step was set by the step before it.
    assert all(rate == recipe.learning_rate for done, rate in rates if done < 0.5)
    assert rates[-1][1] < 0.2 * recipe.learning_rate


def test_samples_depend_on_their_own_seed_and_label_alone(tmp_path):
    trainer = steps(tiny_trainer(tmp_path, "cgan", shrunk("cgan")), 1)
    labels = np.array([0, 1, 2, 0, 1])
    together = trainer.sample([3, 4, 5, 6, 7], labels)
    assert together.shape == (5, 8, 8, 1) and together.dtype == np.uint8
    np.testing.assert_array_equal(trainer.sample([3, 4, 5, 6, 7], labels, batch=2), together)
    np.testing.assert_array_equal(trainer.sample([6], labels[3:4])[0], together[3])


def test_sampling_and_logging_do_not_touch_the_run(tmp_path):
    one = steps(tiny_trainer(tmp_path / "one", "gan", shrunk("gan")), 2)
    other = steps(tiny_trainer(tmp_path / "other", "gan", shrunk("gan")), 1)
    other.sample(range(20), None)
    other.log.samples(0, other.sample(range(4), None))
    other.step()
    assert differing(one.state(), other.state()) == []


def test_a_trainer_says_what_tensorboard_it_lacks(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = io.StringIO()
    recipe = shrunk("gan")
    trainer = Trainer(
        FAMILIES["gan"], recipe, *tiny_images(recipe), RunLog(tmp_path, out=out), TrainOptions(stop_after_s=1e-9)
    )
    trainer.train()
    assert "tensorboard is not installed" in out.getvalue() and rows_of(tmp_path)


# Starting from another run's weights


def test_start_from_takes_what_fits_and_names_what_is_new(tmp_path):
    plain, grown = shrunk("dcgan", residual_blocks=0), shrunk("dcgan", residual_blocks=1)
    first = steps(tiny_trainer(tmp_path / "first", "dcgan", plain, seed=1), 2)
    second = tiny_trainer(tmp_path / "second", "dcgan", grown, seed=2)
    fresh = second.start_from(first.state())
    assert fresh and all("refines" in name for name in fresh)
    given = first.ema.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in second.ema.state_dict().items() if name in given)
    assert second.kimg == 0 and second.iteration == 0
    steps(second, 1)


def test_of_a_run_at_half_the_side_the_discriminator_keeps_its_last_layers(tmp_path):
    """Counted from the end: the convolution that joins the last octaves is the same one at both sizes."""
    small = shrunk("dcgan", size=16, discriminator_width=8, generator_width=8, discriminator_norm="none")
    first = steps(tiny_trainer(tmp_path / "first", "dcgan", small, seed=1), 2)
    large = small.replaced(size=32, discriminator_width=4, generator_width=4)
    second = tiny_trainer(tmp_path / "second", "dcgan", large, seed=2)
    fresh = second.start_from(first.state())
    before, after = first.nets["discriminator"], second.nets["discriminator"]
    last = [[module for module in net.body if isinstance(module, torch.nn.Conv2d)][-1] for net in (before, after)]
    assert torch.equal(last[0].weight, last[1].weight) and torch.equal(last[0].bias, last[1].bias)
    assert torch.equal(before.to_logit.weight, after.to_logit.weight)
    assert [name for name in fresh if "body" in name] == [
        f"discriminator.body.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")
    ]
    steps(second, 1)


def test_start_from_refuses_another_family_and_other_shapes(tmp_path):
    other = tiny_trainer(tmp_path / "gan", "gan", shrunk("gan"))
    trainer = tiny_trainer(tmp_path / "dcgan", "dcgan", shrunk("dcgan"))
    with pytest.raises(checkpoint.CheckpointError, match="family 'gan', not 'dcgan'"):
        trainer.start_from(other.state())
    state = trainer.state()
    state["nets"] = {f"other.{name}": value for name, value in state["nets"].items()}
    with pytest.raises(checkpoint.CheckpointError, match="no tensor of these nets"):
        trainer.start_from(state)


# Settings that nothing reads


@pytest.mark.parametrize(
    "family, recipe",
    [(name, recipe) for name, one in FAMILIES.items() if one.pairing == "none" for recipe in one.recipes],
)
def test_what_a_recipe_sets_is_read(tmp_path, family, recipe):
    """So that nobody is warned of a field that matters; that there is no norm is said to people."""
    known = {field.name: field.default for field in fields(Recipe)}
    told = FAMILIES[family].recipes[recipe]
    mine = [name for name, default in known.items() if getattr(told, name) != default]
    trainer = tiny_trainer(tmp_path, family, shrunk(family, recipe, precision="fp32", head_start_kimg=0.0))
    assert trainer.unread(mine) is None
    trainer.step()
    aside = {"generator_norm", "minibatch_stddev", "path_length_every"}
    assert set(trainer.unread(mine)) <= aside, "a field that the family's own recipe sets is read by nothing"
    assert {"scale", "degradation", "cycle_weight"} <= set(trainer.unread(list(known)))


def test_settings_that_nothing_reads_are_told_once(tmp_path):
    out = io.StringIO()
    recipe = shrunk("gan", palette=16, dropout=0.1, head_start_kimg=0.016)
    options = TrainOptions(asked=("palette", "dropout", "batch_size"))
    images, labels = tiny_images(recipe)
    trainer = Trainer(FAMILIES["gan"], recipe, images, labels, RunLog(tmp_path, tensorboard=False, out=out), options)
    trainer.train()
    warnings = [line for line in out.getvalue().splitlines() if "changes nothing" in line]
    assert warnings == ["warning: palette=16 changes nothing: family gan as set does not read it"]
