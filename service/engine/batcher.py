"""Requests' rows into runs: zero-wait batching.

A free lane takes what is queued now; rows wait only while every lane is busy, and so batches grow with the load alone
and a lone request pays nothing. `take` is that decision as a pure function; `Batcher` is the shell that waits.

Everything but the session's run happens on the event loop's thread, so nothing here needs a lock.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from service.engine.admission import MOST_ROWS, REPLY_S, Asked, Gate, Gates, Line
from service.engine.entries import (
    USUAL,
    Answer,
    BatchPolicy,
    Decision,
    Done,
    Entry,
    Slice,
    assemble,
    key_of,
    rows_of,
    signature_of,
    take,
)
from service.engine.fairness import Share
from service.engine.lanes import Lane, Outcome, Run, ThreadLane, run_parts
from service.engine.pricing import RunCosts, left_s
from service.engine.queue import Queue
from service.engine.session import Arrays, Session, Watch
from service.engine.stats import BatcherStats
from service.errors import DeadlineExceeded, GanymedeError, NotReady, Overloaded, RunFailed

HANG_FACTOR = 50.0
"""A run hangs when it takes this many times what its rows were measured to take, and `run_timeout_s` at least."""
TERMINATE_S = 2.0
"""Seconds that a run which was told to end gets for its node to finish, before its lane is given up."""

log = logging.getLogger(__name__)

HERE_SHARE = 0.5
"""Of `lone_s`: a run of several requests of at most so long stays on the loop too, while no lane runs. The lane would
wait for the interpreter and the loop for the lane, each about as long as such a run takes."""

FILL_WEIGHT = 0.1
"""Weight of the newest run in the rows that a run takes while more wait: fewer than the cap where shapes are mixed."""

_SMOOTHING = 0.2  # weight of the newest run in the measured seconds per row: follows a change within about ten runs


class Batcher:
    """The queue and lanes of one graph. Made and used on one event loop.

    Args:
        sessions: one for each lane; the same object where lanes share it.
        policy: see `BatchPolicy`.
        max_queue_rows: rows that may wait; beyond it `submit` refuses.
        max_queue_s: seconds after which the last of them must be finished, as predicted; None sets no such bound.
        row_s: measured seconds of one lane per row, to begin predictions with; the runs themselves correct it.
        run_s: measured seconds of a run of so many rows, where a cost curve is known.
        run_timeout_s: seconds below which no run is held to hang; see `HANG_FACTOR`.
        lone_s: a lone request whose run was measured to take at most so long runs on the event loop itself: handing it
            to a lane and back would cost more. 0 never. Only for runs that cannot hang: nobody could end them there.
            See `HERE_SHARE` for those of several requests.
        name: for threads and errors.
        make_lane: the threads; tests put in lanes of their own.
        clock: seconds; tests put in one of their own.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        policy: BatchPolicy,
        *,
        max_queue_rows: int = 1024,
        max_queue_s: float | None = None,
        row_s: float = 0.01,
        run_s: Callable[[int], float] | None = None,
        run_timeout_s: float = 10.0,
        lone_s: float = 0.0,
        name: str = "model",
        make_lane: Callable[[str], Lane] = ThreadLane,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.name = name
        self._clock = clock
        self._costs = RunCosts(run_s if run_s is not None else lambda rows: rows * row_s)
        self._measured = run_s is not None
        self._expected_s = self._costs.run_s if self._measured else None
        self._gate = Gate(name, self._costs, max_queue_rows, math.inf if max_queue_s is None else max_queue_s)
        self._gates = Gates(self._gate)
        self._queue = Queue(self._gates.queued)
        self._fill = float(policy.max_batch)
        self._loop = asyncio.get_running_loop()
        self._sessions = list(sessions)
        self._make_lane = make_lane
        self._lanes = [make_lane(f"{name} lane {index}") for index in range(len(sessions))]
        self._run_timeout_s = run_timeout_s
        self._lone_s = lone_s
        self._free = list(range(len(sessions)))
        self._running: dict[int, Run] = {}
        self._live: set[Entry] = set()
        self._arrivals = 0
        self._scheduled = False
        self._untimed: list[Entry] = []
        self._accepting = True
        self._idle: asyncio.Future[None] | None = None
        self._row_s = row_s
        self._runs = self._rows = self._failures = self._apart = self._hung = self._replaced = 0
        self._run_s = 0.0
        self._batch_rows: Counter[int] = Counter()
        self._ended: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()

    async def submit(
        self,
        inputs: Arrays,
        *,
        priority: int = USUAL,
        deadline_s: float | None = None,
        lone: bool = False,
        share: Share | None = None,
    ) -> Answer:
        """Queue a request's rows and wait for their answer. Cancelling the wait withdraws the rows.

        Args:
            inputs: every input of the graph, as many rows in each, at least one.
            priority: 1 (first) to 9.
            deadline_s: in the event loop's time; None waits for as long as it takes.
            lone: the caller knows of no other request that is being answered; see `lone_s`.
            share: who asks, where clients take turns.

        Raises:
            Overloaded: the queue is full, or the deadline cannot be met; nothing was queued.
            NotReady: draining.
            DeadlineExceeded: not finished in time; at once where its run alone is known to take longer than that.
            RunFailed: these rows' run failed, also when run apart from their neighbours.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()

        def done(outcome: Answer | GanymedeError) -> None:
            if future.done():
                return
            if isinstance(outcome, Answer):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        entry = self.enqueue(inputs, done, priority=priority, deadline_s=deadline_s, lone=lone, share=share)
        try:
            return await future
        except asyncio.CancelledError:
            self.withdraw(entry)
            raise

    def enqueue(
        self,
        inputs: Arrays,
        done: Done,
        *,
        priority: int = USUAL,
        deadline_s: float | None = None,
        lone: bool = False,
        share: Share | None = None,
        key: Hashable | None = None,
    ) -> Entry:
        """As `submit`, for whoever waits otherwise than by a coroutine: a task costs more than a small run.

        Args:
            done: told the end, once; before this returns where a lone run stayed on the loop.
            key: what is asked for, by which a client that was refused is known again; None where the inputs tell.

        Returns:
            What `withdraw` takes.

        Raises:
            Overloaded, NotReady, DeadlineExceeded: nothing was queued, and `done` is not called.
        """
        rows = len(next(iter(inputs.values())))
        gate = self._gate
        if share is not None:
            gate = self._gates.of(share)
            self._gates.asked(share, rows, self._clock())
        priced_s = self._admit(inputs, rows, priority, deadline_s, gate, share, key)
        self._arrivals += 1
        now_s = self._clock()
        gate.arrivals.count(rows, now_s)
        entry = Entry(inputs, rows, signature_of(inputs), now_s, self._arrivals, priority, deadline_s, priced_s)
        entry.done = done
        if lone and self._is_short(rows):
            entry.taken = rows
            self._run_here(self._free.pop(), Decision((Slice(entry, 0, rows),), ()))
            return entry
        if deadline_s is not None:
            self._untimed.append(entry)
        self._live.add(entry)
        self._queue.add(entry, share)
        self._schedule()
        if not self._scheduled:
            self._keep_deadlines()
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Nobody waits for the entry any more; its rows do not run unless they run already."""
        self._end(entry, None, "cancelled")

    def hasten(self, entry: Entry, priority: int) -> None:
        """An entry that still waits goes as one of this priority, behind those that came before it."""
        if not entry.ended and entry.taken < entry.rows and entry.priority > priority:
            self._queue.hasten(entry, priority)
            self._schedule()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing runs."""
        return not self._live and not self._running

    def stats(self) -> BatcherStats:
        """A snapshot, for metrics."""
        oldest_s = min((entry.arrived_s for entry in self._queue.entries), default=None)
        return BatcherStats(
            queue_rows=self._queue.rows,
            queue_age_s=0.0 if oldest_s is None else max(0.0, self._clock() - oldest_s),
            lanes=len(self._lanes),
            lanes_busy=len(self._running),
            row_s=self._row_s,
            runs_total=self._runs,
            rows_total=self._rows,
            run_s_total=self._run_s,
            batch_rows=dict(self._batch_rows),
            failures_total=self._failures,
            apart_total=self._apart,
            ended_total=dict(self._ended),
            rejected_total=dict(self._rejected),
            hung_total=self._hung,
            lanes_replaced_total=self._replaced,
            promised_rows=self._gates.promised_rows(),
        )

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new entries and wait for the accepted ones; whatever is left at the timeout ends with NotReady.

        Returns:
            Whether every accepted entry ended by itself.
        """
        self._accepting = False
        if self._live:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)
        finished = not self._live
        for entry in list(self._live):
            self._end(entry, NotReady(f"{self.name}: shut down before the request was finished"), "shut down")
        return finished

    async def close(self, timeout_s: float = 5.0) -> bool:
        """End what is left and stop the lanes; False where a run still hangs after the timeout."""
        await self.drain(0.0)
        for run in self._running.values():
            run.watch.terminate()  # nobody waits for it any more
        stopped = await asyncio.gather(*(asyncio.to_thread(lane.close, timeout_s) for lane in self._lanes))
        return all(stopped)

    def _admit(
        self, inputs: Arrays, rows: int, priority: int, deadline_s: float | None, gate: Gate, share: Share | None,
        key: Hashable | None,
    ) -> float:  # fmt: skip
        """Refuse at once what could only be refused later; else the predicted seconds, 0 where a lane is idle."""
        if not self._accepting:
            raise NotReady(f"{self.name}: shutting down", reason="draining")
        remaining_s = math.inf
        if deadline_s is not None:
            remaining_s = deadline_s - self._loop.time()
            if remaining_s <= 0:
                self._rejected["deadline"] += 1
                raise DeadlineExceeded(f"{self.name}: the deadline had passed before the request could be queued")
            least_s = self._costs.least_s(min(rows, self.policy.max_batch))
            if self._measured and least_s > remaining_s:
                self._rejected["deadline"] += 1
                raise DeadlineExceeded(
                    f"{self.name}: takes {least_s:.3f} s alone, the deadline is in {remaining_s:.3f} s"
                )
        if self._free:
            if self._queue.rows + rows > gate.max_rows:
                self._dispatch()
            if self._free and (not self._queue or self._rides_now(rows, remaining_s, gate, share)):
                return 0.0
        known = partial(key_of, inputs, priority) if key is None else lambda: (priority, key)
        asked = Asked(rows, priority, remaining_s, known, key is not None)
        if self._queue.rows + rows > MOST_ROWS * self._gate.max_rows:
            gate, share = self._gate, None
        try:
            return gate.admit(asked, self._line(asked, share))
        except Overloaded as error:
            self._rejected[error.reason] += 1
            raise

    def _rides_now(self, rows: int, remaining_s: float, gate: Gate, share: Share | None) -> bool:
        """Whether so many rows go with those that wait for the end of this turn of the loop, in one run and in time.

        They wait for no lane, so that there is nothing to price. Where places are promised or clients take turns, the
        gate has to know of them.
        """
        rows += self._queue.rows
        if share is not None or gate.promises or rows > self._policy_of(self._free[-1]).max_batch:
            return False
        return self._costs.run_s(rows) <= min(remaining_s - REPLY_S, gate.max_s)

    def _is_short(self, rows: int) -> bool:
        """Whether a lone request's rows run here: nothing else does or waits, and they are measured to be short."""
        if self._running or self._queue or self._costs.curve_s(rows) > self._lone_s:
            return False
        return rows <= self._policy_of(self._free[-1]).max_batch

    def _line(self, asked: Asked, share: Share | None) -> Line:
        """The queue as a newcomer sees it; where clients take turns, its own, on a slower machine."""
        now_s, costs = self._clock(), self._costs
        ends_s = [left_s(costs.run_s(run.rows), now_s - run.started_s) for run in self._running.values()]
        ends_s += [0.0] * len(self._free)
        ends_s.sort()
        ahead = self._queue.ahead(asked.priority)
        line = Line(now_s, self._queue.rows, ahead, ends_s, max(1, round(self._fill)))
        return line if share is None else self._gates.line(share, asked.priority, asked.rows, line)

    def _dispatch(self) -> None:
        """Hand the queue to the lanes that are free; or run it here, where that takes less than to hand it over."""
        self._scheduled = False
        while self._free and self._queue:
            here = self._next_is_here()
            policy, free_lanes = self._policy_of(self._free[-1]), 1 if here else len(self._free)
            decision = take(self._queue.entries, self._loop.time(), policy, free_lanes, self._expected_s)
            for part in decision.slices:
                self._queue.take(part)
            if decision.slices:
                if self._queue and len(self._free) == 1:
                    self._fill += FILL_WEIGHT * (decision.rows - self._fill)
                (self._run_here if here else self._start)(self._free.pop(), decision)
            for entry in decision.expired:  # after: who is told of it may queue rows anew
                self._expire(entry)
            if here:
                self._schedule()  # the loop has other things to do between two runs
                break
        self._keep_deadlines()

    def _next_is_here(self) -> bool:
        """Whether what waits would run on the loop: no lane runs, and it is short."""
        rows = min(self._queue.rows, self.policy.max_batch)
        return not self._running and self._costs.curve_s(rows) <= HERE_SHARE * self._lone_s

    def _keep_deadlines(self) -> None:
        """Timers for who waits on: most are answered within the turn of the loop in which they came, and need none."""
        untimed, self._untimed = self._untimed, []
        for entry in untimed:
            if not entry.ended and entry.deadline_s is not None:
                entry.timer = self._loop.call_at(entry.deadline_s, self._expire, entry)

    def _schedule(self) -> None:
        """Dispatch at the end of this turn of the loop: requests that arrived together ride together."""
        if self._queue and self._free and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _run_here(self, lane: int, decision: Decision) -> None:
        """Run on the event loop, in the place of a lane."""
        run = self._running[lane] = Run(lane, decision, self._clock(), Watch(endable=False), decision.rows)
        parts = [rows_of(part) for part in decision.slices]
        outcome = run_parts(self._sessions[lane], parts, _wanted, run.watch)
        self._leave_lane(run, outcome)
        self._answer(run, outcome)

    def _policy_of(self, lane: int) -> BatchPolicy:
        """The policy, within what the lane's session has been found to hold in memory."""
        limit = self._sessions[lane].max_rows
        if limit is None or limit >= self.policy.max_batch:
            return self.policy
        return BatchPolicy(limit, min(limit, self.policy.min_share))

    def _start(self, lane: int, decision: Decision) -> None:
        slices, session, loop = decision.slices, self._sessions[lane], self._loop
        run = Run(lane, decision, self._clock(), Watch(), decision.rows)
        self._running[lane] = run
        parts = [rows_of(part) for part in slices]

        def job() -> None:
            outcome = run_parts(session, parts, lambda index: not slices[index].entry.ended, run.watch)
            try:  # noqa: SIM105 - on the way of every run
                loop.call_soon_threadsafe(self._finish, run, outcome)
            except RuntimeError:  # the loop is closed: nobody is left to hear of it
                pass

        run.timer = loop.call_later(self.bound_s(run.rows), self._look_after, run)
        self._lanes[lane].start(job)

    def bound_s(self, rows: int) -> float:
        """Seconds after which one session call of so many rows is held to hang."""
        curve_s = self._costs.curve_s(rows) if self._measured else 0.0
        return max(self._run_timeout_s, HANG_FACTOR * max(curve_s, rows * self._row_s))

    def _look_after(self, run: Run) -> None:
        """A run's time is up: wait on where it moves, else fail its entries and tell it to end."""
        if run.watch.loading or run.watch.calls > run.seen:
            run.seen = max(run.seen, run.watch.calls)
            run.timer = self._loop.call_later(self.bound_s(run.rows), self._look_after, run)
            return
        self._hung += 1
        run.watch.terminate()
        run.timer = self._loop.call_later(TERMINATE_S, self._replace, run)
        seconds = self._clock() - run.started_s
        log.error("%s: a run of %d rows hangs since %.1f s; ending it", self.name, run.rows, seconds)
        for part in run.decision.slices:
            self._end(part.entry, RunFailed(f"{self.name}: the run did not come back"), "failed")

    def _replace(self, run: Run) -> None:
        """Give up a lane whose run did not end when it was told to; another takes its place."""
        lane = run.lane
        del self._running[lane]
        run.watch.abandoned = True
        self._replaced += 1
        log.error("%s: lane %d does not come back; it is replaced, its thread is lost", self.name, lane)
        self._lanes[lane].close(0.0)
        self._lanes[lane] = self._make_lane(f"{self.name} lane {lane} ({self._replaced})")
        self._free.append(lane)
        self._dispatch()

    def _finish(self, run: Run, outcome: Outcome) -> None:
        """A lane is free again: let it take what is queued, and meanwhile write the answers of what it has done."""
        if self._running.get(run.lane) is not run:
            return  # given up long ago, and answered then
        self._leave_lane(run, outcome)
        if not self._next_is_here():
            self._dispatch()
        self._answer(run, outcome)
        self._dispatch()

    def _leave_lane(self, run: Run, outcome: Outcome) -> None:
        if run.timer is not None:
            run.timer.cancel()
        del self._running[run.lane]
        self._free.append(run.lane)
        self._count(run, outcome)

    def _answer(self, run: Run, outcome: Outcome) -> None:
        """Answer a run's entries."""
        for part, answer in zip(run.decision.slices, outcome.answers, strict=True):
            entry = part.entry
            if entry.ended:
                continue
            if isinstance(answer, GanymedeError):
                self._end(entry, answer, "failed")
                continue
            if part.stop - part.start == entry.rows:  # whole, as nearly all are
                queue_s = max(0.0, outcome.started_s - entry.arrived_s)
                run_s = outcome.ended_s - outcome.started_s
                self._end(entry, Answer(answer, queue_s, run_s, run.rows, 1), "answered")
                continue
            entry.started_s = outcome.started_s if entry.started_s is None else min(entry.started_s, outcome.started_s)
            entry.finished_s = max(entry.finished_s, outcome.ended_s)
            entry.batch_rows = max(entry.batch_rows, run.rows)
            entry.keep(part.start, answer)
            entry.answered += part.stop - part.start
            if entry.answered == entry.rows:
                self._end(entry, assemble(entry), "answered")

    def _count(self, run: Run, outcome: Outcome) -> None:
        rows, seconds = run.rows, outcome.ended_s - outcome.started_s
        self._runs += outcome.runs
        self._rows += rows
        self._run_s += seconds
        self._failures += outcome.failures
        self._batch_rows[rows] += 1
        if outcome.runs > 1:
            self._apart += 1
        elif not run.watch.terminated:
            self._row_s += _SMOOTHING * (seconds / rows - self._row_s)
            self._costs.observe(rows, self._clock() - run.started_s)  # with what the lane waits for the loop

    def _expire(self, entry: Entry) -> None:
        self._end(entry, DeadlineExceeded(f"{self.name}: cannot be finished before the deadline"), "expired")

    def _end(self, entry: Entry, outcome: Answer | GanymedeError | None, how: str) -> None:
        """End an entry, the first time; None for a waiter that is gone."""
        if entry.ended:
            return
        entry.ended = True
        self._ended[how] += 1
        self._live.discard(entry)
        if entry.timer is not None:
            entry.timer.cancel()
        if entry.priced_s and how in ("answered", "expired"):
            run_s = self._costs.run_s(max(1, round(self._fill)))
            took_s = self._clock() - entry.arrived_s + (run_s if how == "expired" else 0.0)  # at least
            gate = self._gate if entry.share is None else self._gates.of(entry.share)
            gate.margin.observe(entry.priced_s, took_s, run_s)
        if entry.taken < entry.rows:
            self._queue.remove(entry)
        if self._idle is not None and not self._live and not self._idle.done():
            self._idle.set_result(None)
        done, entry.done = entry.done, None
        if done is not None and outcome is not None:
            done(outcome)  # last: who is told may queue rows anew


def _wanted(index: int) -> bool:
    """Of a run on the loop: nobody can leave meanwhile."""
    return True
