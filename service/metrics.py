"""Every Prometheus series of the server. docs/metrics.md lists them; a test keeps it so.

One registry per app, no module-level state. Counters and stage times come from finished requests (`observe`); what the
engine knows itself is read from `engine.stats()` at each scrape, so it can never drift from the truth. Label values are
bounded: `model` is a loaded model's `name@version` or `other`, never what a client sent.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from service.engine.engine import Engine, ModelStats

disable_created_metrics()  # type: ignore[no-untyped-call]
# A second series for each counter that says when it began: nothing here reads it, and it doubles the scrape.

TEXT = "text/plain; version=0.0.4; charset=utf-8"

STAGE_BUCKETS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Half-decades from a header's parsing to the default deadline."""

LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LAG_PERIOD_S = 0.25
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Observed(Protocol):
    """What a finished request tells the metrics; see `service.api.record`."""

    model: str
    task: str
    status: int
    images: int
    stages: dict[str, float]
    rejected: str | None


class Metrics:
    """The series of one app.

    Args:
        engine: asked for its stats at each scrape.
        build: label values of `ganymede_build_info`, e.g. version and onnxruntime.
    """

    def __init__(self, engine: "Engine", build: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ganymede_requests",
            "HTTP requests answered; code 499 is a client that left.",
            ["model", "task", "code"],
            registry=self.registry,
        )
        self._images = Counter(
            "ganymede_images", "Images returned to clients.", ["model", "task"], registry=self.registry
        )
        self._stages = Histogram(
            "ganymede_stage_seconds",
            "Time of one request in each stage.",
            ["model", "task", "stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self._rejected = Counter(
            "ganymede_rejected", "Requests refused before they were served.", ["reason"], registry=self.registry
        )
        self._lag = Histogram(
            "ganymede_event_loop_lag_seconds",
            "How late the event loop woke from a timed sleep.",
            buckets=LAG_BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(engine, dict(build)))
        ProcessCollector(registry=self.registry)

    def observe(self, record: Observed) -> None:
        """Count one finished request."""
        self._requests.labels(record.model, record.task, str(record.status)).inc()
        if record.images:
            self._images.labels(record.model, record.task).inc(record.images)
        if record.rejected is not None:
            self._rejected.labels(record.rejected).inc()
        for stage, seconds in record.stages.items():
            self._stages.labels(record.model, record.task, stage).observe(seconds)

    def expose(self, *, as_openmetrics: bool) -> tuple[bytes, str]:
        """The scrape's body and content type."""
        if as_openmetrics:
            body: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self.registry), TEXT

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self._lag.observe(max(0.0, loop.time() - due))


class _EngineCollector(Collector):
    """Reads the engine at scrape time."""

    def __init__(self, engine: "Engine", build: dict[str, str]) -> None:
        self._engine = engine
        self._build = build

    def describe(self) -> Iterable[Metric]:
        return list(self._families({}))

    def collect(self) -> Iterator[Metric]:
        yield from self._families(self._engine.stats())
        info = GaugeMetricFamily(
            "ganymede_model_info", "1 for each loaded model.", labels=["model", "family", "provider"]
        )
        for model in self._engine.models():
            manifest = model.manifest
            info.add_metric([manifest.ref, manifest.family, ",".join(model.providers)], 1)
        yield info
        refused = GaugeMetricFamily("ganymede_models_refused", "Model folders that failed verification.")
        refused.add_metric([], len(self._engine.refused))
        yield refused
        build = GaugeMetricFamily("ganymede_build_info", "1; the labels say what runs.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build

    def _families(self, stats: "Mapping[str, ModelStats]") -> Iterator[Metric]:
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model, values in stats.items():
                gauge.add_metric([model], read(values))
            yield gauge
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model, values in stats.items():
                counter.add_metric([model], read(values))
            yield counter
        ends = CounterMetricFamily(
            "ganymede_entries", "Entries of the queue by how they ended.", labels=["model", "end"]
        )
        for model, values in stats.items():
            for end, count in values.ended_total.items():
                ends.add_metric([model, end], count)
        yield ends
        rows = HistogramMetricFamily("ganymede_batch_rows", "Rows in one run.", labels=["model"])
        for model, values in stats.items():
            counts = values.batch_rows
            rows.add_metric([model], _cumulative(counts), sum(size * runs for size, runs in counts.items()))
        yield rows


def _cumulative(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """Runs by exact size as cumulative buckets."""
    bounds = [(f"{bound}.0", bound) for bound in ROW_BUCKETS]
    buckets = [(text, float(sum(runs for size, runs in counts.items() if size <= bound))) for text, bound in bounds]
    return [*buckets, ("+Inf", float(sum(counts.values())))]


_Read = Callable[["ModelStats"], float]
_GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("ganymede_queue_rows", "Rows waiting for a lane.", lambda stats: stats.queue_rows),
    ("ganymede_queue_age_seconds", "Age of the oldest waiting row.", lambda stats: stats.queue_age_s),
    ("ganymede_lanes", "Lanes that can run.", lambda stats: stats.lanes),
    ("ganymede_lanes_busy", "Lanes that are running.", lambda stats: stats.lanes_busy),
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
