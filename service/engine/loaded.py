"""One version that is served: its graphs, who uses it, and how it ends when another takes its place."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakSet

from service.engine.batcher import Batcher
from service.engine.memory import trim
from service.engine.profile import Plan
from service.engine.recovery import RecoveringSession
from service.engine.session import Array
from service.engine.tiling import Geometry
from service.manifest import GraphSpec, Manifest

log = logging.getLogger(__name__)

T = TypeVar("T")

RETIRE_S = 60.0
"""Seconds that a version which was swapped out may take to finish its accepted requests: twice a request's deadline,
where nobody chose another. What is left then ends with NotReady."""
LOOK_S = 0.01
"""Seconds between looks whether it has finished."""


@dataclass(frozen=True, eq=False)
class LoadedGraph:
    """One graph that is served.

    `row`: one recorded row of each input, for runs that nobody waits for. `reach`: of one from pictures to a picture.
    """

    spec: GraphSpec
    plan: Plan
    batcher: Batcher
    sessions: Sequence[RecoveringSession]
    why: tuple[str, ...]
    row: Mapping[str, Array]
    reach: Geometry | None = None

    @property
    def providers(self) -> tuple[str, ...]:
        """Where its sessions run now: lack of memory may have moved them to the CPU."""
        return tuple(dict.fromkeys(session.provider for session in self.sessions))

    @property
    def notes(self) -> tuple[str, ...]:
        """Why no better provider was obtained, and what was done for lack of memory."""
        return tuple(dict.fromkeys([*self.why, *(note for session in self.sessions for note in session.notes)]))


@dataclass(eq=False)
class LoadedModel:
    """One version that is served."""

    manifest: Manifest
    folder: Path
    graphs: Mapping[str, LoadedGraph]
    loaded_at: float = field(default_factory=time.time)
    state: Literal["serving", "draining"] = "serving"
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """Model-wide arrays, as the folder holds them."""
    weight_bytes: int = 0
    """What its graphs' files hold, once for each session: about what its weights take in memory."""
    used_s: float = field(default_factory=time.monotonic)
    """When it was last asked for."""
    told: Any = None
    """What the engine tells of it, until that changes."""
    wiring: Any = None
    """Which of its tensors a pipeline feeds and reads."""
    users: int = 0
    """Calls that will still queue rows."""
    works: "WeakSet[_Work]" = field(default_factory=WeakSet)
    """Pictures in the making, which queue rows as they are read; one that is never read is gone when it is dropped."""

    @cached_property
    def ref(self) -> str:
        """`name@version`."""
        return self.manifest.ref

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """What is begun within goes on here, though another version takes this one's place meanwhile."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    def until_drawn(self, bands: AsyncIterator[T]) -> AsyncIterator[T]:
        """The same bands; the model is in use until they are at their end, fail or are dropped."""
        work = _Work()
        self.works.add(work)
        return _worked(bands, work, self.works)

    @property
    def busy(self) -> bool:
        """Whether anything that it accepted is unfinished."""
        return bool(self.users or self.works) or any(not graph.batcher.idle for graph in self.graphs.values())


class _Work:
    """A picture in the making."""

    __slots__ = ("__weakref__",)


async def _worked(bands: AsyncIterator[T], work: _Work, works: "WeakSet[_Work]") -> AsyncGenerator[T, None]:
    try:
        async with aclosing(bands):  # type: ignore[type-var]
            async for band in bands:
                yield band
    finally:
        works.discard(work)


async def settled(models: Sequence[LoadedModel], timeout_s: float) -> None:
    """Wait until none has anything unfinished, or the time is up."""
    end_s = time.monotonic() + timeout_s
    while any(model.busy for model in models) and time.monotonic() < end_s:  # noqa: ASYNC110 - a rare and slow wait
        await asyncio.sleep(LOOK_S)


async def retire(model: LoadedModel) -> None:
    """Let a version that nobody finds any more finish what it accepted, then give back its memory.

    It goes on accepting meanwhile: of a large picture the next tiles, of two equal requests the one that waited for the
    other, come only now.
    """
    await settled([model], RETIRE_S)
    for graph in model.graphs.values():
        await graph.batcher.close()
    graphs, model.graphs = list(model.graphs.values()), {}
    await asyncio.to_thread(_let_go, graphs)
    log.info("retired %s", model.ref)


def _let_go(graphs: list[LoadedGraph]) -> None:
    """Drop the sessions, which takes milliseconds, and hand what they held to the system."""
    graphs.clear()
    trim()
