"""Coalescing: equal work runs once, and failures and withdrawals stay their owner's."""

import asyncio
import random

import pytest

from service.engine.flights import Flights


class Work:
    """Work that ends when told to; counts its starts."""

    def __init__(self) -> None:
        self.starts = 0
        self.ends: list[asyncio.Future[str]] = []

    def __call__(self, told):
        self.starts += 1
        end = asyncio.get_running_loop().create_future()
        self.ends.append(end)

        def ended(end: asyncio.Future[str]) -> None:
            if not end.cancelled():
                told(end.exception() or end.result())

        end.add_done_callback(ended)
        return end.cancel


async def run(flights: Flights[str], key: str, priority: int, work, deadline_s: float | None = None):
    """The result, and whether it was shared; leaves when cancelled."""
    future = asyncio.get_running_loop().create_future()

    def done(outcome, shared: bool) -> None:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result((outcome, shared))

    leave = flights.run(key, priority, work, done, deadline_s)
    try:
        return await future
    except asyncio.CancelledError:
        leave()
        raise


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_equal_work_runs_once_and_everyone_gets_its_result() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    tasks = [asyncio.create_task(run(flights, "a", 5, work)) for _ in range(5)]
    other = asyncio.create_task(run(flights, "b", 5, work))
    await settle()
    assert work.starts == 2
    work.ends[0].set_result("drawn")
    work.ends[1].set_result("another")
    assert [await task for task in tasks] == [("drawn", False)] + [("drawn", True)] * 4
    assert await other == ("another", False)
    again = asyncio.create_task(run(flights, "a", 5, work))
    await settle()
    assert work.starts == 3, "what has ended is not shared"
    work.ends[2].set_result("anew")
    assert await again == ("anew", False)


async def test_a_failure_is_not_shared_and_one_of_those_who_waited_starts_for_the_others() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    tasks = [asyncio.create_task(run(flights, "a", 5, work)) for _ in range(4)]
    await settle()
    work.ends[0].set_exception(ValueError("bad"))
    await settle()
    assert work.starts == 2
    work.ends[1].set_result("drawn")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert sorted(results[1:]) == [("drawn", False), ("drawn", True), ("drawn", True)]


async def test_the_first_leaves_and_the_others_still_get_theirs() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    tasks = [asyncio.create_task(run(flights, "a", 5, work)) for _ in range(3)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert work.starts == 2
    work.ends[1].set_result("drawn")
    assert sorted([await tasks[1], await tasks[2]]) == [("drawn", False), ("drawn", True)]
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_one_who_waits_leaves_and_the_work_goes_on() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    first, second = (asyncio.create_task(run(flights, "a", 5, work)) for _ in range(2))
    await settle()
    second.cancel()
    await settle()
    work.ends[0].set_result("drawn")
    assert await first == ("drawn", False)
    assert work.starts == 1


async def test_nobody_waits_for_less_urgent_work() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    slow = asyncio.create_task(run(flights, "a", 9, work))
    await settle()
    urgent = asyncio.create_task(run(flights, "a", 1, work))
    late = asyncio.create_task(run(flights, "a", 5, work))
    await settle()
    assert work.starts == 2
    work.ends[0].set_result("slow")
    assert await slow == ("slow", False)
    await settle()
    assert not late.done(), "it waits for the urgent one"
    work.ends[1].set_result("urgent")
    assert await urgent == ("urgent", False)
    assert await late == ("urgent", True)


async def test_a_deadline_ends_the_wait_for_anothers_work() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    first = asyncio.create_task(run(flights, "a", 5, work))
    await settle()
    with pytest.raises(TimeoutError):
        await run(flights, "a", 5, work, asyncio.get_running_loop().time() + 0.01)
    work.ends[0].set_result("drawn")
    assert await first == ("drawn", False)


@pytest.mark.parametrize("seed", range(40))
async def test_everyone_ends_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    flights: Flights[str] = Flights()
    work = Work()
    tasks: list[asyncio.Task[tuple[str, bool]]] = []
    for step in range(60):
        roll = rng.random()
        if roll < 0.5:
            tasks.append(asyncio.create_task(run(flights, rng.choice("ab"), rng.randint(1, 3), work)))
        elif roll < 0.65 and tasks:
            rng.choice(tasks).cancel()
        elif pending := [end for end in work.ends if not end.done()]:
            if roll < 0.85:
                rng.choice(pending).set_result(str(step))
            else:
                rng.choice(pending).set_exception(ValueError(step))
        await settle()
    while not all(task.done() for task in tasks):
        for end in work.ends:
            if not end.done():
                end.set_result("end")
        await settle()
    assert not flights._flying, "nothing is left behind"
    starts = sum(1 for task in tasks if not task.cancelled() and not task.exception() and not task.result()[1])
    assert starts <= work.starts


async def test_work_that_cannot_begin_raises_and_holds_nobody_up() -> None:
    flights: Flights[str] = Flights()
    work = Work()

    def refused(told):
        raise ValueError("full")

    first = asyncio.create_task(run(flights, "a", 5, work))
    await settle()
    waiting = asyncio.create_task(run(flights, "a", 5, refused))
    with pytest.raises(ValueError, match="full"):
        await run(flights, "b", 5, refused)
    first.cancel()
    with pytest.raises(ValueError, match="full"):
        await waiting  # it had to begin itself, and could not
    assert not flights._flying


async def test_work_that_ends_at_once_is_told_before_run_returns() -> None:
    flights: Flights[str] = Flights()
    told: list[tuple[object, bool]] = []

    def at_once(landed):
        landed("drawn")
        return lambda: None

    leave = flights.run("a", 5, at_once, lambda outcome, shared: told.append((outcome, shared)))
    assert told == [("drawn", False)] and not flights._flying
    leave()
    assert told == [("drawn", False)]
