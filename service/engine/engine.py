"""The engine: opens the models' folder and draws. Numpy arrays in, numpy arrays out; no HTTP.

    from pathlib import Path
    from service.engine.engine import Engine, EngineOptions, KeyFrame, Steering, Track

    async with Engine(EngineOptions(models=Path("models"))) as engine:
        drawn = await engine.generate("fashion-28", seeds=[7], labels="Sneaker")
        drawn.images     # [1, 28, 28, 1] uint8
        drawn.model      # "fashion-28@1"
        moved = await engine.generate("faces-64", seeds=[7], steering=Steering.of(directions={"sefa_1": 2.0}))
        motion = await engine.interpolate("faces-64", [KeyFrame.of(1), KeyFrame.of(2)], Track(frames=60))
        frames = await motion.whole()     # [60, 64, 64, 3] uint8

An engine belongs to the event loop that opened it; its methods are called on that loop.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from service.engine.drawing import Drawing
from service.engine.entries import FIRST, LAST, USUAL
from service.engine.fairness import Share
from service.engine.flights import Flights
from service.engine.loaded import LoadedModel
from service.engine.looking import Looking
from service.engine.memory import MemoryStats, memory_stats
from service.engine.options import EngineOptions
from service.engine.pipelines import generate as generating
from service.engine.pipelines import motion as moving
from service.engine.pipelines import project as projecting
from service.engine.pipelines import translate as translating
from service.engine.pipelines import upscale as upscaling
from service.engine.pipelines.motion import KeyFrame, Motion, Track
from service.engine.pipelines.painting import Bounds, Painting, Schedule
from service.engine.pipelines.project import Projected
from service.engine.pipelines.rows import Labels
from service.engine.repository import Repository
from service.engine.results import Generated, ModelInfo, ModelStats, Timings, info_of
from service.engine.steering import Steering
from service.engine.waiting import outcome_of
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelAsleep,
    NotReady,
    TaskNotServed,
    UnknownModel,
)
from service.manifest import Manifest, Task

__all__ = [
    "Engine", "EngineOptions", "Generated", "KeyFrame", "ModelInfo", "ModelStats", "Motion", "Projected", "Steering",
    "Timings", "Track",
]  # fmt: skip

log = logging.getLogger(__name__)


class Engine:
    """See the module's docstring. Every accepted request ends exactly once: answered, failed, too late or cancelled."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._repository: Repository | None = None
        self._opened = False
        self._draining = False
        self._looking = Looking(options, lambda: self._open_repository().refresh())
        self._flights: Flights[generating.Drawn] = Flights()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Verify, load and warm every model; one that fails is kept in `refused`, and the others serve.

        Models serve as soon as each is loaded; `ready` waits for all.

        Raises:
            FileInvalid: the models' folder is not there.
        """
        if self._repository is not None:
            raise RuntimeError("the engine is open already")
        self._repository = Repository(self.options, _check)
        await self._repository.refresh()
        self._opened = True
        self._looking.start()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests with NotReady; accepted ones finish, or end with NotReady after the timeout."""
        self._draining = True
        await self._looking.stop()
        if self._repository is not None and not await self._repository.drain(timeout_s):
            log.warning("requests were cut off: not finished when the time to drain was over")

    async def close(self) -> None:
        """End what is left, stop the lanes and drop the sessions. The engine cannot be opened again."""
        self._draining = True
        await self._looking.stop()
        if self._repository is not None:
            await self._repository.close()

    async def generate(
        self,
        model: str,
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        latents: npt.ArrayLike | None = None,
        labels: Labels = None,
        truncation: float = 1.0,
        steering: Steering | None = None,
        priority: int = USUAL,
        timeout_s: float | None = None,
        lone: bool = False,
        share: Share | None = None,
    ) -> Generated:
        """Draw one image per seed, per drawn seed, per latent, or per mix.

        Args:
            model: `name` (its newest loaded version) or `name@version`.
            seeds: whole numbers, 0 <= seed < 2**32; the same seed is the same picture, alone or in any batch.
            count: so many seeds are drawn by the engine and returned.
            latents: [N, latent_dim] numbers given outright. Give one of seeds, count and latents, or none for one seed.
            labels: a name or an index for all images, or one for each; None lets each seed decide.
            truncation: 0 to 2; below 1 less variety and more typical pictures.
            steering: mixes, directions and the like: `Steering.of(directions={"sefa_1": 2.0})`.
            priority: 1 (first) to 9.
            timeout_s: seconds from now after which nobody wants the answer; None waits for as long as it takes.
            lone: the caller knows of no other request that is being answered: a short run then needs no other thread.
            share: who asks, where clients take turns; equal requests of different clients then run for each.

        Raises:
            UnknownModel, TaskNotServed, TooLarge, InvalidRequest: the request is wrong; `field` says where.
            Overloaded, NotReady, DeadlineExceeded: later or elsewhere it may pass.
            RunFailed: the model failed on these rows.
        """
        timeout_s = await self._awake(model, timeout_s)
        return await outcome_of(
            partial(
                self.start,
                model,
                seeds=seeds,
                count=count,
                latents=latents,
                labels=labels,
                truncation=truncation,
                steering=steering,
                priority=priority,
                timeout_s=timeout_s,
                lone=lone,
                share=share,
            )
        )

    def start(
        self,
        model: str,
        done: Callable[[Generated | Exception], None],
        *,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        latents: npt.ArrayLike | None = None,
        labels: Labels = None,
        truncation: float = 1.0,
        steering: Steering | None = None,
        priority: int = USUAL,
        timeout_s: float | None = None,
        lone: bool = False,
        share: Share | None = None,
    ) -> Callable[[], None]:
        """As `generate`, for whoever waits otherwise than by a coroutine: a task costs more than a small picture.

        Args:
            done: told the images or what went wrong, once, on the loop's thread; before this returns where a lone run
                stayed on it. Must not raise.

        Returns:
            What to call when nobody waits any more; `done` is not called after it.

        Raises:
            What is known at once of all that `generate` raises, and ModelAsleep where it would wait for the model;
            `done` is not called then.
        """
        loaded = self._serving(model, Task.GENERATE)
        _check_schedule(priority, timeout_s)
        rows = generating.prepare(loaded, seeds, count, latents, labels, truncation, self.options.max_images, steering)
        began_s = asyncio.get_running_loop().time()
        loaded.used_s = began_s
        deadline_s = None if timeout_s is None else began_s + timeout_s
        drawing = Drawing(loaded, rows, done, priority, began_s, deadline_s, lone, share)
        if rows.key is None:
            return drawing.begin(drawing.end)
        key = (loaded, rows.key) if share is None else (loaded, rows.key, share)
        return self._flights.run(key, priority, drawing.begin, drawing.end, deadline_s)

    async def translate(
        self,
        model: str,
        rgb: npt.NDArray[np.uint8],
        *,
        alpha: npt.NDArray[np.uint8] | None = None,
        mask: npt.NDArray[np.uint8] | None = None,
        priority: int = USUAL,
        timeout_s: float | None = None,
        share: Share | None = None,
    ) -> Painting:
        """Make one picture of another. It is run while the answer's bands are read: `await painting.whole()`.

        Args:
            model: `name` or `name@version`.
            rgb: [H, W, 3], sRGB; `alpha` [H, W].
            mask: [H, W], 128 and above where a repair model shall fill in; None takes the transparent places.
            priority, timeout_s, share: as for `generate`.

        Raises:
            As `generate`; ImageTooLarge where the model needs the whole picture at once. So do the bands.
        """
        schedule = _schedule(priority, await self._awake(model, timeout_s), share)
        loaded = self._serving(model, Task.TRANSLATE)
        picture = translating.Picture(rgb, alpha, mask)
        return await self._painted(loaded, translating.translate(loaded, picture, self._bounds, schedule))

    async def upscale(
        self,
        model: str,
        rgb: npt.NDArray[np.uint8],
        *,
        alpha: npt.NDArray[np.uint8] | None = None,
        scale: int | None = None,
        priority: int = USUAL,
        timeout_s: float | None = None,
        share: Share | None = None,
    ) -> Painting:
        """Enlarge a picture; see `translate`. A scale that is given must be the model's."""
        schedule = _schedule(priority, await self._awake(model, timeout_s), share)
        loaded = self._serving(model, Task.UPSCALE)
        return await self._painted(loaded, upscaling.upscale(loaded, rgb, alpha, scale, self._bounds, schedule))

    async def _painted(self, model: LoadedModel, begun: Coroutine[Any, Any, Painting]) -> Painting:
        """A painting that its model outlives, though another version takes the model's place meanwhile."""
        model.used_s = asyncio.get_running_loop().time()
        with model.in_use():
            painting = await begun
            painting.bands = model.until_drawn(painting.bands)
        return painting

    async def interpolate(
        self,
        model: str,
        keys: Sequence[KeyFrame],
        track: Track,
        *,
        priority: int = USUAL,
        timeout_s: float | None = None,
        share: Share | None = None,
    ) -> Motion:
        """Frames on a way through key frames. They are drawn while they are read: `async for batch in motion.batches`.

        Args:
            model: `name` or `name@version`.
            keys: at least 2: `KeyFrame.of(seed=1)`.
            track: how many frames, and how they go: `Track(frames=60)`.
            priority, timeout_s, share: as for `generate`.

        Raises:
            As `generate`. So do the batches.
        """
        schedule, options = _schedule(priority, await self._awake(model, timeout_s), share), self.options
        loaded = self._serving(model, Task.GENERATE)
        loaded.used_s = asyncio.get_running_loop().time()
        with loaded.in_use():
            most, pixels = options.max_motion_frames, options.max_result_pixels
            motion = await moving.move(loaded, keys, track, schedule, most, pixels)
            motion.batches = loaded.until_drawn(motion.batches)
        return motion

    async def project(
        self,
        model: str,
        rgb: npt.NDArray[np.uint8],
        *,
        alpha: npt.NDArray[np.uint8] | None = None,
        passes: int | None = None,
        label: int | str | None = None,
        priority: int = USUAL,
        timeout_s: float | None = None,
        share: Share | None = None,
    ) -> Projected:
        """Find a latent that draws a picture, by the model's encoder.

        Args:
            model: `name` or `name@version`, one with an encoder.
            rgb: [H, W, 3], sRGB; `alpha` [H, W]. Cropped about its centre to the model's shape, and resized.
            passes: of an encoder that takes several; None takes the usual number.
            label: of a conditional model.
            priority, timeout_s, share: as for `generate`.

        Raises:
            As `generate`; TaskNotServed where the model has no encoder.
        """
        schedule = _schedule(priority, await self._awake(model, timeout_s), share)
        loaded = self._serving(model, Task.GENERATE)
        loaded.used_s = asyncio.get_running_loop().time()
        encoder = projecting.encoder_of(loaded.manifest)
        if encoder is None:
            able = [other.manifest for other in self._open_repository().loaded]
            others = sorted({one.name for one in able if projecting.encoder_of(one) is not None})
            raise TaskNotServed(f"model: {model} has no encoder to project by", field="model", allowed=others)
        with loaded.in_use():
            return await projecting.project(loaded, encoder, rgb, alpha, passes, label, schedule)

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.options.tile_side, self.options.max_whole_pixels, self.options.max_result_pixels)

    async def load(self, name: str, version: int | None = None) -> ModelInfo:
        """Verify, warm and swap in one version, the newest on disk where none is named; reloads one that is loaded.

        Raises:
            UnknownModel: no such folder.
            PackageError: it was refused; what served before goes on serving.
        """
        return info_of(await self._open_repository().load(name, version))

    async def unload(self, name: str, version: int | None = None) -> None:
        """Stop serving `name` (every version, or one) or `name@version`; accepted requests finish.

        Raises:
            UnknownModel: it is not loaded.
        """
        await self._open_repository().unload(name, version)

    def models(self) -> list[ModelInfo]:
        """The loaded versions by name, the newest first."""
        return [] if self._repository is None else [info_of(model) for model in self._repository.loaded]

    def model(self, ref: str) -> ModelInfo:
        """One loaded version, by `name` (the newest) or `name@version`.

        Raises:
            UnknownModel: names what is loaded.
            NotReady: the engine is not open.
        """
        return info_of(self._open_repository().resolve(ref))

    async def wake(self, ref: str, timeout_s: float | None = None) -> None:
        """Load a version that sleeps; nothing where it does not. One that is refused is in `refused` then.

        Args:
            ref: as `ModelAsleep.ref` has it.

        Raises:
            DeadlineExceeded: it takes longer. It goes on loading, for the next who asks.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._open_repository().wake(ref)
        except TimeoutError:
            raise DeadlineExceeded(f"{ref}: not in memory before the deadline") from None

    async def _awake(self, model: str, timeout_s: float | None) -> float | None:
        """Wait until a model is in memory; what is left of the timeout. What else is wrong is told by who looks next.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        if self._draining or self._repository is None or not self._repository.asleep:
            return timeout_s
        _check_schedule(USUAL, timeout_s)
        loop = asyncio.get_running_loop()
        end_s = math.inf if timeout_s is None else loop.time() + timeout_s
        while True:  # it may be put to sleep again before its turn, and a version that is refused leaves an older one
            try:
                self._repository.resolve(model)
            except ModelAsleep as asleep:
                await self.wake(asleep.ref, None if timeout_s is None else max(0.0, end_s - loop.time()))
                continue
            except UnknownModel:
                pass
            return timeout_s if timeout_s is None else max(1e-3, end_s - loop.time())

    @property
    def asleep(self) -> list[str]:
        """`name@version` of those that are loaded when somebody asks for them."""
        return [] if self._repository is None else self._repository.asleep

    @property
    def refused(self) -> dict[str, str]:
        """`name@version`, or the folder's name -> why it is not served."""
        return {} if self._repository is None else self._repository.refused

    @property
    def ready(self) -> bool:
        """Every model was tried, at least one serves (asleep perhaps), and the engine is not draining."""
        loaded = self._repository is not None and bool(self._repository.loaded or self._repository.asleep)
        return self._opened and loaded and not self._draining

    def stats(self) -> dict[str, ModelStats]:
        """By `name@version`, of those that went lately their totals, too; cheap enough for every scrape."""
        return {} if self._repository is None else self._repository.stats()

    def serving_stats(self) -> dict[str, ModelStats]:
        """By `name@version`, of those that serve, since they were loaded: what tells how busy their lanes are."""
        return {} if self._repository is None else self._repository.serving_stats()

    def memory(self) -> MemoryStats:
        """What the process and its devices hold, and what idle models gave back; cheap enough for every scrape."""
        return memory_stats(()) if self._repository is None else self._repository.memory()

    def _open_repository(self) -> Repository:
        if self._repository is None:
            raise NotReady("the engine is not open", reason="loading")
        return self._repository

    def _serving(self, ref: str, task: Task) -> LoadedModel:
        """The loaded model, if it serves the task.

        Raises:
            NotReady, UnknownModel, TaskNotServed.
        """
        if self._draining:
            raise NotReady("shutting down", reason="draining")
        repository = self._open_repository()
        model = repository.resolve(ref)
        if task not in model.manifest.tasks:
            others = sorted({other.manifest.name for other in repository.loaded if task in other.manifest.tasks})
            served = " and ".join(model.manifest.tasks)
            raise TaskNotServed(f"model: {ref} serves {served}, not {task}", field="model", allowed=others)
        return model


def _check(manifest: Manifest) -> None:
    """Refuse a model that no pipeline can feed, when it is loaded and not at its first request."""
    generating.check(manifest)
    projecting.encoder_of(manifest)
    translating.check(manifest)
    upscaling.check(manifest)


def _schedule(priority: int, timeout_s: float | None, share: Share | None) -> Schedule:
    _check_schedule(priority, timeout_s)
    return Schedule(priority, None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s, share)


def _check_schedule(priority: int, timeout_s: float | None) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int) or not FIRST <= priority <= LAST:
        raise InvalidRequest(f"priority: {priority!r} is not a whole number from {FIRST} to {LAST}", field="priority")
    if timeout_s is not None and not (math.isfinite(timeout_s) and timeout_s > 0):
        raise InvalidRequest(f"timeout_s: {timeout_s!r} is not a number of seconds above 0", field="timeout_s")
