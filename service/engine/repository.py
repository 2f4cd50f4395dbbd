"""The models' folder: scan, verify, load, resolve, swap, unload.

`<root>/<name>/<version>/`. The newest `versions_kept` versions that pass are served; `name` means the newest of them,
`name@2` that one. A model that fails is refused by name and the others serve; what served before goes on serving.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from service.engine.batcher import Batcher
from service.engine.idle import IdleLooks, shrink
from service.engine.loading import Prepared, prepare
from service.engine.memory import MemoryStats, memory_stats, trim
from service.engine.options import EngineOptions
from service.engine.profile import Plan
from service.engine.recovery import RecoveringSession
from service.engine.session import Array
from service.errors import FileInvalid, GanymedeError, UnknownModel
from service.manifest import NAME_PATTERN, GraphSpec, Manifest

log = logging.getLogger(__name__)

RETIRE_S = 30.0
"""Seconds that a version which was swapped out may take to finish its accepted requests."""

Fingerprint = tuple[tuple[str, int, int], ...]
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Found:
    """A version's folder as it lies there, unread. `fingerprint`: names, sizes and times of its files."""

    name: str
    version: int
    folder: Path
    fingerprint: Fingerprint

    @property
    def ref(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, eq=False)
class LoadedGraph:
    """One graph that is served. `row`: one recorded row of each input, for runs that nobody waits for."""

    spec: GraphSpec
    plan: Plan
    batcher: Batcher
    sessions: Sequence[RecoveringSession]
    why: tuple[str, ...]
    row: Mapping[str, Array]

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
    told: Any = None
    """What the engine tells of it, until that changes."""
    wiring: Any = None
    """Which of its tensors a pipeline feeds and reads."""

    @cached_property
    def ref(self) -> str:
        """`name@version`."""
        return self.manifest.ref


def scan(root: Path) -> tuple[list[Found], dict[str, str]]:
    """The versions' folders under root, and the folders that cannot be one, with the reason.

    Files beside the folders and names that begin with `.` or `_` or end in `.tmp` are passed over: those are still
    being written, or not ours.

    Raises:
        FileInvalid: root is not a folder.
    """
    if not root.is_dir():
        raise FileInvalid("is not a folder", model=str(root))
    found: list[Found] = []
    faults: dict[str, str] = {}
    for model in _folders(root):
        if not re.match(NAME_PATTERN, model.name):
            faults[model.name] = "a model's folder is named in lower-case letters, digits and hyphens"
            continue
        for folder in _folders(model):
            if _VERSION.fullmatch(folder.name):
                found.append(Found(model.name, int(folder.name), folder, _fingerprint(folder)))
            else:
                faults[f"{model.name}/{folder.name}"] = "a version's folder is named by a whole number from 1"
    return sorted(found, key=lambda one: (one.name, -one.version)), faults


def _named(name: str, version: int | None) -> tuple[str, int | None]:
    """A name and a version, however they were given.

    Raises:
        UnknownModel: what stands after the `@` is no version, or not the one that was given.
    """
    name, pinned, own = name.partition("@")
    if not pinned:
        return name, version
    if not name or not _VERSION.fullmatch(own) or version not in (None, int(own)):
        raise UnknownModel(f"model: {name}@{own} is no version of a model, such as {name or 'name'}@1", field="model")
    return name, int(own)


def _folders(parent: Path) -> list[Path]:
    try:
        entries = sorted(parent.iterdir())
    except OSError:  # gone since it was listed
        return []
    return [
        path for path in entries if not path.name.startswith((".", "_")) and path.suffix != ".tmp" and path.is_dir()
    ]


def _fingerprint(folder: Path) -> Fingerprint:
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:  # changes while we look: the next look differs
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


class Repository:
    """The loaded models. Made and used on one event loop; the heavy part of loading runs in a thread.

    Args:
        options: see `EngineOptions`.
        check: raises PackageError where a manifest asks for what no pipeline serves.
    """

    def __init__(self, options: EngineOptions, check: Callable[[Manifest], None]) -> None:
        self._options = options
        self._check = check
        self._loaded: dict[str, LoadedModel] = {}
        self._resolved: dict[str, LoadedModel] = {}  # what names meant since a model last came or went
        self._seen: dict[str, Fingerprint] = {}
        self._failed: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        self._busy = asyncio.Lock()
        self._retiring: dict[asyncio.Task[None], LoadedModel] = {}
        self._missing = False
        self._shrinking: asyncio.Task[None] | None = None
        self._shrinks = 0
        self._given_back = 0

    @property
    def loaded(self) -> list[LoadedModel]:
        """By name, the newest version first."""
        return sorted(self._loaded.values(), key=lambda model: (model.manifest.name, -model.manifest.version))

    @property
    def refused(self) -> dict[str, str]:
        """Folder or `name@version` -> what is wrong with it."""
        return {**self._faults, **self._failed}

    def resolve(self, ref: str) -> LoadedModel:
        """The model of `name` (its newest loaded version) or `name@version`.

        Raises:
            UnknownModel: names what is loaded.
        """
        known = self._resolved.get(ref)
        if known is not None:
            return known
        model = self._resolved[ref] = self._resolve(ref)
        return model

    def _resolve(self, ref: str) -> LoadedModel:
        name, pinned, version = ref.partition("@")
        versions = [model for model in self.loaded if model.manifest.name == name]
        if not versions:
            names = sorted({model.manifest.name for model in self._loaded.values()})
            raise UnknownModel(f"model: {name or ref!r} is not loaded", field="model", allowed=names)
        if not pinned:
            return versions[0]
        for model in versions:
            if str(model.manifest.version) == version:
                return model
        raise UnknownModel(
            f"model: {ref!r} is not loaded", field="model", allowed=[model.ref for model in reversed(versions)]
        )

    async def refresh(self) -> list[str]:
        """Load what is new or has changed, newest versions first, as far as versions are kept.

        Returns:
            What was loaded, as `name@version`.

        Raises:
            FileInvalid: the models' folder is not there. Said once: until it is back, later looks find nothing new.
        """
        async with self._busy:
            try:
                found, self._faults = await asyncio.to_thread(scan, self._options.models)
            except FileInvalid:
                if self._missing:
                    return []
                self._missing = True
                raise
            if self._missing:
                self._missing = False
                log.info("the models' folder is back: %s", self._options.models)
            if self._shrinking is None and self._options.shrink_after_s is not None:
                self._shrinking = asyncio.create_task(self._shrink_idle(self._options.shrink_after_s))
            present = {one.ref for one in found}
            self._failed = {ref: reason for ref, reason in self._failed.items() if ref in present}
            loaded = []
            for one in found:
                newer = [
                    model
                    for model in self._loaded.values()
                    if model.manifest.name == one.name and model.manifest.version > one.version
                ]
                if self._seen.get(one.ref) == one.fingerprint or len(newer) >= self._options.versions_kept:
                    continue
                try:
                    await self._load(one)
                except GanymedeError:
                    continue  # kept in `refused`; the others go on
                loaded.append(one.ref)
            if loaded:
                await asyncio.to_thread(trim)  # what reading and measuring took is free again
            return loaded

    async def load(self, name: str, version: int | None = None) -> LoadedModel:
        """Load one version now, or load it anew; the newest on disk where none is named.

        Args:
            name: `name`, or `name@version` in place of the second argument.

        Raises:
            UnknownModel: no such folder.
            PackageError: it was refused; what served before goes on serving.
        """
        name, version = _named(name, version)
        async with self._busy:
            found, self._faults = await asyncio.to_thread(scan, self._options.models)
            versions = [one for one in found if one.name == name]
            if not versions:
                names = sorted({one.name for one in found})
                raise UnknownModel(f"model: there is no folder {name!r}", field="model", allowed=names)
            for one in versions:
                if version is None or one.version == version:
                    return await self._load(one)
            refs = [one.version for one in reversed(versions)]
            raise UnknownModel(f"version: {name!r} has no version {version}", field="version", allowed=refs)

    async def unload(self, name: str, version: int | None = None) -> None:
        """Stop serving every version of a model, or one of them; accepted requests finish. It stays so until `load` or
        a new version.

        Args:
            name: `name`, or `name@version` in place of the second argument.

        Raises:
            UnknownModel: it is not loaded.
        """
        name, version = _named(name, version)
        async with self._busy:
            self.resolve(name if version is None else f"{name}@{version}")
            for model in self.loaded:
                if model.manifest.name == name and version in (None, model.manifest.version):
                    self._retire(self._loaded.pop(model.ref))

    def memory(self) -> MemoryStats:
        """What the process and its GPUs hold, and what idle models gave back."""
        used = {
            number
            for model in self._loaded.values()
            for graph in model.graphs.values()
            if set(graph.providers) & {"cuda", "tensorrt"}
            for number in graph.plan.devices
        }
        return memory_stats(sorted(used), self._shrinks, self._given_back)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and let the accepted ones finish; whether all did in time."""
        models = [*self._loaded.values(), *self._retiring.values()]
        for model in models:
            model.state = "draining"
        batchers = [graph.batcher for model in models for graph in model.graphs.values()]
        return all(await asyncio.gather(*(batcher.drain(timeout_s) for batcher in batchers)))

    async def close(self) -> None:
        """End everything; sessions are dropped."""
        if self._shrinking is not None:
            self._shrinking.cancel()
            await asyncio.wait([self._shrinking])
        async with self._busy:
            models, self._loaded = list(self._loaded.values()), {}
            self._resolved.clear()
            batchers = [graph.batcher for model in models for graph in model.graphs.values()]
            await asyncio.gather(*(batcher.close() for batcher in batchers))
            await asyncio.gather(*self._retiring)
            self._seen.clear()

    async def _load(self, one: Found) -> LoadedModel:
        self._seen[one.ref] = one.fingerprint
        try:
            prepared = await prepare(one.folder, self._options, self._check)
        except Exception as error:
            detail = error.detail if isinstance(error, GanymedeError) else f"{type(error).__name__}: {error}"
            self._failed[one.ref] = detail.removeprefix(f"{one.ref}: ")
            log.error("refused %s: %s", one.ref, self._failed[one.ref], exc_info=not isinstance(error, GanymedeError))
            if isinstance(error, GanymedeError):
                raise
            raise FileInvalid(f"could not be loaded: {type(error).__name__}: {error}", model=one.ref) from error
        self._failed.pop(one.ref, None)
        model = LoadedModel(prepared.manifest, one.folder, self._batchers(prepared), arrays=prepared.arrays)
        previous = self._loaded.get(one.ref)
        self._loaded[one.ref] = model  # from here on new requests get it
        self._resolved.clear()
        if previous is not None:
            self._retire(previous)
        self._retire_oldest(one)
        return model

    def _batchers(self, prepared: Prepared) -> dict[str, LoadedGraph]:
        graphs = {}
        for name, graph in prepared.graphs.items():
            plan, sessions = graph.plan, graph.sessions
            batcher = Batcher(
                sessions,
                plan.policy,
                max_queue_rows=self._options.max_queue_rows,
                row_s=plan.row_s,
                run_s=plan.run_s,
                run_timeout_s=self._options.run_timeout_s,
                lone_s=graph.lone_s,
                name=prepared.manifest.ref,
            )
            spec = prepared.manifest.graphs[name]
            graphs[name] = LoadedGraph(spec, plan, batcher, sessions, graph.why, graph.row)
        return graphs

    async def _shrink_idle(self, after_s: float) -> None:
        """Give back the memory of models that nobody asks for, until cancelled."""
        looks: IdleLooks[LoadedGraph] = IdleLooks(after_s)
        while True:
            await asyncio.sleep(min(1.0, after_s / 2))
            graphs = {graph: graph.batcher.stats() for model in self.loaded for graph in model.graphs.values()}
            for graph in looks.due(graphs, time.monotonic()):
                given_back = await asyncio.to_thread(shrink, graph.sessions, graph.row)
                if given_back is not None:
                    self._shrinks += 1
                    self._given_back += given_back

    def _retire_oldest(self, loaded: Found) -> None:
        """Keep the newest versions, and the one that was just asked for."""
        versions = [model for model in self.loaded if model.manifest.name == loaded.name]
        for model in versions[self._options.versions_kept :]:
            if model.ref != loaded.ref:
                self._retire(self._loaded.pop(model.ref))

    def _retire(self, model: LoadedModel) -> None:
        self._resolved.clear()
        model.state = "draining"
        task = asyncio.create_task(_retire(model))
        self._retiring[task] = model
        task.add_done_callback(lambda done: self._retiring.pop(done, None))


async def _retire(model: LoadedModel) -> None:
    """Let a version finish what it accepted, then drop its sessions."""
    for graph in model.graphs.values():
        await graph.batcher.drain(RETIRE_S)
        await graph.batcher.close()
    log.info("retired %s", model.ref)
