"""From callbacks, which cost a small picture less than a task does, back to coroutines for those who have time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def outcome_of(begin: Callable[[Callable[[T | Exception], None]], Callable[[], None]]) -> T:
    """What `begin` comes to; it is withdrawn where whoever waits is cancelled.

    Args:
        begin: is handed the callback that takes the result or the error, and returns what withdraws.

    Raises:
        What the callback was told, or `begin` raised.
    """
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(outcome: T | Exception) -> None:
        if future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    withdraw = begin(done)
    try:
        return await future
    except asyncio.CancelledError:
        withdraw()
        raise
