"""Coalescing: requests for the same pictures at the same time run once.

Only what succeeds is shared. When the one that runs fails or is withdrawn, whoever waited for it starts anew, the first
of them for the others: a failure is nobody's but its owner's.

Told by callbacks, not awaited: on the way of every small picture a task would cost more than all of this.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

Withdraw = Callable[[], None]
Start = Callable[[Callable[[T | Exception], None]], Withdraw]
"""Begins work, to tell its end once, at once or later; returns what ends it untold. May raise instead."""


class Flights(Generic[T]):
    """What runs now, by what it draws. Belongs to one event loop."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, Passenger[T]] = {}

    def run(
        self,
        key: Hashable,
        priority: int,
        start: Start[T],
        done: Callable[[T | Exception, bool], None],
        deadline_s: float | None = None,
    ) -> Withdraw:
        """Do the work, or wait for an equal one that is under way.

        Args:
            key: equal keys must mean equal results.
            priority: 1 (first) to 9; nobody waits for one that is less urgent than itself.
            start: begins the work; it keeps its own deadline.
            done: told the result or the error, and whether another request's work was shared. Must not raise. The error
                is TimeoutError where another's work was not finished by the deadline.
            deadline_s: in the event loop's time; how long to wait for another's work.

        Returns:
            What to call when nobody waits any more; `done` is not called after it.

        Raises:
            What `start` raises; `done` is not called then.
        """
        passenger = Passenger(self._flying, key, priority, start, done, deadline_s)
        passenger.board()
        return passenger.leave


class Passenger(Generic[T]):
    """One request: it flies, with others aboard, or waits for one that flies."""

    __slots__ = (
        "_aboard", "_deadline_s", "_done", "_ended", "_flying", "_key", "_pilot", "_start", "_timer", "_withdraw",
        "priority",
    )  # fmt: skip

    def __init__(
        self,
        flying: "dict[Hashable, Passenger[T]]",
        key: Hashable,
        priority: int,
        start: Start[T],
        done: Callable[[T | Exception, bool], None],
        deadline_s: float | None,
    ) -> None:
        self.priority = priority
        self._flying, self._key, self._start, self._done = flying, key, start, done
        self._deadline_s = deadline_s
        self._timer: asyncio.TimerHandle | None = None
        self._pilot: Passenger[T] | None = None  # whose work is waited for
        self._aboard: list[Passenger[T]] | None = None  # who waits for this one's, made when the first comes
        self._withdraw: Withdraw | None = None
        self._ended = False

    def board(self) -> None:
        """Wait for an equal one, else begin.

        Raises:
            What `start` raises.
        """
        pilot = self._flying.get(self._key)
        if pilot is not None and pilot.priority <= self.priority:
            self._pilot = pilot
            pilot._take_aboard(self)
            if self._deadline_s is not None and self._timer is None:
                self._timer = asyncio.get_running_loop().call_at(self._deadline_s, self._late)
            return
        self._pilot = None
        self._flying[self._key] = self
        try:
            self._withdraw = self._start(self._landed)
        except BaseException as error:
            self._let_off(error)
            raise

    def leave(self) -> None:
        """Nobody waits for this one any more; those aboard go on without it."""
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._pilot is not None:
            self._pilot._let_go(self)
            return
        if self._withdraw is not None:
            self._withdraw()
        self._let_off(asyncio.CancelledError())

    def _landed(self, outcome: T | Exception) -> None:
        """The own work has ended."""
        if self._ended:
            return
        if self._flying.get(self._key) is self:  # a more urgent one may have taken the place
            del self._flying[self._key]
        self._end(outcome, False)
        if self._aboard is not None:
            self._let_off(outcome)

    def _let_off(self, outcome: T | BaseException) -> None:
        if self._flying.get(self._key) is self:
            del self._flying[self._key]
        aboard, self._aboard = self._aboard or [], None
        for passenger in aboard:
            passenger._arrive(outcome)

    def _arrive(self, outcome: T | BaseException) -> None:
        """Another's work has ended: a result is this one's too, else it tries anew."""
        if self._ended:
            return
        if not isinstance(outcome, BaseException):
            self._end(outcome, True)
            return
        try:
            self.board()
        except Exception as error:
            self._end(error, False)

    def _late(self) -> None:
        if self._pilot is None or self._ended:
            return  # its own work keeps the deadline itself
        self._pilot._let_go(self)
        self._end(TimeoutError(), False)

    def _end(self, outcome: T | Exception, shared: bool) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._done(outcome, shared)

    def _take_aboard(self, passenger: "Passenger[T]") -> None:
        if self._aboard is None:
            self._aboard = []
        self._aboard.append(passenger)

    def _let_go(self, passenger: "Passenger[T]") -> None:
        if self._aboard is not None and passenger in self._aboard:
            self._aboard.remove(passenger)
