"""Overload on a virtual clock, simulated lanes: what refused clients are told is right, and who obeys is accepted."""

import asyncio
import math
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from fakesession import FakeSession, VirtualLoop, rows

from service.engine.batcher import Batcher
from service.engine.entries import BatchPolicy
from service.errors import DeadlineExceeded, Overloaded


class JumpingLoop(VirtualLoop):
    """Time jumps to the next timer whenever nothing else is left to do."""

    def __init__(self):
        super().__init__()
        select = self._selector.select

        def jump(timeout):
            events = select(0)
            if not events and timeout:
                self.now_s += timeout
            return events

        self._selector.select = jump


DRIFT_S = 5.0
"""A machine that drifts is now faster, now slower: in so many seconds it is where it was."""


def curve(count):
    """Seconds of a run as measured at load."""
    return 0.005 + 0.010 * count


class SimulatedLane:
    """Runs its job after as long as such a run takes: slower than was measured at load, and never twice the same."""

    def __init__(self, world, name):
        self.world, self.index = world, int(name.rsplit(" ", 1)[1])

    def start(self, job):
        count = self.world.batcher._running[self.index].decision.rows
        loop = asyncio.get_running_loop()
        self.world.begun += [loop.time()] * count
        drift = 1 + self.world.drift * math.sin(2 * math.pi * loop.time() / DRIFT_S)
        loop.call_later(curve(count) * self.world.slower * drift * self.world.random.uniform(0.85, 1.15), job)

    def close(self, timeout_s):
        return True


@dataclass
class World:
    """Clients, a batcher on simulated lanes, and what became of each client."""

    lanes: int = 2
    max_batch: int = 4
    max_queue_rows: int = 64
    max_queue_s: float | None = None
    slower: float = 1.4
    drift: float = 0.0
    begun: list = field(default_factory=list)
    told_s: list = field(default_factory=list)
    latencies_s: list = field(default_factory=list)
    returned: int = 0
    accepted: int = 0
    broken: int = 0

    def __post_init__(self):
        self.random = random.Random(7)
        self.loop = asyncio.get_running_loop()
        self.names = iter(range(1, 10**9))
        self.batcher = Batcher(
            [FakeSession()] * self.lanes,
            BatchPolicy(self.max_batch),
            max_queue_rows=self.max_queue_rows,
            max_queue_s=self.max_queue_s,
            run_s=curve,
            clock=self.loop.time,
            make_lane=lambda name: SimulatedLane(self, name),
        )

    @property
    def capacity(self):
        """Rows per second of all lanes at full batches."""
        return self.lanes * self.max_batch / (curve(self.max_batch) * self.slower)

    async def send(self, inputs, timeout_s, priority=5):
        """The seconds told where the request was refused; else None, when it has ended."""
        began_s = self.loop.time()
        try:
            await self.batcher.submit(
                inputs, priority=priority, deadline_s=None if timeout_s is None else began_s + timeout_s
            )
        except Overloaded as error:
            return error.retry_after_s
        except DeadlineExceeded:
            self.broken += 1
            return None
        self.latencies_s.append(self.loop.time() - began_s)
        return None

    async def client(self, *, timeout_s=None, obeys=True, count=1, late_s=lambda: 0.0, priority=5):
        """One request, and where it is refused a second at the time told; (told, latency of the second) or None."""
        inputs = rows([next(self.names)] * count)
        told_s = await self.send(inputs, timeout_s, priority)
        if told_s is None:
            return None
        self.told_s.append(told_s)
        if not obeys:
            return None
        await asyncio.sleep(told_s + late_s())
        self.returned += 1
        again_s = self.loop.time()
        refused_s = await self.send(inputs, timeout_s, priority)
        self.accepted += refused_s is None
        return told_s, self.loop.time() - again_s if refused_s is None else None

    async def warm_up(self):
        """Let the prices learn how slow this machine is now."""
        for _ in range(30):
            await self.client()

    async def crowd(self, rate, seconds, **kwargs):
        """Clients that arrive at random, and what came of each."""
        tasks, end_s = [], self.loop.time() + seconds
        obeys = kwargs.pop("obey_share", 1.0)
        while self.loop.time() < end_s:
            one = {**kwargs, "obeys": self.random.random() < obeys}
            tasks.append(asyncio.ensure_future(self.client(**one)))
            await asyncio.sleep(self.random.expovariate(rate))
        return tasks


def simulate(play, **kwargs):
    loop = JumpingLoop()

    async def run():
        world = World(**kwargs)
        await play(world)
        return world

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def off(told_s, true_s, run_s=0.0):
    """By how much a time told is wrong, as a share of what is allowed: a quarter of it, 50 ms, or a run's length."""
    return abs(told_s - true_s) / max(0.25 * true_s, 0.05, run_s)


def jitter(spread=random.Random(3)):  # noqa: B008 - one sequence for all
    return spread.uniform(0, 0.01)


def test_three_hundred_refused_at_once_are_each_told_their_own_time_and_all_are_accepted_on_return():
    async def play(world):
        await world.warm_up()
        filling = [asyncio.ensure_future(world.send(rows([2 + extra]), None)) for extra in range(72)]
        await asyncio.sleep(0)
        began_s, before = world.loop.time(), len(world.begun)
        waiting = world.batcher.stats().queue_rows
        assert waiting == world.max_queue_rows
        results = await asyncio.gather(*(world.client(late_s=jitter) for _ in range(300)))
        told = sorted(result[0] for result in results if result is not None)
        # The n-th of them has room when so many rows have begun that the queue has left it, the others in their places.
        true = [world.begun[before + waiting + n - world.max_queue_rows] - began_s for n in range(len(told))]
        world.wrong = [off(told_s, true_s) for told_s, true_s in zip(told, true, strict=True)]
        await asyncio.gather(*filling)

    world = simulate(play)
    assert len(world.wrong) > 250 and max(world.wrong) <= 1
    assert world.accepted >= 0.95 * world.returned and world.broken == 0


@pytest.mark.parametrize(
    ("bounds", "deadline_runs"),
    [({"max_queue_rows": 10_000}, 8), ({"max_queue_rows": 10_000}, 16), ({}, None), ({"max_queue_s": 0.4}, 10_000)],
)
@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (1, 8)])
def test_at_three_times_capacity_who_obeys_is_accepted_in_time_and_no_lane_idles(bounds, deadline_runs, shape):
    lanes, max_batch = shape
    run_s = curve(max_batch) * World.slower
    timeout_s = None if deadline_runs is None else deadline_runs * run_s

    async def play(world):
        await world.warm_up()
        before = len(world.begun)
        tasks = await world.crowd(3 * world.capacity, 4.0, timeout_s=timeout_s, late_s=jitter)
        world.rate = (len(world.begun) - before - world.max_batch * world.lanes) / 4.0
        world.results = [result for result in await asyncio.gather(*tasks) if result is not None]

    world = simulate(play, **bounds, lanes=lanes, max_batch=max_batch)
    stats = world.batcher.stats()
    assert world.rate >= 0.9 * world.capacity
    assert world.accepted >= 0.95 * world.returned > 100
    assert world.broken <= 0.01 * len(world.latencies_s)
    assert stats.queue_rows == stats.lanes_busy == 0
    limits = [limit for limit in (timeout_s, world.max_queue_s) if limit is not None]
    if limits:
        # Who finished long before the longest wait that is accepted could have come so much earlier.
        longest_s = np.percentile(world.latencies_s, 98)
        assert longest_s >= 0.75 * min(limits)
        settled = world.results[len(world.results) // 4 :]  # by then hundreds of waits have taught the margin
        wrong = [off(told_s, told_s - (longest_s - took_s), run_s) for told_s, took_s in settled if took_s]
        assert np.percentile(wrong, 95) <= 1


def test_clients_that_never_come_back_leave_no_lane_idle_and_take_no_place_from_those_that_do():
    async def play(world):
        await world.warm_up()
        before = len(world.begun)
        tasks = await world.crowd(3 * world.capacity, 10.0, timeout_s=0.5, late_s=jitter, obey_share=0.2)
        world.rate = (len(world.begun) - before - world.max_batch * world.lanes) / 10.0
        await asyncio.gather(*tasks)

    world = simulate(play, max_queue_rows=10_000)
    assert world.rate >= 0.95 * world.capacity and world.returned > 100
    assert world.accepted >= 0.95 * world.returned


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("drift", [0.0, 0.12])
def test_who_obeys_is_accepted_though_nobody_did_before_and_the_machine_is_now_faster_now_slower(shape, drift):
    lanes, max_batch = shape

    async def play(world):
        await world.warm_up()
        for task in await world.crowd(3 * world.capacity, 5.0, timeout_s=1.0, obey_share=0.0):
            await task
        world.broken_before, world.answered_before = world.broken, len(world.latencies_s)
        before = len(world.begun)
        tasks = await world.crowd(3 * world.capacity, 10.0, timeout_s=1.0, late_s=jitter)
        world.rate = (len(world.begun) - before - world.max_batch * world.lanes) / 10.0
        await asyncio.gather(*tasks)

    world = simulate(play, lanes=lanes, max_batch=max_batch, drift=drift, max_queue_rows=10_000)
    assert world.accepted >= 0.95 * world.returned > 100
    assert world.rate >= 0.95 * world.capacity
    assert world.broken_before <= 0.01 * world.answered_before
    assert world.broken - world.broken_before <= 0.01 * len(world.latencies_s)
