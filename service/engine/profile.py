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

import numpy as np
import onnxruntime as ort

from service.engine.entries import BatchPolicy
from service.engine.options import EngineOptions
from service.engine.session import Arrays, OrtSession, Session
from service.errors import RunFailed

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
TIE = 1.03
"""A split with fewer lanes wins within this factor of the fastest: its lone requests are quicker."""
RATE_S = 0.08
"""Seconds for which one split of lanes and threads is timed, or four runs where those take longer."""
ROUNDS = 3
"""Times that each split is timed, in turns, of which the best counts: whatever else ran meanwhile only made it slower,
and what runs for a while is met by all of them."""
TIME_S = 0.02
"""Seconds for which one batch size is timed, and three runs at least."""
PLAN_SCHEMA = 3


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

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.devices))
        where = f" on each of the devices {numbers}" if len(self.devices) > 1 else f" on device {numbers}"
        where = "" if self.devices == (0,) else where
        lanes = f"{self.lanes} {'lane' if self.lanes == 1 else 'lanes'} of {self.threads} "
        lanes += f"{'thread' if self.threads == 1 else 'threads'}{where}"
        rows = f"runs of up to {self.max_batch} rows" if self.rows_independent else "one row a run"
        return f"{lanes}, {rows}, {1000 * self.row_s:.3g} ms a row, {self.source}"

    def run_s(self, rows: int) -> float:
        """Seconds of a run of so many rows, by the measured curve: the next larger run's, or in proportion beyond."""
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
    make_session: Callable[[int], OrtSession],
) -> tuple[Plan, list[OrtSession]]:
    """Choose the plan of one graph and make its sessions, one for each lane.

    Args:
        sha256: its hash, for the cache.
        first: a loaded session with one thread; used wherever the plan allows.
        golden: recorded rows of every input.
        options: what is set there wins over what is measured.
        make_session: a further session with that many threads.
    """
    cpus = available_cpus()
    inputs = {tensor.name: golden[tensor.name] for tensor in first.spec.inputs}
    cache = None if options.cache is None else options.cache / f"{_key(sha256, first.provider, cpus, options)}.json"
    plan = _read_plan(cache)
    if plan is None:
        plan = _measure(first, inputs, options, cpus, make_session)
        _write_plan(cache, plan)
    return plan, lane_sessions(plan, first, make_session)


def lane_sessions(plan: Plan, first: OrtSession, make_session: Callable[[int], OrtSession]) -> list[OrtSession]:
    """The sessions of one device, one for each of its lanes: all the first, where that has the planned threads."""
    if plan.threads == first.threads:
        return [first] * plan.lanes
    # Threads of one session serve one run at a time: lanes that use several need a session each.
    return [make_session(plan.threads) for _ in range(plan.lanes)]


def planned_for(plan: Plan, devices: tuple[int, ...]) -> Plan:
    """The same plan on these devices."""
    return plan if plan.devices == devices else replace(plan, devices=devices)


def _measure(
    first: OrtSession,
    inputs: Arrays,
    options: EngineOptions,
    cpus: int,
    make_session: Callable[[int], OrtSession],
) -> Plan:
    sizes = {2, 3, options.max_batch, *(2**power for power in range(2, options.max_batch.bit_length()))}
    deadline_s = time.monotonic() + options.profile_s / 2
    if options.profile_s == 0:
        sizes, deadline_s = {2, options.max_batch}, math.inf
    costs, independent = probe(first, inputs, [size for size in sorted(sizes) if size <= options.max_batch], deadline_s)
    splits = _splits(options, cpus, first.provider)
    cap, share, row_s = knee(costs) if independent else (1, 1, costs[1])
    if options.profile_s == 0 and independent:
        cap, share = max(costs), 1
    lanes, threads = splits[0]
    if len(splits) > 1 and options.profile_s > 0:
        window_s = min(options.profile_s / 2 / len(splits), ROUNDS * max(RATE_S, 4 * costs[cap])) / ROUNDS
        rows = resize(inputs, cap)
        sessions = {split: first if split[1] == first.threads else make_session(split[1]) for split in splits}
        rates = dict.fromkeys(splits, 0.0)
        for _ in range(ROUNDS):
            for split in splits:
                rates[split] = max(rates[split], _rate([sessions[split]] * split[0], rows, window_s))
        best = max(rates.values())
        lanes, threads = min(split for split in splits if rates[split] * TIE >= best)
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
    )


def _splits(options: EngineOptions, cpus: int, provider: str) -> list[tuple[int, int]]:
    """(lanes, threads per lane) worth timing; one where the options or the device leave no choice."""
    lanes, threads = options.lanes, options.threads_per_lane
    if lanes is not None or threads is not None or provider != "cpu":
        if provider != "cpu":
            return [(lanes or 1, threads or 1)]
        return [(lanes or max(1, cpus // (threads or 1)), threads or max(1, cpus // (lanes or 1)))]
    widths = {1, cpus} | ({2} if cpus >= 4 else set())
    return [(cpus // width, width) for width in sorted(widths)]


def probe(session: Session, inputs: Arrays, sizes: Sequence[int], deadline_s: float) -> tuple[dict[int, float], bool]:
    """Time runs of growing batches, each holding the first golden row among extreme neighbours.

    Args:
        sizes: rows in a run, ascending, above 1; those that would pass the deadline are left out, but never 2.
        deadline_s: `time.monotonic()`.

    Returns:
        Seconds of a run by its rows, 1 first, and whether the first row's answer was the same bits alone and in every
        batch and position.
    """
    alone = session.run(resize(inputs, 1))
    costs = {1: _time(session, resize(inputs, 1), deadline_s)}
    for size in sizes:
        if size > 2 and time.monotonic() + 3 * size * costs[1] > deadline_s:
            break
        for position in {0, size - 1, size // 2}:
            batch = extreme(inputs, size, position)
            try:
                answer = session.run(batch)
            except RunFailed:  # extremes may be more than a graph can take; a run refuses them, rows stay apart
                continue
            if any(not _same(answer[name][position], alone[name][0]) for name in alone):
                return costs, False
        try:
            costs[size] = _time(session, resize(inputs, size), deadline_s)
        except RunFailed:  # recorded rows, so it is their number: more than fits into memory
            break
    _time_again(session, inputs, costs, deadline_s)
    return costs, True


def _time_again(session: Session, inputs: Arrays, costs: dict[int, float], deadline_s: float) -> None:
    """Once more in turns, where time is left: who was held up the first time is not taken to be slow."""
    for _ in range(ROUNDS - 1):
        for size in costs:
            if time.monotonic() + 3 * costs[size] > deadline_s:
                return
            costs[size] = min(costs[size], _time(session, resize(inputs, size), deadline_s))


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


def resize(inputs: Arrays, rows: int) -> dict[str, np.ndarray]:
    """So many rows, repeating the recorded ones."""
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}


def extreme(inputs: Arrays, rows: int, position: int) -> dict[str, np.ndarray]:
    """The first recorded row at `position` among neighbours at the ends of what the types allow."""
    batch = resize(inputs, rows)
    signs = np.where(np.arange(rows) % 2, -1, 1)
    for name, array in batch.items():
        shape = (rows,) + (1,) * (array.ndim - 1)
        if array.dtype == np.uint8:
            array[...] = np.where(signs > 0, 255, 0).reshape(shape)
        elif array.dtype == np.float32:
            array[...] = array * 100 + 100 * signs.reshape(shape)
        array[position] = inputs[name][0]
    return batch


def _same(answer: np.ndarray, alone: np.ndarray) -> bool:
    return answer.tobytes() == alone.tobytes()


def _time(session: Session, rows: Arrays, deadline_s: float) -> float:
    """Seconds of a run: the least of three or more, for anything else that ran meanwhile only adds.

    Short runs are repeated for TIME_S, longer than a busy machine usually takes a core away.
    """
    best, began_s = math.inf, time.monotonic()
    for repeat in range(100):
        started_s = time.perf_counter()
        session.run(rows)
        best = min(best, time.perf_counter() - started_s)
        now_s = time.monotonic()
        if now_s > deadline_s or (repeat >= 2 and now_s - began_s > TIME_S):
            break
    return best


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


def _key(sha256: str, provider: str, cpus: int, options: EngineOptions) -> str:
    """What a measured plan depends on."""
    facts = [PLAN_SCHEMA, sha256, provider, cpus, ort.__version__, platform.machine(), _processor()]
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
        return Plan(**{**fields, "costs": costs, "source": "cached", "devices": (0,)})
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
