"""Coalescing: requests for the same pictures at the same time run once.

Only what succeeds is shared. When the one that runs fails or is withdrawn, whoever waited for it starts anew, the first
of them for the others: a failure is nobody's but its owner's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """What runs now, by what it draws. Belongs to one event loop."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, _Flight[T]] = {}

    async def run(
        self, key: Hashable, priority: int, start: Callable[[], Awaitable[T]], deadline_s: float | None = None
    ) -> tuple[T, bool]:
        """The result of `start()`, or of an equal one that is under way.

        Args:
            key: equal keys must mean equal results.
            priority: 1 (first) to 9; nobody waits for one that is less urgent than itself.
            start: begins the work; it keeps its own deadline.
            deadline_s: in the event loop's time; how long to wait for another's work.

        Returns:
            The result, and whether another request's work was shared.

        Raises:
            TimeoutError: another's work was not finished by the deadline.
        """
        while (flight := self._flying.get(key)) is not None and flight.priority <= priority:
            if await flight.landed(deadline_s):
                return flight.result, True
        flight = self._flying[key] = _Flight(priority)
        try:
            flight.result = await start()
            flight.succeeded = True
        finally:
            if self._flying.get(key) is flight:  # a more urgent one may have taken the place
                del self._flying[key]
            flight.land()
        return flight.result, False


class _Flight(Generic[T]):
    """One piece of work and those who wait for it."""

    result: T

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.succeeded = False
        self._waiting: list[asyncio.Future[None]] = []

    async def landed(self, deadline_s: float | None) -> bool:
        """Wait for the end; whether there is a result."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        async with asyncio.timeout_at(deadline_s):
            await waiter
        return self.succeeded

    def land(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
