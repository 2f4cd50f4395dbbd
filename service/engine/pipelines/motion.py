"""Frames on a way through key frames: latents first, all of them; then images, in batches and in order.

In w (and w+, layer by layer) the way leads through what each key frame draws: its mix, styles, truncation and
directions. w is worked out once for each key frame. In z the frames' latents are mapped as any latent is. A frame is
the picture of its latent, and depends on nothing else; one that falls on a key frame is that key frame's picture.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from service.engine.batcher import Batcher
from service.engine.blending import METHODS, Method, path
from service.engine.entries import Answer
from service.engine.loaded import LoadedModel
from service.engine.pipelines import generate, styles
from service.engine.pipelines.painting import Pixels, Schedule, Tally, Turn, patiently
from service.engine.pipelines.rows import Label, Rows, Wiring, wiring_of
from service.engine.pipelines.steered import merged, z_of
from service.engine.session import Array
from service.engine.steering import Mix, Source, Steering
from service.engine.waiting import outcome_of
from service.errors import InvalidRequest, TooLarge

Floats = npt.NDArray[np.float32]
Styled = tuple[Pixels | None, Answer | None, Floats]

BATCH_FRAMES = 16
"""Frames in one run, at most: the first are sent while the others are drawn."""
KEYS_MOST = 64
SPARE_BATCHES = 1
"""In flight beyond one for each lane, so that a lane finds the next queued."""


@dataclass(frozen=True)
class KeyFrame:
    """One point of the way, and how it is drawn.

    Args:
        mix: the point, or several by weight.
        label: its class; None draws one from the seed.
        truncation: see `Engine.generate`.
        steering: what else; its own mixes and space are not looked at.
    """

    mix: Mix
    label: Label | None = None
    truncation: float = 1.0
    steering: Steering = field(default_factory=Steering)

    @classmethod
    def of(cls, seed: int, label: Label | None = None, truncation: float = 1.0, **steering: object) -> "KeyFrame":
        """A seed's; `steering` as `Steering.of` takes it."""
        return cls(((Source(seed), 1.0),), label, truncation, Steering.of(**steering))

    @property
    def whole(self) -> Steering:
        """Its steering, the mix included."""
        return replace(self.steering, mixes=(self.mix,), space="z")


@dataclass(frozen=True)
class Track:
    """What the frames shall be.

    Args:
        frames: how many, at least 2.
        method: see `blending.path`; None takes linear in w and spherical in z.
        space: z or w; None takes w where the model has it.
        closed: the last goes on to the first.
    """

    frames: int
    method: Method | None = None
    space: str | None = None
    closed: bool = False


@dataclass
class Motion:
    """Frames in the making. `batches` may be read once, and runs them; `tally` grows while it is.

    Attributes:
        latents: what each frame draws: z [frames, D], or styles [frames, layers, D].
        recipe: what else a frame takes to be drawn alone, in the words of the HTTP body.
        labels: the class of each frame, or its mix of classes, where these change on the way; else None.
        batches: uint8 [n, height, width, channels], n frames each, in order.
    """

    model: str
    frames: int
    height: int
    width: int
    channels: int
    method: Method
    space: str
    latents: Floats
    recipe: dict[str, object]
    batches: AsyncIterator[Pixels]
    tally: Tally = field(default_factory=Tally)
    labels: Sequence[Label | dict[str, float]] | None = None

    def alone(self, place: int) -> dict[str, object]:
        """What asks for one frame as a picture of its own, but for its latent, in the words of the HTTP body."""
        return self.recipe if self.labels is None else {**self.recipe, "label": self.labels[place]}

    async def whole(self) -> Pixels:
        """All frames, [frames, height, width, channels]."""
        return np.concatenate([batch async for batch in self.batches])


async def move(
    model: LoadedModel, keys: Sequence[KeyFrame], track: Track, schedule: Schedule, max_frames: int, max_pixels: int
) -> Motion:
    """Make the frames ready: their latents are known when this returns, and `batches` draws them.

    Raises:
        InvalidRequest, TooLarge: names the argument that is wrong.
        Overloaded, NotReady, DeadlineExceeded, RunFailed: the key frames could not be mapped.
    """
    wiring = wiring_of(model)
    height, width, channels = _shape(model)
    _check_number(len(keys), track.frames, max_frames, height * width, max_pixels)
    space, method = _ways(model, wiring, track)
    # Of all frames the noise is that of the first key frame: the others need not draw theirs.
    steerings = [keys[0].whole, *(replace(key.whole, noise="constant", noise_seed=None) for key in keys[1:])]
    rows = [_prepared(model, place, key, own) for place, (key, own) in enumerate(zip(keys, steerings, strict=True))]
    tally, labels = Tally(), None
    if wiring.styled is None:
        inputs = await _plain(wiring, rows, track, method)
        latents, batcher = inputs[wiring.latent], model.graphs[wiring.graph].batcher
        if wiring.label is not None and wiring.classes is not None:
            labels = _classes_of(model, inputs[wiring.label])

        def feed(start: int, stop: int) -> dict[str, Array]:
            return {name: array[start:stop] for name, array in inputs.items()}
    else:
        styled = wiring.styled
        noise = _noise(rows)
        if space == "w":
            found = await asyncio.gather(*(_styles_of(model, styled, row, schedule) for row in rows))
            centre = styled.mean_w if method == "spherical" else None
            steps = partial(path, np.concatenate(found), track.frames, method, closed=track.closed, centre=centre)
            latents = await asyncio.to_thread(steps)
        else:
            latents = await _through_z(model, styled, keys, rows, track, method, schedule)
        batcher = model.graphs[styled.space.synthesis].batcher

        def feed(start: int, stop: int) -> dict[str, Array]:
            own = None if noise is None else np.repeat(noise, stop - start, axis=0)
            return styles.fed_of(styled, latents[start:stop], own)

    batches = _batches(batcher, feed, track.frames, wiring.image, schedule, tally)
    recipe = _recipe(wiring, keys, rows)
    return Motion(
        model.ref, track.frames, height, width, channels, method, space, latents, recipe, batches, tally, labels
    )  # fmt: skip


def _prepared(model: LoadedModel, place: int, key: KeyFrame, steering: Steering) -> Rows:
    """One key frame's request; what is wrong with its point is wrong with the key frame."""
    try:
        return generate.prepare(model, None, None, None, key.label, key.truncation, 1, steering)
    except InvalidRequest as error:
        if error.field != "mix":
            raise
        raise InvalidRequest(f"keys[{place}]: {error.detail.removeprefix('mix: ')}", field="keys") from None


def _classes_of(model: LoadedModel, weights: Array) -> list[Label | dict[str, float]]:
    """The class of each row of weights [frames, classes] by name, or its mix."""
    spec = model.manifest.generate
    assert spec is not None and spec.labels is not None
    found: list[Label | dict[str, float]] = []
    for row in weights.tolist():
        told = {name: weight for name, weight in zip(spec.labels, row, strict=True) if weight}
        found.append(next(iter(told)) if list(told.values()) == [1.0] else told)
    return found


def _recipe(wiring: Wiring, keys: Sequence[KeyFrame], rows: Sequence[Rows]) -> dict[str, object]:
    """See `Motion`."""
    if wiring.styled is None:
        return {} if rows[0].labels[0] is None else {"label": rows[0].labels[0]}  # where all are of one class
    first, told = keys[0].steering, {"space": "w+"}
    if first.noise == "constant":
        return dict(told)
    seed = merged(keys[0].mix)[0][0].seed if first.noise_seed is None else first.noise_seed
    return {**told, "noise": first.noise, **({} if first.noise == "none" else {"noise_seed": seed})}


def _shape(model: LoadedModel) -> tuple[int, int, int]:
    """Of the images; generators' sizes are fixed."""
    wiring = wiring_of(model)
    graph = wiring.graph if wiring.styled is None else wiring.styled.space.synthesis
    tensor = next(one for one in model.manifest.graphs[graph].outputs if one.name == wiring.image)
    sizes = [size for size in tensor.shape[1:] if isinstance(size, int)]
    if len(sizes) != 3:
        raise InvalidRequest(f"model: {model.ref} has no fixed size to make frames of", field="model")
    return sizes[0], sizes[1], sizes[2]


def _check_number(keys: int, frames: int, max_frames: int, pixels: int, max_pixels: int) -> None:
    if not 2 <= keys <= KEYS_MOST:
        raise InvalidRequest(f"keys: {keys} key frames, must be 2 to {KEYS_MOST}", field="keys")
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 2:
        raise InvalidRequest(f"frames: {frames!r} is no whole number from 2", field="frames")
    if frames > max_frames:
        raise TooLarge(f"frames: asks for {frames}, at most {max_frames}", field="frames", allowed=[max_frames])
    if frames * pixels > max_pixels:
        most = max_pixels // pixels
        raise TooLarge(f"frames: {frames} of {pixels} pixels; at most {most}", field="frames", allowed=[most])


def _ways(model: LoadedModel, wiring: Wiring, track: Track) -> tuple[str, Method]:
    """The space and the method, settled."""
    known = ("z",) if wiring.styled is None else ("w", "z")
    space = known[0] if track.space is None else track.space
    if space not in known:
        detail = f"space: is {space!r}; frames of {model.ref} go through {' or '.join(known)}"
        raise InvalidRequest(detail, field="space", allowed=known)
    method: Method = ("linear" if space == "w" else "spherical") if track.method is None else track.method
    if method not in METHODS:
        raise InvalidRequest(f"method: must be one of {', '.join(METHODS)}", field="method", allowed=METHODS)
    return space, method


async def _plain(wiring: Wiring, rows: Sequence[Rows], track: Track, method: Method) -> dict[str, Array]:
    """The inputs of all frames of a model without styles."""
    keys = np.concatenate([row.inputs[wiring.latent] for row in rows])
    z = await asyncio.to_thread(partial(path, keys, track.frames, method, closed=track.closed, level=method == "cubic"))
    if wiring.label is None:
        return {wiring.latent: z}
    labels = np.concatenate([row.inputs[wiring.label] for row in rows])
    if wiring.classes is not None:  # weights go along with the frames
        return {wiring.latent: z, wiring.label: path(labels, track.frames, "linear", closed=track.closed)}
    _check_one_class(rows)
    return {wiring.latent: z, wiring.label: np.repeat(labels[:1], track.frames)}


def _check_one_class(rows: Sequence[Rows]) -> None:
    found = sorted({name for row in rows for name in row.labels if name is not None})
    if len(found) > 1:
        detail = f"label: the key frames are of the classes {', '.join(found)}; on this way all are of one, name it"
        raise InvalidRequest(detail, field="label", allowed=found)


def _noise(rows: Sequence[Rows]) -> Floats | None:
    """The first key frame's for all frames, [1, K]: noise that changed from frame to frame would flicker."""
    way = rows[0].way
    assert way is not None  # of a model with styles
    return way.noise


async def _styles_of(model: LoadedModel, styled: styles.Styles, row: Rows, schedule: Schedule) -> Floats:
    """What a request would draw, [N, layers, D]."""
    way = row.way
    assert way is not None  # of a model with styles

    def begin(done: Callable[[Styled | Exception], None]) -> Callable[[], None]:
        return styles.draw(
            model, styled, way, done, priority=schedule.priority, deadline_s=schedule.deadline_s, lone=False,
            drawn=False, share=schedule.share,
        )  # fmt: skip

    return (await outcome_of(begin))[2]


async def _through_z(
    model: LoadedModel, styled: styles.Styles, keys: Sequence[KeyFrame], rows: Sequence[Rows], track: Track,
    method: Method, schedule: Schedule,
) -> Floats:  # fmt: skip
    """Styles of frames whose way leads through z, [frames, layers, D]."""
    first, spec = keys[0], model.manifest.generate
    assert spec is not None  # it generates
    if any((key.truncation, key.steering.fields()) != (first.truncation, first.steering.fields()) for key in keys):
        detail = "space: in z all key frames share truncation, styles and directions; in w each may have its own"
        raise InvalidRequest(detail, field="space", allowed=["w"])
    _check_one_class(rows)
    points = []
    for key in keys:
        mix = merged(key.mix)
        if any(source.space != "z" for source, _ in mix):
            raise InvalidRequest("space: a key frame that is a latent in w has no z", field="space", allowed=["w"])
        if len(mix) > 1:
            detail = f"space: {model.ref} mixes points in w; a way through z goes through seeds and latents alone"
            raise InvalidRequest(detail, field="space", allowed=["w"])
        points.append(z_of(mix[0][0], spec, "keys"))
    steps = partial(path, np.stack(points), track.frames, method, closed=track.closed, level=method == "cubic")
    z = await asyncio.to_thread(steps)
    # The frames' noise is the first key frame's; here no frame needs a seed for it.
    steering = replace(first.steering, noise="constant", noise_seed=None)
    label = rows[0].labels[0]
    through = generate.prepare(model, None, None, z, label, first.truncation, len(z), steering)
    return await _styles_of(model, styled, through, schedule)


async def _batches(
    batcher: Batcher, feed: Callable[[int, int], dict[str, Array]], count: int, image: str, schedule: Schedule,
    tally: Tally,
) -> AsyncIterator[Pixels]:  # fmt: skip
    """Frames in order, few batches in flight: one of them at the request's own priority, the others last."""
    size = max(1, min(batcher.policy.max_batch, BATCH_FRAMES, count // 2))
    starts = iter(range(0, count, size))
    flight = batcher.stats().lanes + SPARE_BATCHES
    flying: deque[tuple[Turn, asyncio.Task[Answer]]] = deque()
    loop = asyncio.get_running_loop()
    try:
        while True:
            while len(flying) < flight and (start := next(starts, None)) is not None:
                rows, turn = feed(start, min(count, start + size)), Turn(batcher)
                flying.append((turn, asyncio.create_task(patiently(batcher, rows, turn, schedule, start == 0))))
            if not flying:
                return
            flying[0][0].come(schedule.priority)  # the others fill lanes that are idle
            _, task = flying.popleft()
            try:
                answer = await task
            except BaseException:
                task.cancel()
                raise
            tally.count(answer, loop.time())
            yield answer.outputs[image]
    finally:
        for _, task in flying:
            task.cancel()
        await asyncio.gather(*(task for _, task in flying), return_exceptions=True)
