"""The training loop: phases, accumulation, precision, moving average, schedule, checkpoints. Names no family."""

import copy
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from service.engine.latents import latents_from_seeds
from training import checkpoint
from training.augment import augmentation
from training.datasets.pairs import Pairs
from training.family import Batch, Family, Phase
from training.layers import from_pixels, to_pixels
from training.prefetch import drawn_ahead
from training.recipe import READ_OF_PAIRS, READ_OUTSIDE, Recipe, RecipeError
from training.runlog import Event, RunLog
from training.sampler import Sampler, labels_like

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.monotonic, "cpu": time.process_time}
Evaluate = Callable[[np.ndarray], Mapping[str, float]]


class Monitor(Protocol):
    """The seam between the loop and what watches it, one failure mode each."""

    def observe(self, kimg: float, stats: Mapping[str, float]) -> Sequence[Event]:
        """Told the mean of every named scalar since the last call, or an evaluation's figures; answers what is wrong,
        usually nothing."""
        ...


@dataclass(frozen=True)
class TrainOptions:
    """What concerns one run and not the method.

    Args:
        seed: of initial weights, data order, latents and dropout.
        tick_kimg: between progress lines and rows of stats.jsonl.
        snapshot_kimg: between checkpoints and sample grids.
        evaluate_kimg: between evaluations; they cost about a minute each on one core.
        evaluate_samples: generated images an evaluation sees.
        best_by: the figure whose lowest value marks the checkpoint `best.pt`.
        stop_after_s: end early (with a checkpoint) after so many seconds; 0 is never.
        within_s: the run's length in seconds instead of images: rates fall and nets grow by the clock, and the recipe's
            `total_kimg` becomes what was reached. 0: the recipe decides.
        clock: what seconds are: `wall`, or `cpu` for those that this process's threads spent computing, so that runs
            beside one another, or on a busy machine, can be compared.
        workers: processes that make pairs ahead of time; 0 makes them between the steps.
        asked: fields of the recipe that were set outright: `train` warns of those that nothing reads.
    """

    seed: int = 0
    tick_kimg: float = 5.0
    snapshot_kimg: float = 50.0
    evaluate_kimg: float = 100.0
    evaluate_samples: int = 2000
    best_by: str = "kid_lite0"
    stop_after_s: float = 0.0
    within_s: float = 0.0
    clock: str = "wall"
    workers: int = 0
    asked: tuple[str, ...] = ()


class Trainer:
    """Trains one family by one recipe on one data set.

    Args:
        family: nets, phases and loss.
        recipe: already filled in from the data set (size, channels, classes).
        images: [N, H, W, C] uint8 training images, H = W = recipe.size; for an image-to-image family its pairs.
        labels: [N] int64, or None.
        log: the run's directory.
        options: see TrainOptions.
        evaluate: generated images [M, H, W, C] uint8 -> figures; None trains without. For an image-to-image family they
            are the outputs for `judged`.
        monitors: told every row of stats; see Monitor.
        examples: sources and targets [M, ...] uint8 of an image-to-image family's sample grids.
        judged: sources [M, h, w, C] uint8 for `evaluate`.
    """

    def __init__(
        self,
        family: Family,
        recipe: Recipe,
        images: np.ndarray | Pairs,
        labels: np.ndarray | None,
        log: RunLog,
        options: TrainOptions,
        *,
        evaluate: Evaluate | None = None,
        monitors: Sequence[Monitor] = (),
        device: str = "cpu",
        examples: tuple[np.ndarray, np.ndarray] | None = None,
        judged: np.ndarray | None = None,
    ) -> None:
        _check_data(family, recipe, images, labels)
        self.family, self.recipe, self.options, self.log = family, recipe, options, log
        self.evaluate, self.monitors, self.device = evaluate, monitors, torch.device(device)
        self.images, self.labels, self.examples, self.judged = images, labels, examples, judged
        np.random.seed(options.seed % 2**32)
        torch.manual_seed(options.seed)
        # Channels last: oneDNN's convolutions need no reordering then, several times the speed on CPUs with AMX.
        self.read: set[str] = set(READ_OUTSIDE if family.pairing == "none" else READ_OUTSIDE | READ_OF_PAIRS)
        """Names of the recipe's fields that something has read so far."""
        shown = recipe.watched(self.read)
        self.nets = family.nets(shown).to(self.device)
        self.nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.nets["generator"]).eval().requires_grad_(False)
        self.optimisers = {name: _optimiser(name, net, recipe) for name, net in self.nets.items()}
        self.phases = family.phases(shown)
        self._waiting = {phase.name for phase in self.phases}
        self.sampler = Sampler(len(images), recipe.batch_size, options.seed)
        self._ahead: Iterator[tuple[np.ndarray, np.ndarray]] | None = None
        self.augment = augmentation(recipe.augment, recipe.ada_kimg, recipe.ada_target)
        # Asked once: the tree may change while this process goes on running what it has loaded.
        self.commit = source_commit()
        self.iteration, self.best, self.seconds = 0, float("inf"), 0.0
        self.evaluated = 0.0
        """kimg of the last evaluation: one that was cut short is made up for by the resumed run."""
        self.stopping = False

    @property
    def kimg(self) -> float:
        """Real images shown, in thousands."""
        return self.sampler.shown / 1000

    @property
    def done(self) -> float:
        """Part of the run that lies behind: 0 to 1, or a little beyond."""
        if self.options.within_s:
            return self.seconds / self.options.within_s
        return self.kimg / self.recipe.total_kimg

    def stop(self) -> None:
        """End `train` after the iteration in progress, with a checkpoint; safe to call from a signal's handler."""
        self.stopping = True

    def train(self) -> None:
        """Run to the recipe's end (or `stop_after_s`), leaving `last.pt` and, when evaluated, `best.pt`."""
        clock = CLOCKS[self.options.clock]
        started, spent = clock(), self.seconds
        due = {"tick": self.kimg, "snapshot": self.kimg, "evaluate": self.evaluated + self.options.evaluate_kimg}
        if self.evaluate is not None and self.done >= 1 and self.evaluated < self.kimg:
            self._evaluate(self.evaluate)
        sums: dict[str, list[float]] = {}
        asked = self.options.asked
        while self.done < 1:
            stats = self.step()
            if asked and (vain := self.unread(asked)) is not None:
                self._say_unread(vain)
                asked = ()
            self.seconds = spent + clock() - started
            for name, value in stats.items():
                sums.setdefault(name, []).append(value)
            if 0 < self.options.stop_after_s <= clock() - started:
                self.stop()
            last = self.done >= 1 or self.stopping
            if last and self.options.within_s and not self.stopping:
                # What the same schedule by images would have been.
                self.recipe = self.recipe.replaced(total_kimg=self.kimg)
            if self.kimg >= due["tick"] or last:
                due["tick"] = self.kimg + self.options.tick_kimg
                self._tick({name: float(np.mean(values)) for name, values in sums.items()})
                sums = {}
            if self.kimg >= due["snapshot"] or last:
                due["snapshot"] = self.kimg + self.options.snapshot_kimg
                self._grid()
                checkpoint.save(self.log.directory / "last.pt", self.state())
            if self.evaluate is not None and (self.kimg >= due["evaluate"] or (last and not self.stopping)):
                due["evaluate"] = self.kimg + self.options.evaluate_kimg
                self._evaluate(self.evaluate)
            if self.stopping:
                break

    def step(self) -> dict[str, float]:
        """One iteration: every phase whose turn it is, then the moving average. Returns the named scalars."""
        real, labels, source = self._draw()
        self._schedule()
        stats: dict[str, float] = {}
        for phase in self.phases:
            if self.iteration % phase.every == 0 and not self._held_back(phase):
                stats.update(self._phase(phase, real, labels, source))
        if self.augment.adaptive is not None and "certainty" in stats:
            self.augment.adaptive.observe(stats["certainty"], len(real))
            stats["augment_p"] = self.augment.adaptive.p
        self._average()
        self.iteration += 1
        return stats

    def _noticed(self, images: Tensor) -> Tensor:
        self.read |= {"augment", "ada_kimg", "ada_target"}
        return self.augment(images)

    def _say_unread(self, fields: Sequence[str]) -> None:
        for name in fields:
            value = getattr(self.recipe, name)
            self.log.say(f"warning: {name}={value} changes nothing: family {self.family.name} as set does not read it")

    @property
    def _shown(self) -> Recipe:
        """The recipe for the family, watched until each phase has had its first turn."""
        return self.recipe.watched(self.read) if self._waiting else self.recipe

    def unread(self, fields: Collection[str]) -> list[str] | None:
        """Those of the recipe's fields that nothing reads, in this family with these settings; None: not known yet.

        It is known when each phase has had its first turn, which in a resumed run may have been long ago.
        """
        return None if self._waiting else sorted(set(fields) - self.read)

    def _held_back(self, phase: Phase) -> bool:
        return "generator" in phase.trains and self.kimg <= self.recipe.head_start_kimg > 0

    def _draw(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The next real images, their labels or sources, on the device."""
        if not isinstance(self.images, np.ndarray):
            if self._ahead is None:
                self._ahead = drawn_ahead(self.images, self.sampler, self.options.workers)
            source, target = next(self._ahead)
            self.sampler.next()
            return self._on_device(target), None, self._on_device(source)
        indices = self.sampler.next().numpy()
        real = self._on_device(self.images[indices])
        if self.recipe.mirror:
            flip = torch.rand(len(real), 1, 1, 1) < 0.5
            real = torch.where(flip.to(self.device), real.flip(3), real)
        if self.labels is None or not self.recipe.classes:
            return real, None, None
        return real, torch.from_numpy(self.labels[indices]).to(self.device), None

    def _on_device(self, images: np.ndarray) -> Tensor:
        # Bytes travel, a quarter of what numbers would be.
        return from_pixels(torch.from_numpy(images).to(self.device))

    def _phase(self, phase: Phase, real: Tensor, labels: Tensor | None, source: Tensor | None) -> dict[str, float]:
        for name, net in self.nets.items():
            net.requires_grad_(name in phase.trains)
        size = self.recipe.microbatch or len(real)
        recipe, augment = self._shown, self._noticed if self._waiting else self.augment
        self._waiting.discard(phase.name)
        chunks = len(real) // size
        # Tensors until the end: every number that is read waits for all that a GPU has still to do.
        found: dict[str, Tensor] = {}
        for start in range(0, len(real), size):
            rows = slice(start, start + size)
            z = torch.randn(size, 0 if source is not None else self.recipe.latent_dim).to(self.device)
            part = None if source is None else source[rows]
            batch = Batch(real[rows], z, None if labels is None else labels[rows], augment, part)
            bf16 = self.recipe.precision == "bf16" and phase.autocast
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                losses = self.family.loss(phase.name, self.nets, batch, recipe)
            total = torch.stack([term.float() for term in losses.terms.values()]).sum()
            (total / chunks).backward()
            for name, value in {**losses.terms, **losses.stats}.items():
                key = f"loss_{name}" if name in losses.terms else name
                part_of_it = value.detach().float() / chunks
                found[key] = found[key] + part_of_it if key in found else part_of_it
        if phase.step:
            found |= {f"gradient_{name}": _gradient_norm(self.nets[name]) for name in phase.trains}
        stats = dict(zip(found, torch.stack([value.to(self.device) for value in found.values()]).tolist(), strict=True))
        if phase.step:
            for name in phase.trains:
                # A step on a non-finite gradient would ruin the weights for good; the monitors tell of the omission.
                if np.isfinite(stats[f"gradient_{name}"]):
                    self.optimisers[name].step()
                self.optimisers[name].zero_grad(set_to_none=True)
                if self.recipe.clip and name == "discriminator":
                    _clip(self.nets[name], self.recipe.clip)
        return stats

    def _schedule(self) -> None:
        done = self.done
        if self.family.grow is not None:
            self.family.grow(self.nets, min(done, 1.0), self._shown)
        start = self.recipe.decay_from
        scale = 1.0
        if start < 1 and done > start:
            scale = 1 + (self.recipe.decay_to - 1) * min((done - start) / max(1 - start, 1e-9), 1.0)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * scale

    @torch.no_grad()
    def _average(self) -> None:
        half_life = min(self.recipe.ema_kimg, self.kimg * self.recipe.ema_rampup) * 1000
        keep = 0.5 ** (self.recipe.batch_size / half_life) if half_life > 0 else 0.0
        source = self.nets["generator"]
        torch._foreach_lerp_(list(self.ema.parameters()), list(source.parameters()), 1 - keep)
        for held, current in zip(self.ema.buffers(), source.buffers(), strict=True):
            if held.dtype.is_floating_point:
                # Batch statistics follow the weights that they belong to.
                held.lerp_(current, 1 - keep)
            else:
                held.copy_(current)

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], labels: np.ndarray | None, batch: int = 64) -> np.ndarray:
        """The EMA generator's images of `seeds` at truncation 1, [N, H, W, C] uint8: what the server would answer."""
        return generate(self.ema, self.recipe, seeds, labels, batch)

    def _grid(self) -> None:
        """Save the sample grid: the same 64 seeds, or the same input | output | target."""
        if self.family.pairing == "none":
            self.log.samples(self.kimg, self.sample(range(64), _grid_labels(self.recipe, 64)))
        elif self.examples is not None:
            images, columns = sheet(self.family, self.ema, self.recipe, *self.examples)
            self.log.samples(self.kimg, images, columns, zoom=1 if images.shape[1] > 100 else 2)

    def _tick(self, stats: Mapping[str, float]) -> None:
        self.log.stats(self.kimg, {**stats, "seconds": self.seconds})
        wanted = ("pair_accuracy", "psnr")
        shown = {name: value for name, value in stats.items() if name.startswith("loss_") or name in wanted}
        if self.options.within_s:
            self.log.progress(self.kimg, None, shown, max(0.0, self.options.within_s - self.seconds))
        else:
            self.log.progress(self.kimg, self.recipe.total_kimg, shown)
        self._watch(stats)

    def _watch(self, figures: Mapping[str, float]) -> None:
        for monitor in self.monitors:
            for event in monitor.observe(self.kimg, figures):
                self.log.event(self.kimg, event)

    def _evaluate(self, evaluate: Evaluate) -> None:
        count = self.options.evaluate_samples
        labels = None
        if self.recipe.classes and self.labels is not None:
            labels = labels_like(count, self.labels, self.recipe.classes)
        if self.judged is not None:
            images = translate(self.ema, self.judged, 2**self.recipe.downsamplings)
        else:
            images = self.sample(range(count), labels)
        figures = evaluate(images)
        self.log.stats(self.kimg, figures, kind="evaluation")
        self._watch(figures)
        self.log.say(f"{self.kimg:8.1f} kimg  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        names, self.evaluated = ["last.pt"], self.kimg
        if figures[self.options.best_by] < self.best:
            self.best = float(figures[self.options.best_by])
            names.insert(0, "best.pt")
        # `last.pt`, too: one that did not know of the best would let a resumed run overwrite it by a worse one.
        for name in names:
            checkpoint.save(self.log.directory / name, self.state())

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened."""
        return {
            "family": self.family.name,
            "recipe": self.recipe.to_json(),
            "seed": self.options.seed,
            "nets": self.nets.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "sampler": self.sampler.state(),
            "random": checkpoint.random_state(),
            "iteration": self.iteration,
            "best": self.best,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "commit": self.commit,
            "augment": None if self.augment.adaptive is None else self.augment.adaptive.state(),
        }

    def start_from(self, state: Mapping[str, Any]) -> list[str]:
        """Take over another run's weights where names and shapes agree (EMA and all); everything else starts afresh.

        Of a run at half this one's side the discriminator's convolutions are counted from the last one: the new
        octave is the first that an image comes to.

        Returns:
            the names of the tensors that the other run did not have, those of the EMA without the net's name.

        Raises:
            checkpoint.CheckpointError: another family, or nothing of the generator fits.
        """
        if state["family"] != self.family.name:
            raise checkpoint.CheckpointError(f"checkpoint of family {state['family']!r}, not {self.family.name!r}")
        fresh: list[str] = []
        # A discriminator of patches has as many layers at any side.
        grown = self.family.pairing == "none" and state["recipe"]["size"] * 2 == self.recipe.size
        for target, before in ((self.nets, state["nets"]), (self.ema, state["ema"])):
            own = target.state_dict()
            given = checkpoint.counted_from_the_end(before, own, "discriminator.body.") if grown else before
            fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
            if not fitting:
                raise checkpoint.CheckpointError("the checkpoint has no tensor of these nets' names and shapes")
            fresh += [name for name in own if name not in fitting]
            target.load_state_dict(fitting, strict=False)
        return fresh

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of the same family and nets.

        Raises:
            checkpoint.CheckpointError: it belongs to another family, seed, data set or to other nets.
        """
        if state["family"] != self.family.name:
            raise checkpoint.CheckpointError(f"checkpoint of family {state['family']!r}, not {self.family.name!r}")
        then, now = state["recipe"], self.recipe.to_json()
        if then["optimiser"] != now["optimiser"]:
            raise checkpoint.CheckpointError(f"optimiser was {then['optimiser']!r}, cannot become {now['optimiser']!r}")
        changed = [f"{name} {then.get(name)!r} -> {now[name]!r}" for name in now if then.get(name) != now[name]]
        try:
            self.nets.load_state_dict(state["nets"])
            self.ema.load_state_dict(state["ema"])
            for name, optimiser in self.optimisers.items():
                settings = [{k: v for k, v in group.items() if k != "params"} for group in optimiser.param_groups]
                optimiser.load_state_dict(state["optimisers"][name])
                # Moments come from the checkpoint, rates from the recipe: else a changed one would be ignored.
                for group, own in zip(optimiser.param_groups, settings, strict=True):
                    group.update(own)
            self.sampler.restore(state["sampler"])
            self._ahead = None
        except (RuntimeError, ValueError, KeyError) as error:
            why = f"trained with another recipe: {', '.join(changed)}" if changed else str(error)
            raise checkpoint.CheckpointError(f"the checkpoint does not fit this run: {why}") from error
        if self.augment.adaptive is not None and state.get("augment") is not None:
            self.augment.adaptive.restore(state["augment"])
        checkpoint.restore_random_state(state["random"])
        self._schedule()
        self.iteration, self.best, self.seconds = state["iteration"], state["best"], state["seconds"]
        self.evaluated = state.get("evaluated", self.kimg)
        self.log.resume(self.kimg)
        if changed:
            self.log.say(f"resumed with another recipe: {', '.join(changed)}")


@torch.inference_mode()
def generate(
    generator: nn.Module, recipe: Recipe, seeds: Sequence[int], labels: np.ndarray | None, batch: int = 64
) -> np.ndarray:
    """Images [N, H, W, C] uint8 of `seeds` (and labels [N] int64), with the server's latents, in inference mode."""
    z = torch.from_numpy(latents_from_seeds(list(seeds), recipe.latent_dim))
    y = None if labels is None or not recipe.classes else torch.from_numpy(labels)
    device = next((tensor.device for tensor in generator.parameters()), torch.device("cpu"))
    parts = []
    for start in range(0, len(z), batch):
        rows = slice(start, start + batch)
        label = None if y is None else y[rows].to(device)
        parts.append(to_pixels(generator(z[rows].to(device), label)).cpu())
    return torch.cat(parts).contiguous().numpy()


@torch.inference_mode()
def translate(generator: nn.Module, sources: np.ndarray, multiple: int = 1, batch: int = 8) -> np.ndarray:
    """An image-to-image generator's answers [N, sH, sW, 3] uint8 to sources [N, H, W, C] uint8.

    Sides are padded by reflection to a multiple of `multiple` and cropped back, as the server does.
    """
    height, width = sources.shape[1:3]
    pad = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
    device = next(generator.parameters()).device
    parts = []
    for start in range(0, len(sources), batch):
        padded = np.pad(sources[start : start + batch], pad, mode="reflect")
        answer = to_pixels(generator(from_pixels(torch.from_numpy(padded)).to(device))).cpu()
        scale = answer.shape[1] // padded.shape[1]
        parts.append(answer[:, : height * scale, : width * scale])
    return torch.cat(parts).contiguous().numpy()


@torch.inference_mode()
def sheet(
    family: Family, generator: nn.Module, recipe: Recipe, sources: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, int]:
    """Images for a grid, [M, H, W, 3] uint8, and its columns: input | output | target, twice in a row."""
    device = next(generator.parameters()).device
    side = targets.shape[1]
    shown = np.repeat(np.repeat(sources[..., :3], side // sources.shape[1], axis=1), side // sources.shape[1], axis=2)
    if family.sheet is None:
        columns = [shown, translate(generator, sources, 2**recipe.downsamplings), targets]
    else:
        high, wide = (length - length % 2**recipe.downsamplings for length in targets.shape[1:3])
        given = (from_pixels(torch.from_numpy(part[:, :high, :wide])).to(device) for part in (sources, targets))
        columns = [to_pixels(image).cpu().numpy() for image in family.sheet(generator, *given)]
    count = min(len(column) for column in columns)
    high, wide = (min(column.shape[axis] for column in columns) for axis in (1, 2))
    return np.stack([column[i, :high, :wide] for i in range(count) for column in columns]), 2 * len(columns)


def _grid_labels(recipe: Recipe, count: int) -> np.ndarray | None:
    return np.arange(count, dtype=np.int64) % recipe.classes if recipe.classes else None


def _optimiser(name: str, net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    rate = recipe.learning_rate
    if name == "discriminator" and recipe.discriminator_learning_rate:
        rate = recipe.discriminator_learning_rate
    group = [{"params": list(net.parameters()), "lr": rate, "initial_lr": rate}]
    if recipe.optimiser == "adam":
        # Both betas as floats: torch refuses a mixture with an int.
        return torch.optim.Adam(group, lr=rate, betas=(float(recipe.beta1), float(recipe.beta2)), eps=1e-8)
    if recipe.optimiser == "rmsprop":
        return torch.optim.RMSprop(group, lr=rate)
    return torch.optim.SGD(group, lr=rate, momentum=recipe.beta1)


def _gradient_norm(net: nn.Module) -> Tensor:
    """Of all of a net's gradients together, a scalar."""
    return nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])


@torch.no_grad()
def _clip(net: nn.Module, bound: float) -> None:
    for parameter in net.parameters():
        parameter.clamp_(-bound, bound)


def _check_data(family: Family, recipe: Recipe, images: np.ndarray | Pairs, labels: np.ndarray | None) -> None:
    recipe.validate()
    side, channels = recipe.size, recipe.channels
    if isinstance(images, np.ndarray) != (family.pairing == "none"):
        wanted = "images" if family.pairing == "none" else "pairs of images"
        raise RecipeError(f"family {family.name} trains on {wanted}")
    if not isinstance(images, np.ndarray):
        return
    if images.ndim != 4 or images.shape[1:] != (side, side, channels) or images.dtype != np.uint8:
        raise RecipeError(
            f"images are {list(images.shape)} {images.dtype}, the recipe expects [N, {side}, {side}, {channels}] uint8"
        )
    if not len(images):
        raise RecipeError("images are none at all: nothing to train on")
    if (family.conditional or recipe.classes) and (labels is None or recipe.classes < 1):
        raise RecipeError(f"family {family.name} needs labelled images: a folder per class, or a labelled set")
    if not recipe.classes or labels is None:
        return
    if labels.shape != (len(images),) or labels.dtype != np.int64:
        raise RecipeError(f"labels are {list(labels.shape)} {labels.dtype}, must be [{len(images)}] int64")
    if labels.min() < 0 or labels.max() >= recipe.classes:
        raise RecipeError(f"labels lie in {labels.min()}..{labels.max()}, the recipe has {recipe.classes} classes")


def source_commit() -> str:
    """The commit of the source tree, with `-dirty` when it has changes; `unknown` outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
