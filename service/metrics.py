"""Every Prometheus series of the server. docs/metrics.md lists them; a test keeps it so.

One registry per app, no module-level state. Counters and stage times come from finished requests (`observe`); what the
engine knows itself is read from it at each scrape, so it can never drift from the truth. Label values are bounded:
`model` is a loaded model's `name@version` or `other`, never what a client sent.

Requests end and scrapes happen on one event loop's thread, so that counting one is a few dictionary look-ups: no locks,
and the text is made at the scrape.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from service import process
from service.demand import Demand
from service.exposition import Page, labelled

if TYPE_CHECKING:
    from service.engine.engine import Engine, ModelStats
    from service.engine.memory import MemoryStats

STAGE_BUCKETS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Half-decades from a header's parsing to the default deadline."""

LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LAG_PERIOD_S = 0.05
"""Between two looks at the event loop's lag: enough of them for a share of a hundredth within a minute."""
LOOKED_EVERY = 5
"""So many of these go by between two looks at how busy the replica is."""
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
UNKNOWN = "other"
"""The model of requests that named none that is loaded."""
GONE_S = 900.0
"""A version that was unloaded keeps its series for so long: what looks at a quarter of an hour sees all of it."""
GONE_KEPT = 16
"""And so many such versions at most: a scrape's size must not grow with every version that ever served."""


class Observed(Protocol):
    """What a finished request tells the metrics; see `service.api.record`."""

    model: str
    task: str
    status: int
    images: int
    stages: dict[str, float]
    rejected: str | None
    coalesced: bool


class Histogram:
    """How many values fell in each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class _Served:
    """What was done for one model and task: requests by status, images, stages by name."""

    __slots__ = ("coalesced", "gone_s", "images", "labels", "stages", "statuses")

    def __init__(self, model: str, task: str) -> None:
        self.gone_s: float | None = None  # since when its model is no longer there
        self.labels = {"model": model, "task": task}
        self.statuses: dict[int, int] = {}
        self.images = 0
        self.coalesced = 0
        self.stages: dict[str, Histogram] = {}


class Metrics:
    """The series of one app.

    Args:
        engine: asked for its stats at each scrape.
        build: label values of `ganymede_build_info`, e.g. version and onnxruntime.
    """

    def __init__(self, engine: "Engine", build: Mapping[str, str]) -> None:
        self.in_flight = 0
        """Requests that are being answered; whoever attaches the record counts them."""
        self._engine = engine
        self._build = dict(build)
        self._served: dict[tuple[str, str], _Served] = {}
        self._rejected: dict[str, int] = {}
        self._lag = Histogram(LAG_BUCKETS_S)
        self._demand = Demand()

    def observe(self, record: Observed) -> None:
        """Count one finished request."""
        served = self._served.get((record.model, record.task))
        if served is None:
            served = self._served[record.model, record.task] = _Served(record.model, record.task)
        served.statuses[record.status] = served.statuses.get(record.status, 0) + 1
        served.images += record.images
        served.coalesced += record.coalesced
        if record.rejected is not None:
            self._rejected[record.rejected] = self._rejected.get(record.rejected, 0) + 1
        stages = served.stages
        for name, seconds in record.stages.items():
            if name not in stages:
                stages[name] = Histogram(STAGE_BUCKETS_S)
            stage = stages[name]
            stage.counts[bisect_left(STAGE_BUCKETS_S, seconds)] += 1  # `observe` without its call, for every request
            stage.sum += seconds

    def expose(self, *, as_openmetrics: bool) -> tuple[bytes, str]:
        """The scrape's body and content type."""
        page = Page(openmetrics=as_openmetrics)
        memory = self._engine.memory()
        stats = self._engine.stats()
        self._forget_gone({*_present(stats), *self._engine.asleep}, time.monotonic())
        self._write_requests(page)
        _write_models(page, stats)
        page.family("ganymede_replicas_wanted", "gauge", "Replicas that the load of this one wants; add up over all.")
        page.sample(self.replicas_wanted())
        _write_memory(page, memory)
        _write_process(page, memory.resident_bytes)
        self._write_facts(page)
        return page.body(), page.content_type

    def replicas_wanted(self) -> float:
        """The gauge's value alone, for autoscalers that do not scrape; call in the event loop's thread."""
        return self._demand.wanted(time.monotonic(), time.thread_time(), self._engine.serving_stats())

    async def watch_loop(self) -> None:
        """Measure the event loop's lag, and how busy the replica is, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(LOOKED_EVERY):
                due = loop.time() + LAG_PERIOD_S
                await asyncio.sleep(LAG_PERIOD_S)
                self._lag.observe(max(0.0, loop.time() - due))
            stats = self._engine.stats()
            self._demand.look(time.monotonic(), time.thread_time(), self._engine.serving_stats())
            self._forget_gone({*_present(stats), *self._engine.asleep}, time.monotonic())

    def _forget_gone(self, present: set[str], now_s: float) -> None:
        """Drop the series of versions that are gone for long, or of the longest gone where there are many."""
        gone: dict[str, float] = {}
        for (model, _), served in self._served.items():
            if model in present or model == UNKNOWN:
                served.gone_s = None
                continue
            if served.gone_s is None:
                served.gone_s = now_s
            gone[model] = served.gone_s
        stay = {model for model in sorted(gone, key=gone.__getitem__)[-GONE_KEPT:] if now_s - gone[model] <= GONE_S}
        if len(stay) < len(gone):
            self._served = {key: one for key, one in self._served.items() if key[0] not in gone or key[0] in stay}

    def _write_requests(self, page: Page) -> None:
        every = list(self._served.values())
        page.family("ganymede_requests", "counter", "HTTP requests answered; code 499 is a client that left.")
        for served in every:
            page.samples((n, labelled(**served.labels, code=str(code))) for code, n in served.statuses.items())
        page.family("ganymede_images", "counter", "Images returned to clients.")
        page.samples((served.images, labelled(**served.labels)) for served in every if served.images)
        page.family("ganymede_requests_coalesced", "counter", "Requests answered by another request's run.")
        page.samples((served.coalesced, labelled(**served.labels)) for served in every if served.coalesced)
        page.family("ganymede_stage_seconds", "histogram", "Time of one request in each stage.")
        for served in every:
            for name, stage in served.stages.items():
                page.histogram(stage.bounds, stage.counts, stage.sum, labelled(**served.labels, stage=name))
        page.family("ganymede_requests_in_flight", "gauge", "HTTP requests that are being answered.")
        page.sample(self.in_flight)
        page.family("ganymede_rejected", "counter", "Requests refused before they were served.")
        page.samples((count, labelled(reason=reason)) for reason, count in self._rejected.items())
        page.family("ganymede_event_loop_lag_seconds", "histogram", "How late the event loop woke from a timed sleep.")
        page.histogram(self._lag.bounds, self._lag.counts, self._lag.sum)

    def _write_facts(self, page: Page) -> None:
        page.family("ganymede_model_info", "gauge", "1 for each loaded model.")
        for model in self._engine.models():
            manifest, providers = model.manifest, ",".join(model.providers)
            page.sample(1, labelled(model=manifest.ref, family=manifest.family, provider=providers))
        page.family("ganymede_models_asleep", "gauge", "Models that are loaded when somebody asks for them.")
        page.sample(len(self._engine.asleep))
        page.family("ganymede_models_refused", "gauge", "Model folders that failed verification.")
        page.sample(len(self._engine.refused))
        page.family("ganymede_build_info", "gauge", "1; the labels say what runs.")
        page.sample(1, labelled(**self._build))


def _write_models(page: Page, stats: "Mapping[str, ModelStats]") -> None:
    for kind, table, told in (("gauge", _GAUGES, _present(stats)), ("counter", _COUNTERS, stats)):
        for name, text, read in table:
            page.family(name, kind, text)
            page.samples((read(values), labelled(model=model)) for model, values in told.items())
    page.family("ganymede_entries", "counter", "Entries of the queue by how they ended.")
    for model, values in stats.items():
        page.samples((count, labelled(model=model, end=end)) for end, count in values.ended_total.items())
    page.family("ganymede_batch_rows", "histogram", "Rows in one run.")
    for model, values in stats.items():
        counts = [0] * (len(ROW_BUCKETS) + 1)
        for rows, runs in values.batch_rows.items():
            counts[bisect_left(ROW_BUCKETS, rows)] += runs
        total = sum(rows * runs for rows, runs in values.batch_rows.items())
        page.histogram(ROW_BUCKETS, counts, total, labelled(model=model))


def _write_memory(page: Page, memory: "MemoryStats") -> None:
    """What models hold, as far as the systems tell; a GPU's series are there where there is one."""
    page.family("ganymede_arena_shrinks", "counter", "Times that idle models gave memory back.")
    page.sample(memory.shrinks_total)
    page.family("ganymede_arena_given_back_bytes", "counter", "Memory that idle models gave back.")
    page.sample(memory.given_back_bytes_total)
    page.family("ganymede_models_woken", "counter", "Models loaded because somebody asked for them.")
    page.sample(memory.woken_total)
    page.family("ganymede_models_evicted", "counter", "Models that gave way to others for lack of room.")
    page.sample(memory.evicted_total)
    page.family("ganymede_heap_bytes", "gauge", "Memory of the C library: weights, arenas on the CPU, images.")
    page.samples((held, labelled(state=state)) for state, held in process.heap_bytes().items())
    page.family("ganymede_device_memory_used_bytes", "gauge", "Memory of a device in use, by all processes.")
    page.samples((device.used_bytes, labelled(device=str(n))) for n, device in memory.devices.items())
    page.family("ganymede_device_memory_bytes", "gauge", "Memory of a device.")
    page.samples((device.total_bytes, labelled(device=str(n))) for n, device in memory.devices.items())


def _write_process(page: Page, resident_bytes: int | None) -> None:
    """The series that every Prometheus client has, under their usual names."""
    page.family("process_cpu_seconds", "counter", "Total user and system CPU time spent in seconds.")
    page.sample(process.cpu_s())
    for name, text, value in (
        ("resident_memory_bytes", "Resident memory size in bytes.", resident_bytes),
        ("virtual_memory_bytes", "Virtual memory size in bytes.", process.virtual_bytes()),
        ("start_time_seconds", "Start time of the process since unix epoch in seconds.", process.started_s()),
        ("open_fds", "Number of open file descriptors.", process.open_files()),
        ("max_fds", "Maximum number of open file descriptors.", process.most_files()),
    ):
        if value is not None:
            page.family(f"process_{name}", "gauge", text)
            page.sample(value)


def _present(stats: "Mapping[str, ModelStats]") -> "dict[str, ModelStats]":
    """Without the versions that are gone, of which there are totals alone."""
    return {model: values for model, values in stats.items() if not values.gone}


def _ratio(stats: "ModelStats") -> float:
    return stats.lanes_busy / stats.lanes if stats.lanes else 0.0


_Read = Callable[["ModelStats"], float]
_GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("ganymede_queue_rows", "Rows waiting for a lane.", lambda stats: stats.queue_rows),
    ("ganymede_queue_age_seconds", "Age of the oldest waiting row.", lambda stats: stats.queue_age_s),
    ("ganymede_lanes", "Lanes that can run.", lambda stats: stats.lanes),
    ("ganymede_lanes_busy", "Lanes that are running.", lambda stats: stats.lanes_busy),
    ("ganymede_lanes_busy_ratio", "Share of the lanes that are running.", _ratio),
)
_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("ganymede_runs", "Session runs.", lambda stats: stats.runs_total),
    ("ganymede_rows", "Rows run.", lambda stats: stats.rows_total),
    ("ganymede_run_seconds", "Seconds that lanes spent in runs.", lambda stats: stats.run_s_total),
    ("ganymede_rows_apart", "Rows run again alone after their batch failed.", lambda stats: stats.apart_total),
    ("ganymede_run_failures", "Runs that raised or answered wrongly.", lambda stats: stats.failures_total),
    ("ganymede_runs_hung", "Runs that did not come back in time and were ended.", lambda stats: stats.hung_total),
    (
        "ganymede_lanes_replaced",
        "Lanes given up because their run could not be ended.",
        lambda stats: stats.lanes_replaced_total,
    ),
)
