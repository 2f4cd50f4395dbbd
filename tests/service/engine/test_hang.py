"""A run that never comes back: noticed, ended, its lane replaced where it must be; nobody else is harmed."""

import asyncio
import threading

import pytest
from fakesession import FakeSession, HeldLane, VirtualLoop, rows, settle
from hanggraph import LIMIT, hang_session

from service.engine import batcher as batching
from service.engine.batcher import HANG_FACTOR, Batcher
from service.engine.entries import BatchPolicy
from service.engine.options import EngineOptions
from service.engine.profile import Plan
from service.errors import RunFailed


async def until(condition):
    while not condition():  # noqa: ASYNC110 - a gauge has no event to wait for
        await asyncio.sleep(0.01)


async def test_a_loop_that_never_ends_is_terminated_and_its_lane_serves_on(tmp_path):
    batcher = Batcher([hang_session(tmp_path)] * 2, BatchPolicy(8), row_s=0.001, run_timeout_s=1.0, name="hang@1")
    hung = asyncio.ensure_future(batcher.submit(rows([1, LIMIT + 1])))
    rider = asyncio.ensure_future(batcher.submit(rows([2], width=3)))  # another shape: another run
    with pytest.raises(RunFailed, match="did not come back"):
        await hung
    assert (await rider).outputs["y"].tolist() == [[5, 5, 5]]
    others = await asyncio.gather(*(batcher.submit(rows([value])) for value in range(20)))
    assert [answer.outputs["y"][0, 0] for answer in others] == [2 * value + 1 for value in range(20)]
    await until(lambda: not batcher.stats().lanes_busy)
    stats = batcher.stats()
    assert (stats.hung_total, stats.lanes_replaced_total, stats.lanes) == (1, 0, 2)
    assert stats.ended_total == {"failed": 1, "answered": 21} and await batcher.close()


async def test_closing_ends_a_run_that_hangs(tmp_path):
    batcher = Batcher([hang_session(tmp_path)], BatchPolicy(8), name="hang@1")
    task = asyncio.ensure_future(batcher.submit(rows([LIMIT + 1])))
    await until(lambda: batcher.stats().lanes_busy)
    task.cancel()
    assert await batcher.close(timeout_s=60.0), "the lane's thread ended"


class StuckSession(FakeSession):
    """Deaf to its watch: a run with a negative number waits until the test lets it go."""

    def __init__(self):
        super().__init__()
        self.release = threading.Event()

    def run(self, inputs, watch=None):
        if (inputs["x"] < 0).any():
            self.release.wait()
        return super().run(inputs, watch)


async def test_a_run_that_cannot_be_ended_loses_its_lane_and_another_takes_its_place(monkeypatch):
    monkeypatch.setattr(batching, "TERMINATE_S", 0.1)
    session = StuckSession()
    batcher = Batcher([session], BatchPolicy(8), row_s=0.001, run_timeout_s=0.5, name="stuck@1")
    hung = asyncio.ensure_future(batcher.submit(rows([-1])))
    await settle()
    waiting = [asyncio.ensure_future(batcher.submit(rows([value]))) for value in range(5)]
    with pytest.raises(RunFailed):
        await hung
    assert [(await task).outputs["y"][0, 0] for task in waiting] == [1, 3, 5, 7, 9]
    assert batcher.stats().lanes_replaced_total == 1 and batcher.stats().lanes == 1
    session.release.set()  # it comes back after all: too late to be heard
    assert (await batcher.submit(rows([9]))).outputs["y"][0, 0] == 19
    assert batcher.stats().ended_total == {"failed": 1, "answered": 6} and await batcher.close()


def on_virtual_loop(test):
    loop = VirtualLoop()
    try:
        loop.run_until_complete(test(loop))
    finally:
        loop.close()


def held(**kwargs):
    lanes = []

    def make_lane(name):
        lanes.append(HeldLane(name))
        return lanes[-1]

    return lanes, Batcher([FakeSession()], BatchPolicy(8), make_lane=make_lane, **kwargs)


def test_the_bound_follows_the_cost_curve_and_is_never_below_the_setting():
    plan = Plan(1, 1, 4, 1, 0.2, True, "cpu", costs=((1, 0.3), (2, 0.5), (4, 0.8)))
    assert [plan.run_s(size) for size in (1, 2, 3, 4, 8)] == [0.3, 0.5, 0.8, 0.8, 1.6]

    async def check(loop):
        _, batcher = held(row_s=0.001, run_s=plan.run_s, run_timeout_s=20.0)
        assert batcher.bound_s(1) == 20.0 and batcher.bound_s(4) == HANG_FACTOR * 0.8

    on_virtual_loop(check)


def test_a_job_that_moves_is_given_its_time_again():
    async def check(loop):
        lanes, batcher = held(row_s=0.001, run_timeout_s=5.0)
        task = asyncio.ensure_future(batcher.submit(rows([1])))
        await settle()
        run = batcher._running[0]
        run.watch.calls = 2  # its rows run apart: the second call has begun
        loop.now_s += 6
        await settle()
        assert not task.done()
        run.watch.loading = True  # a session is being made anew: no bound holds for that
        loop.now_s += 6
        await settle()
        assert not task.done()
        run.watch.loading = False
        loop.now_s += 6
        await settle()
        with pytest.raises(RunFailed):
            await task
        assert batcher.stats().hung_total == 1 and batcher.stats().lanes_busy == 1
        lanes[0].finish()
        await settle()
        assert batcher.stats().lanes_busy == 0 and batcher.stats().lanes_replaced_total == 0

    on_virtual_loop(check)


def test_the_option_must_be_a_time(tmp_path):
    with pytest.raises(ValueError, match="run_timeout_s"):
        EngineOptions(models=tmp_path, run_timeout_s=0)
