"""The models' folder served: verify, load, resolve, swap, unload, and make room.

`<root>/<name>/<version>/`. The newest `versions_kept` versions that pass are served; `name` (or `name@latest`) means
the newest of them, `name@2` that one. A model that fails is refused by name and the others serve; what served before
goes on serving.

A version *sleeps* where it may serve but is not in memory: at first with `load_on_demand`, later where others needed
its room (`memory_budget_bytes`). Whoever asks for it wakes it.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from service.engine.batcher import Batcher
from service.engine.budget import Held, to_evict
from service.engine.folders import LATEST, Fingerprint, Found, named, scan
from service.engine.idle import IdleLooks, shrink
from service.engine.loaded import LoadedGraph, LoadedModel, retire, settled
from service.engine.loading import Prepared, prepare
from service.engine.memory import MemoryStats, memory_stats, trim
from service.engine.options import EngineOptions
from service.engine.stats import BatcherStats, followed, sum_stats, totals_of
from service.errors import FileInvalid, GanymedeError, ModelAsleep, NotReady, PackageError, UnknownModel
from service.manifest import Manifest

log = logging.getLogger(__name__)

PAST_S = 900.0
"""The totals of a version that is gone are told for so long: what looks at a quarter of an hour sees all of them."""
PAST_KEPT = 16
"""And those of so many versions at most: a scrape must not grow with every version that ever served."""

ROOM_S = 2.0
"""Seconds that those who give way get to be gone before the newcomer is read; who is at work then is gone later."""


@dataclass
class _Waking:
    """A model that is being woken. `over`: it is in memory, or will not be."""

    over: asyncio.Future[None]
    waiters: int = 0
    task: asyncio.Task[None] | None = None


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
        self._asleep: dict[str, Found] = {}
        self._resolved: dict[str, LoadedModel] = {}  # what names meant since a model last came or went
        self._seen: dict[str, Fingerprint] = {}
        self._failed: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        self._busy = asyncio.Lock()
        self._retiring: dict[asyncio.Task[None], LoadedModel] = {}
        self._finishing: list[tuple[str, list[Batcher]]] = []  # of those that retire
        self._past: dict[str, tuple[BatcherStats, float]] = {}  # totals of versions that are gone, and since when
        self._waking: dict[str, _Waking] = {}
        self._missing = self._ending = False
        self._shrinking: asyncio.Task[None] | None = None
        self._shrinks = self._given_back = self._woken = self._evicted = 0

    @property
    def loaded(self) -> list[LoadedModel]:
        """By name, the newest version first."""
        return sorted(self._loaded.values(), key=lambda model: (model.manifest.name, -model.manifest.version))

    @property
    def asleep(self) -> list[str]:
        """`name@version` of those that are loaded when somebody asks for them."""
        return sorted(self._asleep)

    @property
    def refused(self) -> dict[str, str]:
        """Folder or `name@version` -> what is wrong with it."""
        return {**self._faults, **self._failed}

    def resolve(self, ref: str) -> LoadedModel:
        """The model of `name` or `name@latest` (its newest version) or `name@version`.

        Raises:
            ModelAsleep: it is not in memory; `wake` loads it.
            UnknownModel: names what there is.
        """
        known = self._resolved.get(ref)
        if known is not None:
            return known
        model = self._resolved[ref] = self._resolve(ref)
        return model

    def _resolve(self, ref: str) -> LoadedModel:
        name, pinned, version = ref.partition("@")
        versions = self._versions(name)
        if not versions:
            names = sorted({one.partition("@")[0] for one in (*self._loaded, *self._asleep)})
            raise UnknownModel(f"model: {name or ref!r} is not loaded", field="model", allowed=names)
        latest = not pinned or version == LATEST
        found = versions[-1] if latest else next((one for one in versions if f"{name}@{one}" == ref), None)
        if found is None:
            refs = [f"{name}@{one}" for one in versions]
            raise UnknownModel(f"model: {ref!r} is not loaded", field="model", allowed=refs)
        own = f"{name}@{found}"
        if own in self._asleep:
            raise ModelAsleep(own)
        return self._loaded[own]

    def _versions(self, name: str) -> list[int]:
        """The versions of a name that serve, in memory or asleep, ascending."""
        refs = (ref.partition("@") for ref in {*self._loaded, *self._asleep})
        return sorted(int(version) for own, _, version in refs if own == name)

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
            for ref in self._asleep.keys() - present:
                del self._asleep[ref]
                self._seen.pop(ref, None)  # else it would be known, and nowhere, when its folder is back
            loaded = []
            for one in found:
                newer = [version for version in self._versions(one.name) if version > one.version]
                if self._seen.get(one.ref) == one.fingerprint or len(newer) >= self._options.versions_kept:
                    continue
                if self._may_sleep(one):
                    self._lay(one)
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
        name, version = named(name, version)
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
            name: `name`; or `name@version`, or `name@latest` for the newest alone, in place of the second argument.

        Raises:
            UnknownModel: it is not loaded.
        """
        latest = name.endswith(f"@{LATEST}")
        name, version = named(name, version)
        async with self._busy:
            versions = self._versions(name)
            gone = versions[-1:] if latest else [one for one in versions if version in (None, one)]
            if not gone:
                self._resolve(name if version is None else f"{name}@{version}")  # raises
            for one in gone:
                self._drop(f"{name}@{one}")

    async def wake(self, ref: str) -> None:
        """Load a version that sleeps, once for all who ask meanwhile; one that is refused is in `refused` then.

        Args:
            ref: `name@version`, as `ModelAsleep` says it.
        """
        if self._ending:
            raise NotReady(f"{ref} is asleep, and the server is shutting down", reason="draining")
        waking = self._waking.get(ref)
        if waking is None:
            waking = self._waking[ref] = _Waking(asyncio.get_running_loop().create_future())
            waking.task = asyncio.create_task(self._wake(ref, waking))
        waking.waiters += 1
        try:
            await asyncio.shield(waking.over)  # whoever leaves: the others wait on
        finally:
            waking.waiters -= 1

    async def _wake(self, ref: str, waking: "_Waking") -> None:
        try:
            async with self._busy:
                one = self._asleep.get(ref)
                if one is not None:  # else it came, or went, meanwhile
                    try:
                        await self._load(one)
                        self._woken += 1
                    except GanymedeError:
                        self._asleep.pop(ref, None)
                del self._waking[ref]
                _settle(waking.over)
                while waking.waiters:  # noqa: ASYNC110 - a turn or two: they ask before the next may take its room
                    await asyncio.sleep(0)
        finally:
            if self._waking.get(ref) is waking:  # cut off: whoever asks again must not wait for what is over
                del self._waking[ref]
            _settle(waking.over)
        await asyncio.to_thread(trim)

    def memory(self) -> MemoryStats:
        """What the process and its GPUs hold, what idle models gave back, and who came and went for room."""
        used = {
            number
            for model in self._loaded.values()
            for graph in model.graphs.values()
            if set(graph.providers) & {"cuda", "tensorrt"}
            for number in graph.plan.devices
        }
        return memory_stats(sorted(used), self._shrinks, self._given_back, self._woken, self._evicted)

    async def drain(self, timeout_s: float) -> bool:
        """Let the accepted requests finish, the engine refusing new ones; whether all did in time."""
        self._ending = True
        models = [*self._loaded.values(), *self._retiring.values()]
        for model in models:
            model.state = "draining"
        await settled(models, timeout_s)
        for waking in self._waking.values():
            _settle(waking.over)  # who waits for a model to load is told that there is no time for it
        batchers = _batchers_of(*models)
        return all(await asyncio.gather(*(batcher.drain(0.0) for batcher in batchers)))

    async def close(self) -> None:
        """End everything; sessions are dropped."""
        self._ending = True
        tasks = [one.task for one in self._waking.values() if one.task is not None]
        tasks += [] if self._shrinking is None else [self._shrinking]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        async with self._busy:
            models, self._loaded = list(self._loaded.values()), {}
            self._asleep.clear()
            self._resolved.clear()
            batchers = _batchers_of(*models)
            await asyncio.gather(*(batcher.close() for batcher in batchers))
            retiring = _batchers_of(*self._retiring.values())
            await asyncio.gather(*(batcher.drain(0.0) for batcher in retiring))
            await asyncio.gather(*self._retiring)
            self._seen.clear()

    async def _load(self, one: Found) -> LoadedModel:
        self._seen[one.ref] = one.fingerprint
        try:
            await self._make_room(one, one.graph_bytes)
            prepared = await prepare(one.folder, self._options, self._check, gently=bool(self._loaded))
            weight_bytes = _weight_bytes(one, prepared)
            await self._make_room(one, weight_bytes)
            graphs = self._batchers(prepared)  # which start threads, of which there may be no more
        except Exception as error:
            detail = error.detail if isinstance(error, GanymedeError) else f"{type(error).__name__}: {error}"
            self._failed[one.ref] = detail.removeprefix(f"{one.ref}: ")
            log.error("refused %s: %s", one.ref, self._failed[one.ref], exc_info=not isinstance(error, GanymedeError))
            if isinstance(error, PackageError):
                raise
            raise FileInvalid(f"could not be loaded: {self._failed[one.ref]}", model=one.ref) from error
        self._failed.pop(one.ref, None)
        self._asleep.pop(one.ref, None)
        model = LoadedModel(prepared.manifest, one.folder, graphs, arrays=prepared.arrays)
        model.weight_bytes = weight_bytes
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
            graphs[name] = LoadedGraph(spec, plan, batcher, sessions, graph.why, graph.row, graph.reach)
        return graphs

    async def _shrink_idle(self, after_s: float) -> None:
        """Give back the memory of models that nobody asks for, until cancelled."""
        looks: IdleLooks[weakref.ref[LoadedGraph]] = IdleLooks(after_s)  # which keep no model in memory that goes
        while True:
            await asyncio.sleep(min(1.0, after_s / 2))
            await self._shrink_due(looks)

    async def _shrink_due(self, looks: "IdleLooks[weakref.ref[LoadedGraph]]") -> None:
        models = self._loaded.values()
        graphs = {weakref.ref(graph): graph.batcher.stats() for model in models for graph in model.graphs.values()}
        for trace in looks.due(graphs, time.monotonic()):
            if (graph := trace()) is None:
                continue
            given_back = await asyncio.to_thread(shrink, graph.sessions, graph.row)
            if given_back is not None:
                self._shrinks += 1
                self._given_back += given_back

    def _may_sleep(self, one: Found) -> bool:
        """Whether a version that is new on the disk is left there until somebody asks for it.

        One that takes the place of a version that is in use does not: its first caller would wait for it.
        """
        awake = [model.manifest.version for model in self._loaded.values() if model.manifest.name == one.name]
        if awake and one.version >= max(awake):
            return False
        if self._options.load_on_demand:
            return True
        budget = self._options.memory_budget_bytes
        return budget is not None and self._held_bytes() + one.graph_bytes > budget >= one.graph_bytes

    def _held_bytes(self) -> int:
        return sum(model.weight_bytes for model in self._loaded.values())

    async def _make_room(self, one: Found, wanted_bytes: int) -> None:
        """Put to sleep whom the newcomer leaves no room.

        Raises:
            FileInvalid: it does not fit even alone.
        """
        budget = self._options.memory_budget_bytes
        if budget is None:
            return
        others = [model for model in self._loaded.values() if model.ref != one.ref]
        held = [Held(model.ref, model.weight_bytes, model.used_s, model.busy) for model in others]
        gone = to_evict(held, wanted_bytes, budget)
        if gone is None:
            detail = f"takes {wanted_bytes} bytes of memory, more than memory_budget_bytes ({budget})"
            raise FileInvalid(detail, model=one.ref)
        for ref in gone:
            model = self._loaded.pop(ref)
            self._lay(Found(model.manifest.name, model.manifest.version, model.folder, self._seen[ref]))
            self._retire(model)
            self._evicted += 1
            log.info("%s gives way to %s", ref, one.ref)
        if gone:
            await asyncio.wait(list(self._retiring), timeout=ROOM_S)

    def _lay(self, one: Found) -> None:
        """To sleep."""
        self._asleep[one.ref] = one
        self._seen[one.ref] = one.fingerprint
        self._resolved.clear()

    def _drop(self, ref: str) -> None:
        """Serve it no more."""
        self._resolved.clear()
        self._asleep.pop(ref, None)
        if ref in self._loaded:
            self._retire(self._loaded.pop(ref))

    def _retire_oldest(self, loaded: Found) -> None:
        """Keep the newest versions, and the one that was just asked for."""
        for version in self._versions(loaded.name)[: -self._options.versions_kept]:
            if version != loaded.version:
                self._drop(f"{loaded.name}@{version}")

    def _retire(self, model: LoadedModel) -> None:
        self._resolved.clear()
        model.state = "draining"
        own = model.ref, _batchers_of(model)
        task = asyncio.create_task(self._finish(model, own))
        self._retiring[task] = model
        self._finishing.append(own)
        task.add_done_callback(partial(_forget, self._retiring))

    async def _finish(self, model: LoadedModel, own: tuple[str, list[Batcher]]) -> None:
        """Let a model end what it has begun; what it has done is remembered for a while."""
        try:
            await retire(model)
        finally:  # in one step, or a scrape in between would see its counters begin anew
            self._finishing.remove(own)
            self._remember(model, totals_of(_stats_of(own[1])))

    def _remember(self, model: LoadedModel, done: BatcherStats) -> None:
        before = self._past.pop(model.ref, None)
        whole = done if before is None else replace(followed(before[0], done), gone=True)
        self._past[model.ref] = whole, time.monotonic()
        others = [ref for ref in self._past if ref not in self._loaded]
        for ref in others[:-PAST_KEPT]:
            del self._past[ref]

    def serving_stats(self) -> dict[str, BatcherStats]:
        """As `stats`, of what serves alone, since it was loaded."""
        return {ref: _stats_of(_batchers_of(model)) for ref, model in self._loaded.items()}

    def stats(self) -> dict[str, BatcherStats]:
        """By `name@version`: of versions that serve or finish, and the totals of those that went lately.

        A version that was loaded anew goes on from the totals of the one before.
        """
        oldest_s = time.monotonic() - PAST_S
        for ref in [ref for ref, (_, gone_s) in self._past.items() if gone_s < oldest_s and ref not in self._loaded]:
            del self._past[ref]
        found = {ref: totals for ref, (totals, _) in self._past.items()}
        retiring = [(ref, _stats_of(batchers)) for ref, batchers in self._finishing]
        for ref, own in (*retiring, *self.serving_stats().items()):
            found[ref] = followed(found[ref], own) if ref in found else own
        return found


def _forget(retiring: dict[asyncio.Task[None], LoadedModel], task: asyncio.Task[None]) -> None:
    retiring.pop(task, None)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _batchers_of(*models: LoadedModel) -> list[Batcher]:
    return [graph.batcher for model in models for graph in model.graphs.values()]


def _stats_of(batchers: Sequence[Batcher]) -> BatcherStats:
    return sum_stats([batcher.stats() for batcher in batchers])


def _weight_bytes(one: Found, prepared: Prepared) -> int:
    """What the weights of all its sessions take: lanes that share a session share them."""
    sizes = {name: size for name, size, _ in one.fingerprint}
    return sum(
        sizes.get(prepared.manifest.graphs[name].file, 0) * len({id(session) for session in graph.sessions})
        for name, graph in prepared.graphs.items()
    )
