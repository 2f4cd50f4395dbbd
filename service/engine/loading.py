"""A version's folder into sessions that passed every check, watched so that a load that hangs blocks nobody else."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from service.engine.lonesums import lone_sums
from service.engine.options import EngineOptions
from service.engine.probing import resize
from service.engine.profile import Plan, choose_plan, lane_sessions, planned_for, shelf_of
from service.engine.providers import device_ids
from service.engine.reach import geometry
from service.engine.recovery import HalvingSession, Provided, RecoveringSession, out_of_memory
from service.engine.session import Array, Arrays, OrtSession, Watch, check_golden
from service.engine.shapes import ShapedSession
from service.engine.tiling import Geometry
from service.errors import FileInvalid, GanymedeError, RunFailed
from service.manifest import GraphSpec, Manifest
from service.onnxfile import read_contents
from service.onnxgraph import Graph, read_graph
from service.package import read_golden, read_npz, verify_package
from service.process import step_back

log = logging.getLogger(__name__)

END_S = 2.0
"""Seconds that a load which was told to end gets before its thread is left behind."""


LONE_S = 0.002
"""A lone request's run of at most so long stays on the event loop: who comes meanwhile waits no longer than that."""
LOOPS = {"Loop", "Scan"}
"""Operators whose runs may never end, so that they need a thread that can be given up."""


@dataclass(frozen=True)
class PreparedGraph:
    """One graph that passed every check: a session for each lane; lanes of one device may share one.

    `why`: why no better provider was obtained, or a device was left out. `row`: the first recorded row of each input.
    `lone_s`: see `Batcher`; 0 where a run could hang (loops in the graph), waits for a device anyway, or may be fed a
    larger picture than was measured. `reach`: see `LoadedGraph`; read here, since the folder may go while the model
    serves on.
    """

    plan: Plan
    sessions: list[RecoveringSession]
    why: tuple[str, ...]
    row: dict[str, Array]
    lone_s: float = 0.0
    reach: Geometry | None = None


@dataclass(frozen=True)
class Prepared:
    """A version that passed every check, before it has lanes."""

    manifest: Manifest
    graphs: dict[str, PreparedGraph]
    arrays: dict[str, Array] = field(default_factory=dict)


T = TypeVar("T")


class Apart(Protocol):
    """Runs work, on this thread or another, and returns or raises what it does."""

    def __call__(self, work: Callable[[], T], /) -> T: ...


class Progress(Watch):
    """How far a load is. It moves while `calls` grows."""

    def __init__(self) -> None:
        super().__init__()
        self.step = "beginning"

    def now(self, step: str) -> None:
        """Say what is done next.

        Raises:
            RuntimeError: nobody waits for it any more.
        """
        if self.terminated:
            raise RuntimeError("given up")
        self.step = step
        self.calls += 1


async def prepare(
    folder: Path, options: EngineOptions, check: Callable[[Manifest], None], *, gently: bool = False
) -> Prepared:
    """Verify, load, hold against the golden rows and plan one version, in a thread of its own.

    Args:
        folder: `<name>/<version>`.
        options: a step that takes longer than `load_timeout_s` ends it.
        check: raises PackageError where a manifest asks for what no pipeline serves.
        gently: other models serve meanwhile: what need not be measured lets their lanes go first.

    Raises:
        GanymedeError: what is wrong.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Prepared] = loop.create_future()
    progress = Progress()

    def end(result: Prepared | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def work() -> None:
        step_back()  # so do the threads of the sessions that are made here
        result, failure = None, None
        try:
            result = prepare_here(folder, options, check, progress, nicely if gently else at_once)
        except BaseException as error:  # whoever waits must hear of it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, result, failure)

    # Not the loop's own pool: a thread that hangs there would keep the process from ending.
    threading.Thread(target=work, name=f"loading {folder.parent.name}@{folder.name}", daemon=True).start()
    try:
        seen = -1
        while not done.done() and progress.calls > seen:
            seen = progress.calls
            await asyncio.wait([done], timeout=options.load_timeout_s)
        if done.done():
            return done.result()
        progress.terminate()
        detail = f"loading hangs: {progress.step} took more than {options.load_timeout_s:g} s (load_timeout_s)"
        await asyncio.wait([done], timeout=END_S)
        raise FileInvalid(detail, model=f"{folder.parent.name}@{folder.name}")
    except asyncio.CancelledError:
        progress.terminate()
        raise
    finally:
        if not done.cancel() and not done.cancelled():
            done.exception()  # looked at, or asyncio would report it as forgotten


def at_once(work: Callable[[], T], /) -> T:
    """On this thread."""
    return work()


def nicely(work: Callable[[], T], /) -> T:
    """On a thread that lets the lanes go first, for which this one waits.

    Not the whole load: threads that a session starts keep their niceness for good, and what is measured would be wrong.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        step_back()
        try:
            results.append(work())
        except BaseException as error:  # raised where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, name="checking", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def prepare_here(
    folder: Path,
    options: EngineOptions,
    check: Callable[[Manifest], None],
    progress: Progress,
    apart: "Apart" = at_once,
) -> Prepared:
    """As `prepare`, on this thread.

    Args:
        apart: runs what need not be on this thread.

    Raises:
        GanymedeError: what is wrong.
    """
    progress.now("reading the files")

    def read() -> tuple[Manifest, dict[str, dict[str, Array]]]:
        manifest = verify_package(folder)
        check(manifest)
        return manifest, read_golden(folder, manifest)

    manifest, golden = apart(read)
    graphs = {}
    for name, spec in manifest.graphs.items():
        graphs[name] = _prepare_graph(folder, manifest.ref, spec, golden[name], options, progress, apart)
    arrays = {} if manifest.arrays is None else read_npz(folder / manifest.arrays.file, model=manifest.ref)
    return Prepared(manifest, graphs, arrays)


class _Maker:
    """Makes the sessions of one graph.

    Args:
        file: the graph.
        spec: what the manifest says of it.
        ref: `name@version`.
        options: the providers and devices.
    """

    def __init__(self, file: Path, spec: GraphSpec, ref: str, options: EngineOptions) -> None:
        self.spec, self.ref, self.options = spec, ref, options
        self._file = file

    def __call__(
        self,
        threads: int,
        device_id: int | None = None,
        watch: Progress | None = None,
        on_cpu: bool = False,
        search: str = "",
    ) -> OrtSession:
        if watch is not None:
            watch.now(f"making a session of {self.spec.file}")
        return OrtSession(
            self._file,
            self.spec,
            model=self.ref,
            providers=("cpu",) if on_cpu else self.options.providers,
            threads=threads,
            device=replace(self.options.device, search=search),
            device_id=0 if on_cpu else device_id,
            watch=watch,
        )


def _prepare_graph(
    folder: Path, ref: str, spec: GraphSpec, golden: Arrays, options: EngineOptions, progress: Progress, apart: "Apart"
) -> PreparedGraph:
    graph = read_graph(folder / spec.file)
    sums = lone_sums(graph)
    if sums:
        options = replace(options, max_batch=1)
    make = _Maker(folder / spec.file, spec, ref, options)
    plan, sessions, short = _planned(make, golden, progress, apart)
    if sums:
        note = f"a row alone would be summed in another order than among others ({sums[0]!r}); each runs alone"
        plan = replace(plan, rows_independent=False, note=note)
    first = sessions[0]
    others = partial(make, watch=progress, on_cpu=first.provider == "cpu", search=plan.search)
    on_devices, left_out = _on_further_devices(first, plan, golden, options, others)
    on_devices = {first.device_id: sessions, **on_devices}
    why = (*first.why, *short, *left_out, *([plan.note] if plan.note else []))
    plan = planned_for(plan, tuple(on_devices))
    log.info("%s: %s on %s: %s (%s)", ref, spec.file, first.provider, plan, "; ".join(why) or "as asked")
    if plan.note:
        log.warning("%s: %s: %s", ref, spec.file, plan.note)
    row = resize({tensor.name: golden[tensor.name] for tensor in spec.inputs}, 1)
    lanes = []
    for device_id, own in on_devices.items():
        lanes += _recovering(own, partial(make, plan.threads, device_id, search=plan.search), plan, row, make)
    kinds = {kind for _, kind in read_contents(folder / spec.file).operators}
    ends = first.provider == "cpu" and not kinds & LOOPS
    lone_s = LONE_S if ends and is_of_one_size(spec) else 0.0
    return PreparedGraph(plan, lanes, why, row, lone_s, _reach_of(spec, graph))


def _reach_of(spec: GraphSpec, graph: Graph) -> Geometry | None:
    """How far a graph from pictures to a picture reaches; None of others."""
    output = next((tensor.name for tensor in spec.outputs if tensor.kind == "image"), None)
    if output is None or not any(tensor.kind == "image" for tensor in spec.inputs):
        return None
    return geometry(graph, [tensor.name for tensor in spec.inputs], output)


def is_of_one_size(spec: GraphSpec) -> bool:
    """Whether all rows that it is fed have the recorded ones' shape, and so take what those were measured to take."""
    return all(isinstance(length, int) for tensor in spec.inputs for length in tensor.shape[1:])


def _planned(
    make: _Maker, golden: Arrays, progress: Progress, apart: "Apart"
) -> tuple[Plan, list[OrtSession], list[str]]:
    """A plan with its sessions, and what was done for lack of memory.

    Where a device lacks memory even for a row alone, a new session, whose arena is empty, is tried with single rows,
    then the CPU.

    Raises:
        GanymedeError: what is wrong.
    """
    short: list[str] = []
    for most, on_cpu in ((make.options.max_batch, False), (1, False)):
        try:
            return *_planned_once(make, golden, progress, apart, most, on_cpu), short
        except GanymedeError as error:
            if not out_of_memory(error):
                raise
            then = "the CPU runs it" if short else "tried anew with single rows"
            short.append(f"out of memory while loading, {then}: {str(error)[:200]}")
            log.error("%s: %s", make.ref, short[-1])
    return *_planned_once(make, golden, progress, apart, make.options.max_batch, True), short


def _planned_once(
    make: _Maker, golden: Arrays, progress: Progress, apart: "Apart", most: int, on_cpu: bool
) -> tuple[Plan, list[OrtSession]]:
    """With runs of at most so many rows, perhaps on the CPU whatever was asked for.

    Raises:
        GanymedeError: what is wrong.
    """
    options = make.options

    def make_one(threads: int, search: str = "", checked: bool = False) -> OrtSession:
        session = make(threads, watch=progress, on_cpu=on_cpu, search=search)
        progress.now(f"running {make.spec.file} on its recorded rows")
        if checked or search:
            fp16 = options.fp16 and session.provider == "tensorrt"
            apart(partial(check_golden, HalvingSession(session), golden, model=make.ref, fp16=fp16))
        return session

    first = make_one(options.threads_per_lane or 1, checked=True)
    return choose_plan(make.spec.sha256, first, golden, replace(options, max_batch=most), make_one)


def _on_further_devices(
    first: OrtSession, plan: Plan, golden: Arrays, options: EngineOptions, make: Callable[..., OrtSession]
) -> tuple[dict[int, list[OrtSession]], list[str]]:
    """Sessions for the lanes of each device after the first, and a line for each device that is left out.

    A device must answer the recorded rows with the first one's bits, or the same seed would draw another picture
    there.

    Raises:
        GanymedeError: a device that was asked for does not work.
    """
    inputs = {tensor.name: golden[tensor.name] for tensor in first.spec.inputs}
    expected: list[bytes] | None = None
    made: dict[int, list[OrtSession]] = {}
    left_out = []
    for device_id in device_ids(first.provider, options.devices):
        if device_id == first.device_id:
            continue
        expected = expected or _bits(first, inputs, plan.max_batch)
        try:
            here = partial(make, device_id=device_id)
            sessions = lane_sessions(plan, here(plan.threads), here)
            same = _bits(sessions[0], inputs, plan.max_batch) == expected
        except GanymedeError as error:
            if options.devices is not None:
                raise
            left_out.append(f"{first.provider}: device {device_id} is left out: {error}")
            continue
        if same:
            made[device_id] = sessions
        else:
            left_out.append(f"{first.provider}: device {device_id} is left out: it draws other bits than the first")
    return made, left_out


def _bits(session: OrtSession, inputs: Arrays, most: int) -> list[bytes]:
    """What recorded rows are answered with, alone and in the widest run that was planned."""
    rows = len(next(iter(inputs.values())))
    feeds = [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(rows)]
    answers = [session.run(feed) for feed in (*feeds, resize(inputs, most))]
    return [answer[name].tobytes() for answer in answers for name in sorted(answer)]


def _recovering(
    sessions: list[OrtSession], make: Callable[..., OrtSession], plan: Plan, row: Arrays, maker: _Maker
) -> list[RecoveringSession]:
    """One for each lane; lanes that share a session share what wraps it. On a device each keeps to planned shapes."""

    def shaped(session: OrtSession) -> Provided:
        session.watch = None
        if session.provider == "cpu" or not plan.sizes:
            return session
        shelf = shelf_of(session.provider, plan.shape_s, maker.options)
        sizes, fills = plan.sizes, plan.fills
        return ShapedSession(session, make, row, sizes=sizes, fills=fills, shelf=shelf, model=maker.ref)

    wrapped: dict[int, RecoveringSession] = {}
    for session in sessions:
        if id(session) in wrapped:
            continue
        served = shaped(session)
        if isinstance(served, ShapedSession):
            with contextlib.suppress(RunFailed):  # for lack of memory, of which the first request is told
                served.warm(row)
        wrapped[id(session)] = RecoveringSession(
            served, lambda on_cpu: shaped(make(on_cpu=on_cpu or plan.provider == "cpu")), model=maker.ref
        )
    return [wrapped[id(session)] for session in sessions]
