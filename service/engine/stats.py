"""What a batcher tells of itself: gauges as they stand, totals since the model was loaded."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

K = TypeVar("K", int, str)


@dataclass(frozen=True)
class BatcherStats:
    """Gauges as they stand, and totals since the model was loaded."""

    queue_rows: int
    queue_age_s: float
    lanes: int
    lanes_busy: int
    row_s: float
    runs_total: int
    rows_total: int
    run_s_total: float
    batch_rows: dict[int, int]
    failures_total: int
    apart_total: int
    ended_total: dict[str, int]
    rejected_total: dict[str, int]
    hung_total: int = 0
    lanes_replaced_total: int = 0
    gone: bool = False
    """Whether there are totals alone, of a model that is no longer there."""
    promised_rows: int = 0
    """Rows of refused clients that are expected to come back at the time they were told."""


def sum_stats(graphs: Sequence[BatcherStats]) -> BatcherStats:
    """A model's graphs together: an image waits for the oldest row and costs the seconds of all."""
    return BatcherStats(
        queue_rows=sum(graph.queue_rows for graph in graphs),
        queue_age_s=max(graph.queue_age_s for graph in graphs),
        lanes=sum(graph.lanes for graph in graphs),
        lanes_busy=sum(graph.lanes_busy for graph in graphs),
        row_s=sum(graph.row_s for graph in graphs),
        runs_total=sum(graph.runs_total for graph in graphs),
        rows_total=sum(graph.rows_total for graph in graphs),
        run_s_total=sum(graph.run_s_total for graph in graphs),
        batch_rows=_sum_counts(graph.batch_rows for graph in graphs),
        failures_total=sum(graph.failures_total for graph in graphs),
        apart_total=sum(graph.apart_total for graph in graphs),
        ended_total=_sum_counts(graph.ended_total for graph in graphs),
        rejected_total=_sum_counts(graph.rejected_total for graph in graphs),
        hung_total=sum(graph.hung_total for graph in graphs),
        lanes_replaced_total=sum(graph.lanes_replaced_total for graph in graphs),
        promised_rows=sum(graph.promised_rows for graph in graphs),
    )


def followed(before: BatcherStats, after: BatcherStats) -> BatcherStats:
    """Two models of one version, the second in the first one's place: everything is added up but what a row takes."""
    return replace(sum_stats([before, after]), row_s=after.row_s)


def totals_of(stats: BatcherStats) -> BatcherStats:
    """What stays of a model that is gone: no gauge stands any more."""
    return replace(stats, queue_rows=0, queue_age_s=0.0, lanes=0, lanes_busy=0, row_s=0.0, promised_rows=0, gone=True)


def _sum_counts(counts: Iterable[Mapping[K, int]]) -> dict[K, int]:
    total: Counter[K] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
