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
from functools import partial
from pathlib import Path
from typing import Literal

from service.engine.batcher import Batcher
from service.engine.options import EngineOptions
from service.engine.profile import Plan, choose_plan
from service.engine.recovery import RecoveringSession
from service.engine.session import OrtSession, check_golden
from service.errors import FileInvalid, GanymedeError, UnknownModel
from service.manifest import NAME_PATTERN, GraphSpec, Manifest
from service.package import read_golden, verify_package

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


@dataclass(frozen=True)
class LoadedGraph:
    """One graph that is served."""

    spec: GraphSpec
    plan: Plan
    batcher: Batcher
    sessions: Sequence[RecoveringSession]
    why: tuple[str, ...]

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

    @property
    def ref(self) -> str:
        """`name@version`."""
        return self.manifest.ref


@dataclass(frozen=True)
class _Prepared:
    """A version that passed every check, before it has lanes."""

    manifest: Manifest
    graphs: dict[str, tuple[Plan, list[RecoveringSession], tuple[str, ...]]]


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
        self._seen: dict[str, Fingerprint] = {}
        self._failed: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        self._busy = asyncio.Lock()
        self._retiring: dict[asyncio.Task[None], LoadedModel] = {}

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
        name, pinned, version = ref.partition("@")
        versions = [model for model in self.loaded if model.manifest.name == name]
        if not versions:
            names = sorted({model.manifest.name for model in self._loaded.values()})
            raise UnknownModel(f"model: {name!r} is not loaded", field="model", allowed=names)
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
            FileInvalid: the models' folder is not there.
        """
        async with self._busy:
            found, self._faults = await asyncio.to_thread(scan, self._options.models)
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
            return loaded

    async def load(self, name: str, version: int | None) -> LoadedModel:
        """Load one version now, or load it anew; the newest on disk where none is named.

        Raises:
            UnknownModel: no such folder.
            PackageError: it was refused; what served before goes on serving.
        """
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

    async def unload(self, name: str) -> None:
        """Stop serving every version of a model; accepted requests finish. It stays so until `load` or a new version.

        Raises:
            UnknownModel: it is not loaded.
        """
        async with self._busy:
            self.resolve(name)
            for model in self.loaded:
                if model.manifest.name == name.partition("@")[0] and name in (model.manifest.name, model.ref):
                    self._retire(self._loaded.pop(model.ref))

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and let the accepted ones finish; whether all did in time."""
        models = [*self._loaded.values(), *self._retiring.values()]
        for model in models:
            model.state = "draining"
        batchers = [graph.batcher for model in models for graph in model.graphs.values()]
        return all(await asyncio.gather(*(batcher.drain(timeout_s) for batcher in batchers)))

    async def close(self) -> None:
        """End everything; sessions are dropped."""
        async with self._busy:
            models, self._loaded = list(self._loaded.values()), {}
            batchers = [graph.batcher for model in models for graph in model.graphs.values()]
            await asyncio.gather(*(batcher.close() for batcher in batchers))
            await asyncio.gather(*self._retiring)
            self._seen.clear()

    async def _load(self, one: Found) -> LoadedModel:
        self._seen[one.ref] = one.fingerprint
        try:
            prepared = await asyncio.to_thread(_prepare, one.folder, self._options, self._check)
        except Exception as error:
            self._failed[one.ref] = (
                error.detail if isinstance(error, GanymedeError) else f"{type(error).__name__}: {error}"
            )
            log.error("refused %s: %s", one.ref, self._failed[one.ref], exc_info=not isinstance(error, GanymedeError))
            if isinstance(error, GanymedeError):
                raise
            raise FileInvalid(f"could not be loaded: {type(error).__name__}: {error}", model=one.ref) from error
        self._failed.pop(one.ref, None)
        model = LoadedModel(prepared.manifest, one.folder, self._batchers(prepared))
        previous = self._loaded.get(one.ref)
        self._loaded[one.ref] = model  # from here on new requests get it
        if previous is not None:
            self._retire(previous)
        self._retire_oldest(one)
        return model

    def _batchers(self, prepared: _Prepared) -> dict[str, LoadedGraph]:
        graphs = {}
        for name, (plan, sessions, why) in prepared.graphs.items():
            batcher = Batcher(
                sessions,
                plan.policy,
                max_queue_rows=self._options.max_queue_rows,
                row_s=plan.row_s,
                run_s=plan.run_s,
                run_timeout_s=self._options.run_timeout_s,
                name=prepared.manifest.ref,
            )
            graphs[name] = LoadedGraph(prepared.manifest.graphs[name], plan, batcher, sessions, why)
        return graphs

    def _retire_oldest(self, loaded: Found) -> None:
        """Keep the newest versions, and the one that was just asked for."""
        versions = [model for model in self.loaded if model.manifest.name == loaded.name]
        for model in versions[self._options.versions_kept :]:
            if model.ref != loaded.ref:
                self._retire(self._loaded.pop(model.ref))

    def _retire(self, model: LoadedModel) -> None:
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


def _prepare(folder: Path, options: EngineOptions, check: Callable[[Manifest], None]) -> _Prepared:
    """Verify, load, hold against the golden rows and plan one version. Runs in a thread, seconds at most.

    Raises:
        GanymedeError: what is wrong.
    """
    manifest = verify_package(folder)
    check(manifest)
    golden = read_golden(folder, manifest)
    graphs = {}
    for name, spec in manifest.graphs.items():

        def session(
            threads: int, on_cpu: bool = False, path: Path = folder / spec.file, spec: GraphSpec = spec
        ) -> OrtSession:
            providers = ("cpu",) if on_cpu else options.providers
            return OrtSession(
                path, spec, model=manifest.ref, providers=providers, threads=threads, device=options.device
            )

        first = session(options.threads_per_lane or 1)
        check_golden(first, golden[name], model=manifest.ref, fp16=options.fp16 and first.provider == "tensorrt")
        plan, sessions = choose_plan(manifest.ref, spec.sha256, first, golden[name], options, session)
        log.info("%s: %s runs on %s (%s)", manifest.ref, spec.file, first.provider, "; ".join(first.why) or "as asked")
        if not plan.rows_independent:
            log.warning("%s: rows influence one another in %s; each runs alone", manifest.ref, spec.file)
        graphs[name] = (plan, _recovering(sessions, partial(session, plan.threads), manifest.ref), first.why)
    return _Prepared(manifest, graphs)


def _recovering(
    sessions: Sequence[OrtSession], make: Callable[[bool], OrtSession], model: str
) -> list[RecoveringSession]:
    """One for each lane; lanes that share a session share what wraps it."""
    wrapped = {id(session): RecoveringSession(session, make, model=model) for session in sessions}
    return [wrapped[id(session)] for session in sessions]
