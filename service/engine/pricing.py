"""What waiting costs: when a request's rows would be finished, and when a client that was refused should come again.

Arithmetic on what the batcher tells it; no event loop, no lanes, no clock of its own.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

PRIORITIES = 10
"""Priorities run from 1 to 9; lists are indexed by them."""

WINDOW_S = 1.0
"""Lane seconds over which measured runs are averaged: some runs of any model, and short against a change of load."""
SLOWEST, FASTEST = 0.02, 0.3
"""Bounds of one run's weight in that average."""
TICK_S = 1e-6
"""No run takes less."""
LONG = 20.0
"""So many times as long is the average that long waits are reckoned by."""

ARRIVALS_S = 0.25
"""Seconds over which arrivals are averaged: what matters is who else will ride in the next run."""

MARGIN_ENTRIES, MARGIN_EVERY = 1024, 8
"""The margin is such that of so many last entries none finished later than its price and it; looked at anew after each
so many."""
MARGINS = (0.25, 1.5)
"""Least and most of it; in standard deviations of a wait in which each run takes its time or none of it."""

GRACE_S, GRACE_SHARE = 1.5, 0.1
"""A promised place is kept so long after its time, and longer by this share of the wait that was told: `Retry-After`
is in whole seconds, and clients add jitter."""
MAX_PROMISES = 10_000
"""Places promised at once; beyond it, clients are told their time without a place."""
SHOW_WEIGHT = 0.02
"""Weight of the newest promise in the share of clients that come back: follows within some fifty of them."""
LATE_S = 0.05
"""Whoever comes back at the moment told has come by so much later."""
COHORT = 16
"""Promises, the newest whose moment is past, by which it is seen that clients have begun to come back."""


class RunCosts:
    """Seconds that a lane is taken by a run of so many rows: the curve measured at load, times what runs took lately.

    Args:
        curve: seconds of a run by its rows, as measured on an idle machine.
    """

    def __init__(self, curve: Callable[[int], float]) -> None:
        self._curve = curve
        self._measured: dict[int, float] = {}
        self._ratios: dict[int, float] = {}
        self._ratio = self._steady = 1.0
        self._runs = 0

    def least_s(self, rows: int) -> float:
        """As measured at load or lately, whichever is less."""
        return self.curve_s(rows) * min(1.0, self._ratios.get(rows, self._ratio))

    def run_s(self, rows: int) -> float:
        """As runs of so many rows took lately, or as runs of other sizes did in proportion."""
        return self.curve_s(rows) * self._ratios.get(rows, self._ratio)

    @property
    def slack(self) -> float:
        """At least 1: times what runs took lately, what they took over a longer while.

        A machine that is shared is now faster and now slower; who is told to come in ten seconds meets the mean of it.
        """
        return max(1.0, self._steady / self._ratio)

    def observe(self, rows: int, seconds: float) -> None:
        """A lane was taken so long by a run of so many rows."""
        ratio = max(seconds, TICK_S) / self.curve_s(rows)  # some clocks tick so seldom that a run takes no time
        weight = min(FASTEST, max(SLOWEST, seconds / WINDOW_S))
        self._runs += 1
        self._ratio += max(weight, 1 / (self._runs + 1)) * (ratio - self._ratio)
        self._steady += max(weight / LONG, 1 / (self._runs + 1)) * (ratio - self._steady)
        known = self._ratios.get(rows)
        self._ratios[rows] = ratio if known is None else known + weight * (ratio - known)

    def curve_s(self, rows: int) -> float:
        """As measured at load."""
        seconds = self._measured.get(rows)
        if seconds is None:
            seconds = self._measured[rows] = max(1e-9, self._curve(rows))
        return seconds


class Arrivals:
    """Rows per second that came lately."""

    def __init__(self, window_s: float = ARRIVALS_S) -> None:
        self._window_s = window_s
        self._rows = 0.0
        self._at_s = -math.inf

    def count(self, rows: int, now_s: float) -> None:
        """So many rows came."""
        self._rows = self._rows * math.exp((self._at_s - now_s) / self._window_s) + rows
        self._at_s = now_s

    def rate(self, now_s: float) -> float:
        """Rows per second."""
        return self._rows * math.exp((self._at_s - now_s) / self._window_s) / self._window_s


def begun_s(row: int, ends_s: Sequence[float], run_s: float, batch: int) -> float:
    """Seconds until a lane begins with the queue's row of this number (from 1), lanes taking full batches in turn.

    Args:
        row: its place in the queue; 1 or less is the head.
        ends_s: seconds until each lane is free, ascending.
        run_s: seconds of a full batch.
        batch: rows in it.
    """
    turn = max(0, row - 1) // batch
    rounds, lane = divmod(turn, len(ends_s))
    # A lane that is taken for longer than another's whole next run is overtaken by it.
    return min(ends_s[lane], ends_s[0] + run_s) + rounds * run_s


def left_s(expected_s: float, elapsed_s: float) -> float:
    """Seconds that a run still takes; one that is late already will be later yet, by half of what it is late."""
    left = expected_s - elapsed_s
    return left if left >= 0 else -left / 2


class Margin:
    """What must be added to prices so that hardly an entry finishes later than that.

    Runs that each vary by themselves make a wait vary by the root of their number, so errors are counted in that unit:
    what short waits teach holds for long ones.
    """

    def __init__(self) -> None:
        self.errors = 0.4
        self._beyond: deque[float] = deque(maxlen=MARGIN_ENTRIES)
        self._observed = 0

    def limit_s(self, seconds: float, run_s: float) -> float:
        """The highest price with which an entry still finishes within so many seconds, runs taking `run_s`."""
        spread = self.errors * math.sqrt(run_s) / 2
        return (math.sqrt(seconds + spread * spread) - spread) ** 2 if 0 < seconds < math.inf else seconds

    def observe(self, priced_s: float, took_s: float, run_s: float) -> None:
        """An entry that was priced has finished, or ran out of time.

        Waits of a run or two say little: much of them is who else comes to ride along.
        """
        if priced_s < 2 * run_s:
            return
        self._beyond.append((took_s - priced_s) / math.sqrt(priced_s * run_s))
        self._observed += 1
        if self._observed % MARGIN_EVERY == 0 and len(self._beyond) >= MARGIN_ENTRIES // 32:
            self.errors = min(MARGINS[1], max(MARGINS[0], max(self._beyond)))


@dataclass(eq=False, slots=True)
class Promise:
    """A place in the queue that a refused client was told to come back for, in seconds of the batcher's clock."""

    key: Hashable
    rows: int
    priority: int
    due_s: float
    until_s: float
    again: bool = False
    """For a client that had come back already, in vain."""
    open: bool = True
    missing: bool = False
    """Its moment is past, and the client has not come."""
    kept: bool = False
    """The client has come back."""


class Promises:
    """The clients that were refused and told when to come again: a line outside of the queue, each with its place.

    Without it all who are refused within a second would be told the same moment, and most of them in vain. Clients are
    known again by what they ask for. Not all come back, so the line counts by the share that did lately: of all that
    were waited for to the end, or of those refused last whose moment is past, whichever is more. The former is known
    too late where clients begin to come back, and a place too few is worse than one too many: a place that nobody
    takes goes to a newcomer, but who finds none has come back in vain. Whoever is late already counts by the share of
    the late that still came.
    """

    def __init__(self) -> None:
        self._by_key: dict[Hashable, deque[Promise]] = {}
        self._by_end: list[tuple[float, int, Promise]] = []
        self._by_due: list[tuple[float, int, Promise]] = []
        self._lately: list[tuple[int, Promise]] = []  # a heap, the one booked first at its top
        self._booked = 0
        self._open = 0
        self._rows = [0] * PRIORITIES  # promised
        self._missing = [0] * PRIORITIES  # promised for a moment that is past
        self._shown = self._share = self._late = 1.0

    def __len__(self) -> int:
        return self._open

    def rows(self, priority: int = PRIORITIES) -> int:
        """Rows that are expected to come back and go before those of a newcomer of this priority."""
        to_come, missing = sum(self._rows[: priority + 1]), sum(self._missing[: priority + 1])
        return math.ceil(to_come * self._share + missing * self._late)

    @property
    def share(self) -> float:
        """Of those whose moment is still to come, how many are expected then."""
        return self._share

    def find(self, key: Hashable) -> Promise | None:
        """The earliest open promise to such a client."""
        line = self._by_key.get(key)
        return line[0] if line else None

    def book(self, key: Hashable, rows: int, priority: int, now_s: float, due_s: float, *, again: bool = False) -> None:
        """Promise a place, unless there are too many of them.

        Args:
            again: the client had come back already; whether it will once more says nothing of others.
        """
        if self._open >= MAX_PROMISES:
            return
        until_s = due_s + GRACE_S + GRACE_SHARE * (due_s - now_s)
        promise = Promise(key, rows, priority, due_s, until_s, again)
        self._by_key.setdefault(key, deque()).append(promise)
        self._booked += 1
        heapq.heappush(self._by_end, (until_s, self._booked, promise))
        heapq.heappush(self._by_due, (due_s + LATE_S, self._booked, promise))
        self._open += 1
        self._rows[priority] += rows

    def close(self, promise: Promise, shown: bool) -> None:
        """The client has come, or will not."""
        promise.open, promise.kept = False, shown
        self._open -= 1
        (self._missing if promise.missing else self._rows)[promise.priority] -= promise.rows
        line = self._by_key[promise.key]
        line.remove(promise)
        if not line:
            del self._by_key[promise.key]
        if not promise.again:
            self._shown += SHOW_WEIGHT * (shown - self._shown)
        if promise.missing:
            self._late += SHOW_WEIGHT * (shown - self._late)

    def sweep(self, now_s: float) -> None:
        """Give up those whose time has passed, and see who has come back."""
        while self._by_due and self._by_due[0][0] <= now_s:
            _, number, promise = heapq.heappop(self._by_due)
            if promise.open:
                promise.missing = True
                self._rows[promise.priority] -= promise.rows
                self._missing[promise.priority] += promise.rows
            if not promise.again:
                heapq.heappush(self._lately, (number, promise))
                if len(self._lately) > COHORT:
                    heapq.heappop(self._lately)
        lately = sum(promise.kept for _, promise in self._lately) / len(self._lately) if self._lately else 0.0
        self._share = max(self._shown, lately)
        while self._by_end and (self._by_end[0][0] <= now_s or not self._by_end[0][2].open):
            promise = heapq.heappop(self._by_end)[2]
            if promise.open:
                self.close(promise, False)
