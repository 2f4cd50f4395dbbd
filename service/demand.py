"""How many replicas the load of this one wants: figures in, one figure out; docs/metrics.md states the formula.

The figures of all replicas add up: what autoscalers, alerts and people read is their sum, rounded up.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.engine.engine import ModelStats

TARGET_UTILISATION = 0.7
"""Share of a replica's time that is spent at most: beyond it waiting times grow steeply, and what a lost replica did
finds no room at the others."""
CLEAR_S = 10.0
"""Seconds within which what waits should be worked off. About as long as a replica takes to start; shorter would ask
for machines that come when the work is done."""
WINDOW_S = 15.0
"""Utilisation is over so long: three of the shipped configuration's scrapes; one burst should not start a machine."""


@dataclass(frozen=True)
class Spent:
    """What has been spent until a moment.

    Args:
        at_s: the moment, of a clock that only rises.
        loop_s: CPU time of the event loop's thread.
        waits_s: time in which rows waited for a lane.
        runs_s: seconds of runs by model, divided by the model's lanes.
    """

    at_s: float
    loop_s: float
    waits_s: float
    runs_s: Mapping[str, float]


def replicas_wanted(utilisation: float, backlog_s: float) -> float:
    """Replicas, and parts of one, that one replica's load wants.

    Args:
        utilisation: share of the time in which it was busy, 0 to 1.
        backlog_s: seconds that it takes to work off what waits for it.
    """
    return max(0.0, utilisation) / TARGET_UTILISATION + max(0.0, backlog_s) / CLEAR_S


def utilisation(before: Spent, after: Spent) -> float:
    """Share of the time between two moments in which the replica was busy, 0 to 1: the largest of three shares.

    That in which lanes ran: those of all models share the same cores or devices, so their shares add up; what was not
    there at both moments counts as idle. That in which the event loop's thread computed. And that in which rows waited:
    where others take the cores, a replica is at its limit though its own threads are often idle.
    """
    seconds = after.at_s - before.at_s
    if seconds <= 0:
        return 0.0
    both = after.runs_s.keys() & before.runs_s.keys()
    runs_s = sum(max(0.0, after.runs_s[model] - before.runs_s[model]) for model in both)
    return min(1.0, max(runs_s, after.loop_s - before.loop_s, after.waits_s - before.waits_s, 0.0) / seconds)


def backlog_s(stats: "Mapping[str, ModelStats]") -> float:
    """Seconds that the lanes take for what waits.

    What was refused does not count: clients that come back at once would ask for a machine each.
    """
    return sum(model.queue_rows * model.row_s / model.lanes for model in stats.values() if model.lanes)


class Demand:
    """Remembers what was spent over the last WINDOW_S."""

    def __init__(self) -> None:
        self._seen: deque[Spent] = deque()

    def look(self, at_s: float, loop_s: float, stats: "Mapping[str, ModelStats]") -> None:
        """Remember this moment; call several times a second.

        Args:
            at_s: now, of a clock that only rises.
            loop_s: CPU time of the event loop's thread so far.
            stats: the engine's.
        """
        now = self._now(at_s, loop_s, stats)
        self._seen.append(now)
        while now.at_s - self._seen[0].at_s > WINDOW_S:
            self._seen.popleft()

    def wanted(self, at_s: float, loop_s: float, stats: "Mapping[str, ModelStats]") -> float:
        """The gauge's value; arguments as of `look`."""
        busy = utilisation(self._seen[0], self._now(at_s, loop_s, stats)) if self._seen else 0.0
        return replicas_wanted(busy, backlog_s(stats))

    def _now(self, at_s: float, loop_s: float, stats: "Mapping[str, ModelStats]") -> Spent:
        last = self._seen[-1] if self._seen else Spent(at_s, loop_s, 0.0, {})
        waiting = any(model.queue_rows for model in stats.values())
        waits_s = last.waits_s + (at_s - last.at_s if waiting else 0.0)
        runs_s = {ref: model.run_s_total / model.lanes for ref, model in stats.items() if model.lanes}
        return Spent(at_s, loop_s, waits_s, runs_s)
