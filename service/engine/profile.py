"""Measures a graph at load and chooses how to run it: lanes, threads in each, the batch cap, rows apart or together.

On a CPU many lanes of one thread often beat one wide batch, on a GPU one lane and wide batches win, and a graph in
between cannot be guessed: so each is timed on its own golden rows, within a bounded time.
"""

import hashlib
import json
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnxruntime as ort

from service.engine.entries import BatchPolicy
from service.engine.options import EngineOptions
from service.engine.probing import ROUNDS, looked_at_up_to, probe, resize
from service.engine.providers import device_name
from service.engine.session import Arrays, OrtSession, Session
from service.engine.shapes import SHELF
from service.errors import GanymedeError

log = logging.getLogger(__name__)

RUN_OVERHEAD_S = 150e-6
"""What a run costs outside of the session: two thread switches, slicing, checking. Makes tiny graphs batch."""
LOADED_OVERHEAD_S = 500e-6
"""What it costs while requests queue, and the event loop, which hands rows to lanes and takes answers from them, has
others to read and refuse: measured, of a lane's time, 0.7 ms a run at three times the capacity."""
KNEE = 1.03
"""A batch is wide enough when a row costs at most this times the cheapest row measured.

Narrower means shorter runs for those who come next; but where requests queue at all, what a row costs decides how long
everybody waits, and a lone request never rides in a wide run.
"""
SHARE = 1.5
"""Rows are spread over free lanes while a row costs at most this times the cheapest."""
TIE = 1.05
"""A split with more lanes wins within this factor of the fastest. What is timed has the cores to itself; a server does
not: while the event loop takes one, all threads of a run wait for the one that it holds up, and between two runs of a
single lane every core is idle."""
RATE_S = 0.08
"""Seconds for which one split of lanes and threads is timed, or four runs where those take longer."""
FILL = 1.5
"""Runs on a device are filled up to a larger size that was looked at where that costs at most this times as much."""
FILLS = 3
"""Sizes that runs are filled up to, at most, where each needs a session of its own."""
SHAPE_S = 0.005
"""A shape that takes this much longer when it is returned to gets a session of its own."""
STEADY = "DEFAULT"
"""The choice of cuDNN's algorithms that was seen to be the same for every number of rows, if slower."""
PLAN_SCHEMA = 4


@dataclass(frozen=True)
class Plan:
    """How one graph is run, and what that was chosen from.

    Args:
        lanes: worker threads, so many for each device.
        threads: threads inside one run.
        max_batch: rows in one run.
        min_share: rows below which a queue is not spread over lanes.
        row_s: seconds of one lane per row at that batch.
        rows_independent: False: neighbours change a row's answer, so every row runs alone.
        provider: what the session got.
        costs: (rows in a run, seconds of the run) as measured with one lane.
        source: `measured`, `cached`, or `fixed` where the options left nothing to measure.
        devices: the provider's devices that are used, by number. What was measured was measured on the first.
        sizes: on a device, rows of the runs that were looked at, ascending: no run has another number of them.
        fills: of these, those that runs are filled up to.
        shape_s: seconds that a shape takes beyond its runs when it is returned to.
        search: how cuDNN is to choose its algorithms, where not as usual.
        note: why anything is otherwise than usual.
    """

    lanes: int
    threads: int
    max_batch: int
    min_share: int
    row_s: float
    rows_independent: bool
    provider: str
    costs: tuple[tuple[int, float], ...] = ()
    source: str = "measured"
    devices: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = ()
    fills: tuple[int, ...] = ()
    shape_s: float = 0.0
    search: str = ""
    note: str = ""

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.devices))
        where = f" on each of the devices {numbers}" if len(self.devices) > 1 else f" on device {numbers}"
        where = "" if self.devices == (0,) else where
        lanes = f"{self.lanes} {'lane' if self.lanes == 1 else 'lanes'} of {self.threads} "
        lanes += f"{'thread' if self.threads == 1 else 'threads'}{where}"
        rows = f"runs of up to {self.max_batch} rows" if self.rows_independent else "one row a run"
        if self.max_batch > 1 and self.fills:
            rows += f" filled up to {' or '.join(map(str, self.fills))}"
        return f"{lanes}, {rows}, {1000 * self.row_s:.3g} ms a row, {self.source}"

    def run_s(self, rows: int) -> float:
        """Seconds of a run of so many rows, by the measured curve: the next larger run's, or in proportion beyond."""
        rows = next((size for size in self.fills if size >= rows), rows)
        for measured, seconds in self.costs:
            if measured >= rows:
                return seconds
        if not self.costs:
            return rows * self.row_s
        measured, seconds = self.costs[-1]
        return rows * seconds / measured

    @property
    def policy(self) -> BatchPolicy:
        """For the batcher."""
        return BatchPolicy(self.max_batch, self.min_share)


def available_cpus(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, and the container's quota where there is one, rounded down.

    Args:
        root: where `proc` and `sys` are; tests put in a folder.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus(root)
    return affinity if quota is None else max(1, min(affinity, math.floor(quota)))


def _cgroup_cpus(root: Path) -> float | None:
    """The smallest CPU quota on the way from this process's control group to the root; None without one."""
    quotas = []
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    for folder in [base / own, *(base / own).parents]:
        if folder == base or base in folder.parents:
            quotas.append(_quota(folder / "cpu.max", None))
    v1 = base / "cpu"
    quotas.append(_quota(v1 / "cpu.cfs_quota_us", v1 / "cpu.cfs_period_us"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(quota: Path, period: Path | None) -> float | None:
    try:
        words = quota.read_text().split() + (period.read_text().split() if period else [])
        limit, per = int(words[0]), int(words[1])  # `max 100000` and -1 mean no limit
    except (OSError, ValueError, IndexError):
        return None
    return limit / per if limit > 0 and per > 0 else None


def choose_plan(
    sha256: str,
    first: OrtSession,
    golden: Arrays,
    options: EngineOptions,
    make_session: Callable[..., OrtSession],
) -> tuple[Plan, list[OrtSession]]:
    """Choose the plan of one graph and make its sessions, one for each lane.

    Args:
        sha256: its hash, for the cache.
        first: a loaded session with one thread; used wherever the plan allows.
        golden: recorded rows of every input.
        options: what is set there wins over what is measured.
        make_session: a further session with that many threads, and with `search=` that choice of cuDNN's algorithms.

    Raises:
        RunFailed: a row alone fails.
    """
    cpus = available_cpus()
    inputs = {tensor.name: golden[tensor.name] for tensor in first.spec.inputs}
    cache = None if options.cache is None else options.cache / f"{_key(sha256, first, cpus, options)}.json"
    plan = _read_plan(cache)
    if plan is None:
        plan = _measure(first, inputs, options, cpus, make_session)
        if not plan.rows_independent:
            plan, first = _steadier(plan, first, inputs, options, cpus, make_session)
        _write_plan(cache, plan)
    return plan, lane_sessions(plan, first, make_session)


def _steadier(
    plan: Plan, first: OrtSession, inputs: Arrays, options: EngineOptions, cpus: int, make: Callable[..., OrtSession]
) -> tuple[Plan, OrtSession]:
    """On CUDA, where rows depend on each other: a session whose kernels are the same for every number of rows.

    cuDNN chooses by shape, and so a row's last bits follow the number of rows. Kept where rows are independent then
    and one is cheaper than in a run of its own. Not for pictures of any size: only those of one size run together, and
    the kernels are slower for all of them.
    """
    note = plan.note or "rows influence one another"
    if plan.provider != "cuda":
        return replace(plan, note=f"{note}; each runs alone"), first
    note = f"{note} with the algorithms that cuDNN takes for each shape"
    if any(isinstance(size, str) for tensor in first.spec.inputs for size in tensor.shape[1:]):
        return replace(plan, note=f"{note}; each runs alone"), first
    try:
        other = make(first.threads, search=STEADY)
        steady = _measure(other, inputs, options, cpus, make)
    except GanymedeError as error:
        return replace(plan, note=f"{note}, and with those of {STEADY} it fails ({error}); each runs alone"), first
    if not steady.rows_independent:
        return replace(plan, note=f"{note} and with those of {STEADY}; each runs alone"), first
    cost_s, before_s = ((one.run_s(one.max_batch) + RUN_OVERHEAD_S) / one.max_batch for one in (steady, plan))
    if cost_s >= before_s:
        return replace(plan, note=f"{note}; each runs alone, which is cheaper than the algorithms of {STEADY}"), first
    note += (
        f", so it runs with those of {STEADY}: {1000 * steady.row_s:.3g} ms a row instead of {1000 * plan.row_s:.3g}"
    )
    return replace(steady, search=STEADY, note=note), other


def lane_sessions(plan: Plan, first: OrtSession, make_session: Callable[..., OrtSession]) -> list[OrtSession]:
    """The sessions of one device, one for each of its lanes: all the first, where that is as planned."""
    search = {"search": plan.search} if plan.search else {}
    if plan.threads == first.threads:
        return [first if plan.search == first.search else make_session(plan.threads, **search)] * plan.lanes
    # Threads of one session serve one run at a time: lanes that use several need a session each.
    return [make_session(plan.threads, **search) for _ in range(plan.lanes)]


def planned_for(plan: Plan, devices: tuple[int, ...]) -> Plan:
    """The same plan on these devices."""
    return plan if plan.devices == devices else replace(plan, devices=devices)


def _measure(
    first: OrtSession,
    inputs: Arrays,
    options: EngineOptions,
    cpus: int,
    make_session: Callable[..., OrtSession],
) -> Plan:
    device = first.provider != "cpu"
    splits = _splits(options, cpus, first.provider)
    probed = probe(first, inputs, _sizes(options, device), _deadline_s(options, device), device=device)
    costs, independent = probed.costs, probed.independent
    cap, share, row_s = knee(costs) if independent else (1, 1, costs[1])
    if options.profile_s == 0 and independent:
        cap, share = max(costs), 1
    elif independent and not device:
        end_s = time.monotonic() + options.profile_s / 4
        cap = looked_at_up_to(first, inputs, list(costs), cap, end_s)
        independent, cap = cap > 0, max(1, cap)
        share, row_s = min(share, cap), costs[cap] / cap
    lanes, threads = splits[0]
    if len(splits) > 1 and options.profile_s > 0:
        lanes, threads = _fastest(splits, first, resize(inputs, cap), costs[cap], options, make_session)
    sizes = tuple(sorted(size for size in costs if size <= cap)) if device else ()
    return Plan(
        lanes=lanes,
        threads=threads,
        max_batch=cap,
        min_share=share,
        row_s=row_s,
        rows_independent=independent,
        provider=first.provider,
        costs=tuple(sorted(costs.items())),
        source="measured" if options.profile_s > 0 else "fixed",
        sizes=sizes,
        fills=_fills(costs, sizes, shelf_of(first.provider, probed.shape_s, options), probed.shape_s) if device else (),
        shape_s=probed.shape_s if device else 0.0,
        note="" if probed.repeatable else "answers waver from run to run",
    )


def _sizes(options: EngineOptions, device: bool) -> list[int]:
    """Rows of the runs that are looked at."""
    sizes = {2, options.max_batch, *(2**power for power in range(1, options.max_batch.bit_length()))}
    if not device:
        sizes = sizes | {3} if options.profile_s > 0 else {2, options.max_batch}
    return [size for size in sorted(sizes) if 1 < size <= options.max_batch]


def _deadline_s(options: EngineOptions, device: bool) -> float:
    """Until when runs of many sizes are looked at; on the CPU half of the time is kept for lanes and threads."""
    if options.profile_s == 0:
        return math.inf
    return time.monotonic() + options.profile_s * (1 if device else 0.5)


def shelf_of(provider: str, shape_s: float, options: EngineOptions) -> int:
    """Sessions that one lane may have on a device, each for a shape.

    ONNX Runtime's convolutions on CUDA keep cuDNN's plan for the last shape alone, and make it anew, tens of
    milliseconds, each time that the shape changes. Where the memory of a session is bounded there is one.
    """
    several = provider == "cuda" and shape_s > SHAPE_S and options.device_memory_bytes is None
    return SHELF if several else 1


def _fills(costs: Mapping[int, float], sizes: Sequence[int], shelf: int, shape_s: float) -> tuple[int, ...]:
    """The sizes that runs are filled up to: the widest, and narrower ones where filling up would cost too much.

    Each of these needs a session that keeps it; where there is none left, only what costs more to fill up than to plan
    anew.
    """
    most = len(sizes) if shape_s <= SHAPE_S else FILLS if shelf > 1 else 1
    lone = max(size for size in sizes if costs[size] <= FILL * costs[sizes[0]])  # good for whoever comes alone
    fills = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        wide_s, narrow_s = costs[fills[0]], costs[size]
        if wide_s <= FILL * narrow_s:
            continue
        if len(fills) < most:
            fills.insert(0, size if len(fills) < most - 1 else min(size, lone))
        elif wide_s - narrow_s > shape_s:
            fills.insert(0, size)
    return tuple(fills)


def _fastest(
    splits: Sequence[tuple[int, int]],
    first: OrtSession,
    rows: Arrays,
    run_s: float,
    options: EngineOptions,
    make_session: Callable[..., OrtSession],
) -> tuple[int, int]:
    """The split into lanes and threads that runs these rows most often."""
    window_s = min(options.profile_s / 2 / len(splits), ROUNDS * max(RATE_S, 4 * run_s)) / ROUNDS
    sessions = {split: first if split[1] == first.threads else make_session(split[1]) for split in splits}
    rates = dict.fromkeys(splits, 0.0)
    for _ in range(ROUNDS):
        for split in splits:
            rates[split] = max(rates[split], _rate([sessions[split]] * split[0], rows, window_s))
    best = max(rates.values())
    return max(split for split in splits if rates[split] * TIE >= best)


def _splits(options: EngineOptions, cpus: int, provider: str) -> list[tuple[int, int]]:
    """(lanes, threads per lane) worth timing; one where the options or the device leave no choice."""
    lanes, threads = options.lanes, options.threads_per_lane
    if lanes is not None or threads is not None or provider != "cpu":
        if provider != "cpu":
            return [(lanes or 1, threads or 1)]
        return [(lanes or max(1, cpus // (threads or 1)), threads or max(1, cpus // (lanes or 1)))]
    widths = {1, cpus} | ({2} if cpus >= 4 else set())
    return [(cpus // width, width) for width in sorted(widths)]


def knee(costs: Mapping[int, float]) -> tuple[int, int, float]:
    """(batch cap, smallest share, seconds per row at the cap) of a cost curve: rows in a run -> seconds of the run.

    Fewer rows never cost more than more rows do: where they seem to, something else ran meanwhile.
    """
    least, costs = math.inf, dict(sorted(costs.items()))
    for rows in reversed(costs):
        costs[rows] = least = min(least, costs[rows])

    def narrowest(factor: float, overhead_s: float) -> int:
        row_s = {rows: (seconds + overhead_s) / rows for rows, seconds in costs.items()}
        best = min(row_s.values())
        return min(rows for rows, cost in row_s.items() if cost <= factor * best)

    cap = narrowest(KNEE, LOADED_OVERHEAD_S)
    share = narrowest(SHARE, RUN_OVERHEAD_S)
    return cap, min(cap, share), costs[cap] / cap


def _rate(sessions: Sequence[Session], rows: Arrays, window_s: float) -> float:
    """Rows per second of lanes that run side by side for the window."""
    count = len(next(iter(rows.values())))
    sessions[0].run(rows)  # the first run of a session with its own threads starts them
    start = threading.Barrier(len(sessions) + 1)
    done = [0.0] * len(sessions)

    def lane(index: int) -> None:
        start.wait()
        began_s = time.perf_counter()
        runs = 0
        while time.perf_counter() - began_s < window_s:
            sessions[index].run(rows)
            runs += 1
        done[index] = runs * count / (time.perf_counter() - began_s)

    threads = [threading.Thread(target=lane, args=(index,), daemon=True) for index in range(len(sessions))]
    for thread in threads:
        thread.start()
    start.wait()
    for thread in threads:
        thread.join()
    return sum(done)


def _key(sha256: str, first: OrtSession, cpus: int, options: EngineOptions) -> str:
    """What a measured plan depends on."""
    facts = [PLAN_SCHEMA, sha256, first.provider, cpus, ort.__version__, platform.machine(), _processor()]
    facts += [device_name(first.provider, first.device_id)]
    facts += [options.lanes, options.threads_per_lane, options.max_batch, options.profile_s]
    facts += [options.fp16, options.device_memory_bytes]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _read_plan(path: Path | None) -> Plan | None:
    if path is None:
        return None
    try:
        fields = json.loads(path.read_text())
        costs = tuple((int(rows), float(seconds)) for rows, seconds in fields.pop("costs"))
        numbers = {name: tuple(map(int, fields.pop(name))) for name in ("sizes", "fills")}
        return Plan(**{**fields, **numbers, "costs": costs, "source": "cached", "devices": (0,)})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # not measured yet, or written by another version


def _write_plan(path: Path | None, plan: Plan) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(asdict(plan)))
        partial.replace(path)
    except OSError as error:
        log.warning("the plan cannot be cached in %s: %s", path.parent, error)
