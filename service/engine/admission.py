"""Who may queue: each request is priced on arrival, and what cannot be served in time is refused with the time to
come again.

An idle lane refuses nobody: its run costs nobody else anything, and keeps the prices true.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from service.engine.fairness import Share, level, slowness
from service.engine.pricing import PRIORITIES, Arrivals, Margin, Promises, RunCosts, begun_s
from service.errors import Overloaded

REPLY_S = 0.005
"""Seconds of a deadline that are left for encoding and writing the answer."""
HEADROOM, HEADROOM_LIMIT = 0.15, 0.35
"""Clients are told to come later than their place is expected to be free: by a share of the wait, less where it is
shorter than what may be waited in the queue, and no more than a share of that..."""
HEADROOM_RUN, HEADROOM_S = 0.25, 0.03
"""... and by a share of a run, but no more than so many seconds."""
ABREAST = 1.2
"""Whoever is refused is told to come after those who were told before, even where runs have become faster since: else
all would come at once who are refused while that happens. But no later than by this factor."""
DEMAND_S = 1.0
"""Seconds over which it is averaged what a client asks for: some requests of those who ask now and then."""
LEVEL_S = 0.02
"""How often it is reckoned anew what that leaves for each."""
LEAST_RATE = 0.01
"""Rows a second below which a client is forgotten."""
MOST_ROWS = 2.0
"""Rows that may wait where clients take turns, as a multiple of what may otherwise: each new client may queue
something, and addresses are many. Beyond it nobody is let in before others."""
MOST_GATES = 1000
"""Clients whose promises and margins are remembered, the last asked for longest."""
EARLY_S = 0.005
"""Whoever comes back so much before the time is on time: clocks and timers are no better."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request at the gate. `left_s`: until its deadline, infinite without one. `key`: what it asks for; `common`:
    whether strangers often ask for the same, so that who finds a promise need not be the one who was told."""

    rows: int
    priority: int
    left_s: float
    key: Callable[[], Hashable]
    common: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """The queue as a newcomer of some priority sees it.

    Args:
        now_s: the batcher's clock.
        waiting: rows queued.
        ahead: those of them that go first.
        ends_s: seconds until each lane is free, ascending.
        batch: rows that a run takes while more wait.
        slow: where clients take turns, `waiting` are a client's own rows, and the machine is so many times slower for
            them; see `fairness.slowness`. `ahead` counts others' in between.
    """

    now_s: float
    waiting: int
    ahead: int
    ends_s: list[float]
    batch: int
    slow: float = 1.0


class Gate:
    """Prices requests and keeps the promises made to those that were refused.

    Args:
        name: the model's, for errors.
        costs: seconds of a run.
        max_rows: rows that may wait.
        max_s: seconds after which the last of them must be finished, by their price.
    """

    def __init__(self, name: str, costs: RunCosts, max_rows: int, max_s: float = math.inf) -> None:
        self.name = name
        self.costs = costs
        self.max_rows = max_rows
        self.max_s = max_s
        self.margin = Margin()
        self.promises = Promises()
        self.arrivals = Arrivals()
        self._next_s = [-math.inf] * PRIORITIES
        self._moved_s = -math.inf

    def done_s(self, line: Line, ahead: int, rows: int) -> float:
        """Seconds until so many rows behind `ahead` others are finished, together with who comes meanwhile."""
        last = ahead + rows
        begun = begun_s(last, line.ends_s, self.costs.run_s(line.batch), line.batch)
        joining = line.batch if self.promises else round(self.arrivals.rate(line.now_s) * begun)
        return begun + self.costs.run_s(min(line.batch, (last - 1) % line.batch + 1 + joining))

    def admit(self, asked: Asked, line: Line) -> float:
        """The price: seconds until the request will be finished.

        Raises:
            Overloaded: the queue is full, or the deadline cannot be met; with the time after which the same request
                will be accepted, its place kept for it.
        """
        rows, promises = asked.rows, self.promises
        done_s = self.done_s(line, line.ahead, rows)
        deadline_s = self.margin.limit_s(asked.left_s - REPLY_S, self.costs.run_s(line.batch))
        limit_s = min(deadline_s, self.max_s) if line.waiting else deadline_s
        full = line.waiting > 0 and (line.waiting + rows > self.max_rows or done_s > self.max_s)
        fits = not full and done_s <= limit_s
        if promises:
            promises.sweep(line.now_s)
        if not promises:
            if fits:
                return done_s
            raise self._refused(asked, line, limit_s, full)
        key = asked.key()
        promise = promises.find(key)
        if promise is not None and asked.common and promise.due_s - line.now_s > EARLY_S:
            promise = None  # a stranger's: who was told that moment would come then
        if promise is None:
            if fits and self._to_spare(asked, line, limit_s, done_s):
                return done_s
            raise self._refused(asked, line, limit_s, full or done_s <= limit_s)
        due = promise.due_s - line.now_s <= EARLY_S
        if due:  # half of the margin and a run's rows to spare: prices are not exact to the run
            most = self.max_rows + line.batch * len(line.ends_s)
            longest_s = min((deadline_s + asked.left_s - REPLY_S) / 2, self.max_s + self.costs.run_s(line.batch))
            fits = (not line.waiting or line.waiting + rows <= most) and done_s <= longest_s
        if fits and (due or self._to_spare(asked, line, limit_s, done_s)):
            promises.close(promise, True)
            return done_s
        if not due:
            raise self._overloaded(promise.due_s - line.now_s, full or done_s <= limit_s)
        # The place is not free yet. It is still the next one, behind others to whom this has happened just now.
        promises.close(promise, True)
        retry_s = self._retry_s(asked, line, limit_s, 0, 0)
        due_s = max(line.now_s + retry_s, self._moved_s + self._pace_s(asked, line))
        self._moved_s = due_s
        promises.book(key, rows, asked.priority, line.now_s, due_s, again=True)
        raise self._overloaded(due_s - line.now_s, full)

    def _to_spare(self, asked: Asked, line: Line, limit_s: float, done_s: float) -> bool:
        """Whether a newcomer takes nobody's place, or places that are kept would leave lanes without work."""
        kept, before = self.promises.rows(), self.promises.rows(asked.priority)
        a_run_each = line.batch * len(line.ends_s)
        soon = min(kept, a_run_each * line.ends_s[0] / self.costs.run_s(line.batch))  # come before a lane is free
        if line.ahead + soon + asked.rows <= a_run_each:
            return True
        if line.waiting + asked.rows <= self.max_rows / 2 and done_s <= limit_s / 2:
            return True
        fits = line.waiting + kept + asked.rows <= self.max_rows
        return fits and self.done_s(line, line.ahead + round(before * line.slow), asked.rows) <= limit_s

    def _retry_s(self, asked: Asked, line: Line, limit_s: float, kept: int, before: int) -> float:
        """Seconds until there is room for the request behind those who were promised theirs.

        Args:
            kept: rows promised.
            before: those of them that go before this request.
        """
        run_s = self.costs.run_s(line.batch)
        leave = line.waiting + kept + asked.rows - self.max_rows
        room_s = begun_s(leave, line.ends_s, run_s * line.slow, line.batch) if leave > 0 else 0.0
        ahead = line.ahead + round(before * line.slow)
        idle_s = begun_s(ahead + 1, line.ends_s, run_s, line.batch)  # an idle lane refuses nobody
        slack = self.costs.slack
        late_s = self.done_s(line, ahead, asked.rows) * slack - limit_s
        wait_s = max(0.0, room_s * slack, min(late_s, idle_s * slack))
        queue_s = begun_s(self.max_rows, line.ends_s, run_s * line.slow, line.batch)
        bound_s = max(run_s, min(limit_s, queue_s))
        headroom_s = min(HEADROOM * wait_s * min(1.0, wait_s / bound_s / 2), HEADROOM_LIMIT * bound_s)
        return wait_s + headroom_s + min(HEADROOM_RUN * run_s, HEADROOM_S)

    def _pace_s(self, asked: Asked, line: Line) -> float:
        """Seconds in which all lanes together serve such a request."""
        return asked.rows * self.costs.run_s(line.batch) * line.slow / line.batch / len(line.ends_s)

    def _refused(self, asked: Asked, line: Line, limit_s: float, full: bool) -> Overloaded:
        kept, before = self.promises.rows(PRIORITIES), self.promises.rows(asked.priority)
        retry_s = self._retry_s(asked, line, limit_s, kept, before)
        # A run's rows are told the same moment; beyond that, nobody is told the moment of those before.
        earliest_s = line.now_s + retry_s - self.costs.run_s(line.batch)
        next_s = self._next_s[asked.priority] + self._pace_s(asked, line) * self.promises.share
        next_s = min(max(next_s, earliest_s), line.now_s + ABREAST * retry_s)
        retry_s = max(retry_s, next_s - line.now_s)
        self._next_s[asked.priority] = next_s
        self.promises.book(asked.key(), asked.rows, asked.priority, line.now_s, line.now_s + retry_s)
        return self._overloaded(retry_s, full)

    def _overloaded(self, retry_s: float, full: bool) -> Overloaded:
        why = "the queue is full" if full else "the deadline cannot be met"
        reason = "queue_full" if full else "deadline"
        return Overloaded(f"{self.name}: {why}; come again in {retry_s:.3f} s", retry_after_s=retry_s, reason=reason)


class Gates:
    """Where clients take turns: a gate for each, who waits, and what each asks for.

    A client sees its own rows alone, on a machine that is slower by its share: how many others queue beyond theirs
    does not concern it, and places that they were promised are not kept from it. Its part of the queue is its share
    too.

    Args:
        usual: the gate of those who do not take turns; the others are like it.
    """

    def __init__(self, usual: Gate) -> None:
        self._usual = usual
        self._gates: OrderedDict[Hashable, Gate] = OrderedDict()
        self._waiting: dict[Share, list[int]] = {}
        self._asked: OrderedDict[Share, Arrivals] = OrderedDict()
        self._level, self._total, self._levelled_s = math.inf, 0.0, -math.inf

    def of(self, share: Share) -> Gate:
        """A client's gate."""
        gate = self._gates.get(share.client)
        if gate is None:
            usual = self._usual
            gate = self._gates[share.client] = Gate(usual.name, usual.costs, usual.max_rows, usual.max_s)
            if len(self._gates) > MOST_GATES:
                self._gates.popitem(last=False)
        self._gates.move_to_end(share.client)
        return gate

    def asked(self, share: Share, rows: int, now_s: float) -> None:
        """A client asks for so many rows, let in or not."""
        known = self._asked.get(share)
        if known is None:
            known = self._asked[share] = Arrivals(DEMAND_S)
            if len(self._asked) > MOST_GATES:
                self._asked.popitem(last=False)
        self._asked.move_to_end(share)
        known.count(rows, now_s)

    def queued(self, share: Share, priority: int, rows: int) -> None:
        """So many rows of a client wait from now on, or no longer, where the number is negative."""
        waiting = self._waiting.get(share)
        if waiting is None:
            waiting = self._waiting[share] = [0] * PRIORITIES
        waiting[priority] += rows
        if not any(waiting):
            del self._waiting[share]

    def line(self, share: Share, priority: int, rows: int, line: Line) -> Line:
        """The queue as a client's newcomer of so many rows sees it: see the class.

        Args:
            line: as who does not take turns sees it.
        """
        own = self._waiting.get(share, [])
        capacity = len(line.ends_s) * line.batch / self._usual.costs.run_s(line.batch)
        slow = self._slowness(share, capacity, line.now_s)
        self._gates[share.client].max_rows = max(1, round(self._usual.max_rows / slow))
        ahead = sum(own[: priority + 1])
        turn = (ahead + rows) / share.weight  # others go for as long until these have gone, if they have as much
        between = sum(
            min(sum(waiting[: priority + 1]), turn * other.weight)
            for other, waiting in self._waiting.items()
            if other != share
        )
        ahead = round(max(ahead * slow, ahead + between))  # by who will come, or by who is there
        return Line(line.now_s, sum(own), ahead, line.ends_s, line.batch, slow)

    def promised_rows(self) -> int:
        """Of all gates."""
        return sum(gate.promises.rows() for gate in (self._usual, *self._gates.values()))

    def _slowness(self, share: Share, capacity: float, now_s: float) -> float:
        if now_s - self._levelled_s > LEVEL_S:
            self._levelled_s = now_s
            rates = {one: rate for one, asked in self._asked.items() if (rate := asked.rate(now_s)) > LEAST_RATE}
            for one in [one for one in self._asked if one not in rates]:
                del self._asked[one]
            self._level = level([(one.weight, rate) for one, rate in rates.items()], capacity)
            self._total = sum(rates.values())
        own = self._asked.get(share)
        return slowness(share, 0.0 if own is None else own.rate(now_s), self._total, self._level, capacity)
