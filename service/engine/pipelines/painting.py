"""A picture through a model that takes pictures: padded by reflection, cut into tiles, pasted into bands of rows.

Few tiles are in flight at a time, one of them at the request's own priority and the others last: a large picture goes
on as fast as one small request after another would, fills lanes that nobody else wants, and never stands in the way.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from service.engine.batcher import Batcher
from service.engine.entries import LAST, Answer, Done, Entry
from service.engine.fairness import Share
from service.engine.loaded import LoadedModel
from service.engine.session import Arrays
from service.engine.tiling import Axis, Geometry, Span, spans
from service.engine.waiting import outcome_of
from service.errors import DeadlineExceeded, GraphMismatch, ImageTooLarge, Overloaded
from service.manifest import GraphSpec, Manifest, TensorSpec

Pixels = npt.NDArray[np.uint8]

LEAST_SIDE = 32
"""Pictures are padded to this where the reach is unknown: mirrors and strides within the graph need some room."""
SPARE_TILES = 1
"""Tiles in flight beyond one for each lane, so that a lane finds the next one queued while the last is being pasted.
More would ride together and take as many times the memory, without being faster."""
REACHES = 5
"""A window is at least so many times as wide as the graph reaches: it then spends two fifths on each axis on seams."""
RETRY_S = 0.05
"""Seconds, at least, before a tile that found the queue full comes again."""


@dataclass
class Tally:
    """Where the time went, over all tiles so far. In seconds; see `Answer`."""

    queue_s: float = 0.0
    run_s: float = 0.0
    batch_rows: int = 0
    runs: int = 0
    began_s: float | None = None

    def count(self, answer: Answer, now_s: float) -> None:
        """Note one tile."""
        if self.began_s is None:
            self.queue_s, self.began_s = answer.queue_s, now_s - answer.run_s
        self.run_s = now_s - self.began_s
        self.batch_rows = max(self.batch_rows, answer.batch_rows)
        self.runs += answer.runs


@dataclass
class Source:
    """What windows are cut from: planes of one height and width, by the graph's input."""

    planes: dict[str, Pixels]
    height: int
    width: int

    def window(self, row: Span, column: Span) -> dict[str, Pixels]:
        """A window as one row of each input; beyond the border the picture is mirrored."""
        rows = mirrored(row.start, row.stop, self.height)
        columns = mirrored(column.start, column.stop, self.width)
        left, right = int(columns.min()), int(columns.max()) + 1
        inside = row.stop <= self.height and column.stop <= self.width
        cut = {}
        for name, plane in self.planes.items():
            part = plane[row.start : row.stop, left:right] if inside else plane[:, left:right].take(rows, axis=0)
            part = part if inside else part.take(columns - left, axis=1)
            cut[name] = np.ascontiguousarray(part)[None]  # copies like these let other threads run; indexing does not
        return cut


@dataclass
class Painting:
    """A picture in the making. `bands` may be read once; `tally` grows while it is.

    Attributes:
        height, width, channels: of the result.
        tiles: how many it takes.
        resized: (height, width) that the input was resized to for a model of fixed size, else None.
    """

    model: str
    height: int
    width: int
    channels: int
    tiles: int
    resized: tuple[int, int] | None
    bands: AsyncIterator[Pixels]
    tally: Tally = field(default_factory=Tally)

    async def whole(self) -> Pixels:
        """The finished picture, [height, width, channels]."""
        out: Pixels | None = None
        top = 0
        async for band in self.bands:
            if len(band) == self.height:
                return band
            if out is None:
                out = np.empty((self.height, self.width, self.channels), np.uint8)
            await asyncio.to_thread(np.copyto, out[top : top + len(band)], band)
            top += len(band)
        assert out is not None  # a picture has at least one band
        return out


@dataclass(frozen=True)
class Schedule:
    """When a request's tiles run. `deadline_s` in the event loop's time; `share`: see `Batcher.submit`."""

    priority: int
    deadline_s: float | None
    share: Share | None = None


@dataclass(frozen=True)
class Bounds:
    """What the deployment allows: the tiles' side, pixels of a picture run at once, pixels of a result."""

    tile_side: int
    max_whole_pixels: int
    max_result_pixels: int


Finish = Callable[[Pixels, int], Pixels]
"""From a band of the model's answer and its first row to a band of the result, such as one with transparency."""


def picture_graph(manifest: Manifest, task: str) -> tuple[str, GraphSpec]:
    """The graph from a picture to a picture.

    Raises:
        GraphMismatch: there is none, or more than one.
    """
    found = [
        (name, graph)
        for name, graph in manifest.graphs.items()
        if [one.kind for one in graph.inputs].count("image") == 1 == [one.kind for one in graph.outputs].count("image")
    ]
    if len(found) != 1:
        raise GraphMismatch(f"{len(found)} graphs take and give a picture, {task} needs one", model=manifest.ref)
    return found[0]


def tensor_of(tensors: Iterable[TensorSpec], kind: str) -> TensorSpec:
    """The tensor of a kind; the pipelines' checks have found it at load."""
    return next(tensor for tensor in tensors if tensor.kind == kind)


def channels_of(output: TensorSpec, alpha: Pixels | None) -> int:
    """The result's channels."""
    channels = output.shape[3]
    assert isinstance(channels, int)  # checked at load
    return channels if alpha is None else 4


def geometry_of(model: LoadedModel, name: str) -> Geometry:
    """How far the graph of that name reaches, as its file said when it was loaded."""
    reach = model.graphs[name].reach
    assert reach is not None  # it takes and gives pictures
    return reach


def mirrored(start: int, stop: int, length: int) -> npt.NDArray[np.int64]:
    """Places start to stop of an axis of that length, mirrored at its ends without repeating the border."""
    if length == 1:
        return np.zeros(stop - start, np.int64)
    period = 2 * (length - 1)
    places = np.arange(start, stop) % period
    return np.where(places < length, places, period - places)


def lay_out(length: int, side: int, multiple: int, bounds: Axis, reach: Geometry) -> list[Span]:
    """The tiles of one axis, its mirrored padding included; one tile where the graph needs the whole picture.

    Args:
        side: of the windows that memory and waiting times are good with; `REACHES` may widen it.
    """
    least = 1
    if reach.whole:
        least = LEAST_SIDE
    elif reach.mirrors:
        # Others are not brought to their reach: a small picture would stand beside its own mirror image.
        least = max(bounds.before, bounds.after) + 1
    step = int(np.lcm(multiple, bounds.align))
    padded = -(-max(length, least) // step) * step
    if reach.whole:
        return [Span(0, padded, 0, padded)]
    wished = max(side, REACHES * max(bounds.before, bounds.after))
    return spans(padded, wished, Axis(bounds.before, bounds.after, step, bounds.scale))


def check_whole(model: LoadedModel, reach: Geometry, height: int, width: int, limit: int) -> None:
    """Refuse a picture that would need tiles where tiles would show.

    Raises:
        ImageTooLarge: with the reason.
    """
    if reach.whole and height * width > limit:
        detail = f"image: {height * width} pixels; {model.ref} takes {limit} at most, for it {reach.whole}"
        raise ImageTooLarge(detail, field="image")


async def paint(
    batcher: Batcher,
    source: Source,
    tiles: tuple[list[Span], list[Span]],
    output: TensorSpec,
    scale: int,
    schedule: Schedule,
    tally: Tally,
    finish: Finish,
) -> AsyncIterator[Pixels]:
    """Bands of the result from top to bottom, [rows, width * scale, C]."""
    rows, columns = tiles
    band: Pixels | None = None
    async for row, column, answer in _sweep(batcher, source, rows, columns, schedule, tally):
        tile = answer.outputs[output.name][0]
        top, bottom = row.core_start * scale, min(row.core_stop, source.height) * scale
        if top >= bottom:
            continue  # padding alone
        if len(columns) == 1 and row.start == row.core_start:
            band = tile[: bottom - top, : source.width * scale]
        else:
            if band is None:
                band = np.empty((bottom - top, source.width * scale, tile.shape[2]), np.uint8)
            await asyncio.to_thread(_paste, band, tile, row, column, scale)
        if column is columns[-1]:
            yield await asyncio.to_thread(finish, band, top)
            band = None


def _paste(band: Pixels, tile: Pixels, row: Span, column: Span, scale: int) -> None:
    """A tile's core into its place."""
    y, x = (row.core_start - row.start) * scale, (column.core_start - column.start) * scale
    left = column.core_start * scale
    right = min(column.core_stop * scale, band.shape[1])
    if left < right:
        band[:, left:right] = tile[y : y + len(band), x : x + right - left]


async def _sweep(
    batcher: Batcher, source: Source, rows: list[Span], columns: list[Span], schedule: Schedule, tally: Tally
) -> AsyncIterator[tuple[Span, Span, Answer]]:
    """All tiles in reading order, few in flight."""
    loop = asyncio.get_running_loop()
    places = iter([(row, column) for row in rows for column in columns])
    flight = batcher.stats().lanes + SPARE_TILES
    flying: deque[tuple[Span, Span, Turn, asyncio.Task[Answer]]] = deque()
    try:
        while True:
            while len(flying) < flight and (place := next(places, None)) is not None:
                first, turn = tally.began_s is None and not flying, Turn(batcher)
                job = _tile(batcher, partial(source.window, *place), turn, schedule, first)
                flying.append((*place, turn, asyncio.create_task(job)))
            if not flying:
                return
            flying[0][2].come(schedule.priority)  # the others fill lanes that are idle
            row, column, _, task = flying.popleft()
            try:
                answer = await task
            except BaseException:
                task.cancel()
                raise
            tally.count(answer, loop.time())
            yield row, column, answer
    finally:
        for *_, task in flying:
            task.cancel()
        await asyncio.gather(*(task for *_, task in flying), return_exceptions=True)


async def _tile(
    batcher: Batcher, cut: Callable[[], dict[str, Pixels]], turn: "Turn", schedule: Schedule, first: bool
) -> Answer:
    inputs = await asyncio.to_thread(cut)
    return await patiently(batcher, inputs, turn, schedule, first)


class Turn:
    """When a part of a large request runs: last, where lanes are idle, until it is its turn.

    One part at a time is waited for, and it must not stand behind other people's requests for ever.
    """

    def __init__(self, batcher: Batcher) -> None:
        self.priority = LAST
        self._batcher = batcher
        self._entry: Entry | None = None

    def come(self, priority: int) -> None:
        """From now on it goes as any request of this priority."""
        self.priority = priority
        if self._entry is not None:
            self._batcher.hasten(self._entry, priority)

    def begin(self, inputs: Arrays, schedule: Schedule, done: Done) -> Callable[[], None]:
        """Queue it; see `outcome_of`."""
        self._entry = self._batcher.enqueue(
            inputs, done, priority=self.priority, deadline_s=schedule.deadline_s, share=schedule.share
        )
        return partial(self._batcher.withdraw, self._entry)


async def patiently(batcher: Batcher, inputs: Arrays, turn: Turn, schedule: Schedule, first: bool) -> Answer:
    """Rows of a large request: its first may be refused; once it has begun, the others wait until they are let in."""
    loop, deadline_s = asyncio.get_running_loop(), schedule.deadline_s
    while True:
        try:
            return await outcome_of(partial(turn.begin, inputs, schedule))
        except Overloaded as error:
            if first:
                raise
            wait_s = max(RETRY_S, error.retry_after_s or 0.0)
            if deadline_s is not None and loop.time() + wait_s >= deadline_s:
                raise DeadlineExceeded(f"{batcher.name}: not finished before the deadline") from None
            await asyncio.sleep(wait_s)
