"""The batching policy as a function of its arguments, and the shell: every entry ends exactly once."""

import asyncio

import numpy as np
import pytest
from fakesession import POISONS, FakeSession, HeldLane, VirtualLoop, answers, rows, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.batcher import Batcher
from service.engine.entries import BatchPolicy
from service.errors import DeadlineExceeded, NotReady, Overloaded, RunFailed


class Bench:
    """A batcher on held lanes."""

    def __init__(self, lanes=1, max_batch=4, **kwargs):
        self.session = FakeSession()
        self.lanes = []

        def make_lane(name):
            self.lanes.append(HeldLane(name))
            return self.lanes[-1]

        policy = BatchPolicy(max_batch, kwargs.pop("min_share", 1))
        self.batcher = Batcher([self.session] * lanes, policy, make_lane=make_lane, **kwargs)

    def send(self, values, **kwargs):
        given_rows = {key: kwargs.pop(key) for key in ("poison", "width") if key in kwargs}
        return asyncio.ensure_future(self.batcher.submit(rows(values, **given_rows), **kwargs))

    async def finish(self):
        """Let every lane finish what it runs, until nothing runs."""
        await settle()
        while any(lane.job for lane in self.lanes):
            for lane in self.lanes:
                if lane.job:
                    lane.finish()
            await settle()

    def at_rest(self):
        stats = self.batcher.stats()
        return (stats.queue_rows, stats.lanes_busy, stats.queue_age_s, len(self.batcher._live)) == (0, 0, 0.0, 0)


async def test_a_lone_request_starts_without_waiting():
    bench = Bench()
    task = bench.send([3])
    await settle()
    assert bench.lanes[0].job is not None and bench.batcher.stats().queue_rows == 0
    await bench.finish()
    answer = task.result()
    assert answer.outputs["y"].tolist() == [[7, 7]] and answer.batch_rows == 1 and answer.runs == 1
    assert bench.at_rest()


async def test_a_short_run_of_a_lone_request_needs_no_lane():
    bench = Bench(lone_s=0.002, row_s=0.001)
    answer = await bench.batcher.submit(rows([3]), lone=True)
    assert answer.outputs["y"].tolist() == [[7, 7]] and answer.runs == 1
    assert bench.lanes[0].job is None and bench.session.batches == [[3.0]] and bench.at_rest()
    assert bench.batcher.stats().runs_total == 1


@pytest.mark.parametrize(
    ("count", "lone", "lone_s"), [(1, False, 0.002), (1, True, 0.0), (3, True, 0.002)], ids=["told", "off", "long"]
)
async def test_any_other_gets_a_lane(count, lone, lone_s):
    bench = Bench(lone_s=lone_s, row_s=0.0011)
    task = bench.send(range(count), lone=lone)
    await settle()
    assert bench.lanes[0].job is not None
    await bench.finish()
    assert task.result().batch_rows == count


async def test_nothing_runs_on_the_loop_while_a_lane_runs_or_others_wait():
    bench = Bench(lone_s=0.002, row_s=0.0011)
    first = bench.send([1])
    await settle()
    second = bench.send([2], lone=True)
    third = bench.send([3], lone=True)
    await settle()
    assert bench.session.batches == [], "all are with the lane or wait for it"
    await bench.finish()
    assert [task.result().outputs["y"][0, 0] for task in (first, second, third)] == [3, 5, 7]


async def test_a_very_short_run_of_several_requests_needs_no_lane_either():
    bench = Bench(lanes=2, max_batch=3, lone_s=0.002, row_s=0.0003)
    tasks = [bench.send([value]) for value in range(7)]
    turns = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turns += 1
    assert bench.session.batches == [[0, 1, 2], [3, 4, 5], [6]], "together, and no longer at a time than the cap allows"
    assert turns >= 3, "the loop has its turn between two runs"
    assert all(lane.job is None for lane in bench.lanes) and bench.at_rest()
    assert [task.result().outputs["y"][0, 0] for task in tasks] == [1, 3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize("kind", POISONS)
async def test_a_poisoned_row_on_the_loop_is_its_own_error(kind):
    bench = Bench(lone_s=60.0, row_s=0.001)  # however long the first takes, the second is short enough
    with pytest.raises(RunFailed):
        await bench.batcher.submit(rows([1], poison=kind), lone=True)
    assert bench.at_rest()
    assert (await bench.batcher.submit(rows([1]), lone=True)).outputs["y"].tolist() == [[3, 3]]


async def test_one_poisoned_row_on_the_loop_harms_no_other():
    bench = Bench(max_batch=8, lone_s=0.002, row_s=0.0001)
    good = [bench.send([value]) for value in range(3)]
    bad = bench.send([9], poison="raises")
    results = await asyncio.gather(*good, bad, return_exceptions=True)
    assert isinstance(results[-1], RunFailed)
    assert [answer.outputs["y"][0, 0] for answer in results[:-1]] == [1, 3, 5]
    assert bench.lanes[0].job is None and bench.at_rest()


async def test_requests_of_one_turn_ride_together_and_later_ones_wait_for_the_lane():
    bench = Bench()
    first = [bench.send([1]), bench.send([2])]
    await settle()
    later = [bench.send([value]) for value in (3, 4, 5)]
    await settle()
    assert bench.batcher.stats().queue_rows == 3
    await bench.finish()
    assert bench.session.batches == [[1, 2], [3, 4, 5]]
    assert [task.result().batch_rows for task in first + later] == [2, 2, 3, 3, 3]


async def test_a_lane_has_its_next_run_before_the_last_is_answered():
    bench, working = Bench(max_batch=1), []
    for value in range(2):
        bench.batcher.enqueue(rows([value]), lambda _: working.append(bench.lanes[0].job is not None))
    await bench.finish()
    assert working == [True, False] and bench.at_rest()


async def test_priority_goes_before_arrival():
    bench = Bench(max_batch=1)
    bench.send([0])
    await settle()
    for value, priority in ((1, 9), (2, 5), (3, 1), (4, 5)):
        bench.send([value], priority=priority)
    await bench.finish()
    assert bench.session.batches == [[0], [3], [2], [4], [1]]


async def test_a_large_request_is_split_over_lanes_and_put_together_in_order():
    bench = Bench(lanes=2, max_batch=3)
    task = bench.send(range(10))
    await settle()
    bench.lanes[1].finish()  # out of order
    await bench.finish()
    answer = task.result()
    assert answer.outputs["y"][:, 0].tolist() == [2 * value + 1 for value in range(10)]
    assert max(map(len, bench.session.batches)) == 3 and answer.runs == len(bench.session.batches) == 4


@pytest.mark.parametrize("kind", POISONS)
async def test_a_poisoned_row_fails_alone(kind):
    bench = Bench(max_batch=8)
    tasks = [bench.send([value]) for value in range(7)]
    tasks.insert(3, bench.send([0], poison=kind))
    await bench.finish()
    for index, task in enumerate(tasks):
        if index == 3:
            with pytest.raises(RunFailed):
                task.result()
        else:
            value = index if index < 3 else index - 1
            assert task.result().outputs["y"].tolist() == [[2 * value + 1] * 2]
    stats = bench.batcher.stats()
    assert stats.apart_total == 1 and stats.ended_total == {"answered": 7, "failed": 1}
    assert bench.at_rest()


async def test_a_hiccup_is_run_again_apart():
    bench = Bench()
    bench.session.hiccups = 1
    tasks = [bench.send([1, 2]), bench.send([3])]
    await bench.finish()
    assert [task.result().outputs["y"][:, 0].tolist() for task in tasks] == [[3, 5], [7]]


async def test_a_full_queue_refuses_at_once_with_the_time_to_come_again():
    bench = Bench(max_batch=2, max_queue_rows=4, row_s=0.5)
    bench.send([0])
    await settle()
    bench.send([1, 2, 3, 4])
    await settle()
    with pytest.raises(Overloaded) as error:
        await bench.batcher.submit(rows([5, 6]))
    assert error.value.reason == "queue_full"
    assert 0.5 <= error.value.retry_after_s <= 0.55  # when the run that is under way is over, the next takes two rows
    assert bench.batcher.stats().rejected_total == {"queue_full": 1}
    await bench.finish()
    again = bench.send([5, 6])
    await bench.finish()
    assert again.result().outputs["y"].shape == (2, 2)


async def test_one_request_beyond_the_queue_limit_is_served_by_an_idle_batcher():
    bench = Bench(max_queue_rows=2)
    task = bench.send(range(6))
    await bench.finish()
    assert task.result().outputs["y"].shape == (6, 2)


async def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    bench = Bench(row_s=10.0)
    now_s = asyncio.get_running_loop().time()
    bench.send([0])
    await settle()
    bench.send([1])
    await settle()
    with pytest.raises(Overloaded) as error:
        await bench.batcher.submit(rows([2]), deadline_s=now_s + 5)
    assert error.value.reason == "deadline" and error.value.retry_after_s > 5
    patient = bench.send([2], deadline_s=now_s + 100)
    await bench.finish()
    assert patient.result().outputs["y"].shape == (1, 2)


async def test_who_rides_in_the_run_about_to_begin_is_let_in_unless_that_run_takes_too_long():
    bench = Bench(max_batch=8, run_s=lambda rows: 0.1 * rows)
    end_s = asyncio.get_running_loop().time() + 0.25
    tasks = [bench.send([value], deadline_s=end_s) for value in range(3)]
    await bench.finish()
    assert [task.result().batch_rows for task in tasks[:2]] == [2, 2]
    with pytest.raises(Overloaded):  # a run of three would end too late, for all of them
        tasks[2].result()
    assert bench.at_rest()


async def test_deadlines_are_kept_in_a_lane_and_behind_it():
    bench = Bench(max_batch=1, row_s=0.0001)
    end_s = asyncio.get_running_loop().time() + 0.05
    tasks = [bench.send([value], deadline_s=end_s) for value in range(2)]
    await settle()
    tasks.append(bench.send([2], deadline_s=end_s))
    for task in tasks:
        with pytest.raises(DeadlineExceeded):
            await task
    await bench.finish()
    assert bench.at_rest() and bench.session.batches == [[0.0]]


async def test_cancelling_withdraws_the_rows():
    bench = Bench()
    running, queued, other = bench.send([1]), None, None
    await settle()
    queued, other = bench.send([2, 3]), bench.send([4])
    await settle()
    running.cancel()
    queued.cancel()
    await settle()
    assert bench.batcher.stats().queue_rows == 1
    await bench.finish()
    assert bench.session.batches == [[1], [4]] and other.result().outputs["y"].tolist() == [[9, 9]]
    assert bench.batcher.stats().ended_total == {"cancelled": 2, "answered": 1} and bench.at_rest()


async def test_draining_finishes_what_was_accepted_and_refuses_the_rest():
    bench = Bench(max_batch=1)
    accepted = [bench.send([value]) for value in range(3)]
    await settle()
    draining = asyncio.ensure_future(bench.batcher.drain(60))
    await settle()
    with pytest.raises(NotReady):
        await bench.batcher.submit(rows([9]))
    assert not draining.done()
    await bench.finish()
    assert await draining is True
    assert [task.result().outputs["y"][0, 0] for task in accepted] == [1, 3, 5]
    assert await bench.batcher.close()


async def test_closing_answers_everyone():
    bench = Bench(max_batch=1)
    tasks = [bench.send([value]) for value in range(3)]
    await settle()
    assert await bench.batcher.close() is False, "a lane still runs"
    for task in tasks:
        with pytest.raises(NotReady):
            await task
    bench.lanes[0].finish()  # the hung run comes back after all: nobody is hurt
    await settle()
    assert bench.at_rest() and bench.lanes[0].closed


async def test_threads_do_the_same():
    session = FakeSession()
    batcher = Batcher([session] * 2, BatchPolicy(4), name="real lanes")
    results = await asyncio.gather(*(batcher.submit(rows([value, value + 0.5])) for value in range(50)))
    for value, result in enumerate(results):
        assert result.outputs["y"][:, 0].tolist() == [2 * value + 1, 2 * value + 2]
    assert batcher.stats().rows_total == 100 and await batcher.close()


async def test_a_deadline_that_has_passed_is_not_queued():
    bench = Bench()
    with pytest.raises(DeadlineExceeded):
        await bench.batcher.submit(rows([1]), deadline_s=asyncio.get_running_loop().time() - 1)
    assert bench.at_rest() and bench.batcher.stats().rejected_total == {"deadline": 1}


SUBMIT = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 7),
        "priority": st.integers(1, 9),
        "timeout_s": st.none() | st.floats(0.1, 5),
        "poison": st.none() | st.none() | st.sampled_from(POISONS),
        "width": st.sampled_from([2, 2, 3]),
    }
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), SUBMIT),
        st.tuples(st.just("submit"), SUBMIT),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.integers(0, 2)),
        st.tuples(st.just("advance"), st.floats(0.05, 3)),
        st.tuples(st.just("stall"), st.floats(0.5, 5)),
        st.tuples(st.just("hiccup"), st.just(0)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=40,
)
SHAPE = st.fixed_dictionaries(
    {
        "lanes": st.integers(1, 3),
        "max_batch": st.integers(1, 5),
        "min_share": st.integers(1, 3),
        "max_queue_rows": st.integers(4, 20),
        "run_timeout_s": st.sampled_from([0.5, 4.0, 1e6]),
        "row_s": st.sampled_from([0.01, 0.001]),
        "run_s": st.sampled_from([None, lambda count: 0.02 + 0.03 * count, lambda count: 0.5 * count]),
    }
)


async def interleave(shape, steps, drain):
    """Play the steps, let everything run out, and hold every waiter's fate against what was done to it."""
    loop = asyncio.get_running_loop()
    clock = {} if shape["run_s"] is None else {"clock": loop.time}  # prices, and who would come too late, by this clock
    bench, sent, value = Bench(**shape, **clock), [], 0
    for step, argument in steps:
        if step == "submit":
            values = range(value, value + argument["rows"])
            value += argument["rows"]
            deadline_s = None if argument["timeout_s"] is None else loop.time() + argument["timeout_s"]
            inputs = rows(values, poison=argument["poison"], width=argument["width"])
            task = asyncio.ensure_future(
                bench.batcher.submit(inputs, priority=argument["priority"], deadline_s=deadline_s)
            )
            sent.append((task, inputs, argument))
        elif step == "cancel" and sent:
            sent[argument % len(sent)][0].cancel()
        elif step == "finish" and bench.lanes[argument % len(bench.lanes)].job:
            bench.lanes[argument % len(bench.lanes)].finish()
        elif step == "advance":
            loop.now_s += argument
        elif step == "stall":  # time passes for runs that have begun: some are found to hang, lanes are replaced
            await settle()
            loop.now_s += argument
            await settle()
        elif step == "hiccup":
            bench.session.hiccups = 1
        elif step == "settle":
            await settle()
    bench.session.hiccups = 0
    if drain:
        await settle()
        await bench.batcher.drain(0)
    await bench.finish()
    for task, inputs, argument in sent:
        assert task.done(), "a waiter was left unanswered"
        if task.cancelled():
            continue
        error = task.exception()
        if error is None:
            assert argument["poison"] is None
            np.testing.assert_array_equal(task.result().outputs["y"], answers(inputs)["y"])
        elif isinstance(error, DeadlineExceeded):
            assert argument["timeout_s"] is not None
        elif isinstance(error, NotReady):
            assert drain
        elif "did not come back" in str(error):
            assert bench.batcher.stats().hung_total
        else:
            lone = isinstance(error, RunFailed) and "hiccup" in str(error)  # a row that runs alone is not run again
            assert isinstance(error, Overloaded) or lone or (isinstance(error, RunFailed) and argument["poison"])
    assert bench.at_rest()
    stats = bench.batcher.stats()
    assert len(bench.lanes) == shape["lanes"] + stats.lanes_replaced_total and stats.lanes == shape["lanes"]
    assert stats.lanes_replaced_total <= stats.hung_total
    refused = sum(stats.rejected_total.values())
    never_begun = len(sent) - refused - sum(stats.ended_total.values())
    cancelled = sum(task.cancelled() for task, _, _ in sent)
    assert 0 <= never_begun <= cancelled, "an entry ended twice or not at all"


def play(shape, steps, drain):
    loop = VirtualLoop()
    try:
        loop.run_until_complete(interleave(shape, steps, drain))
    finally:
        loop.close()


@given(SHAPE, STEPS, st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_every_entry_ends_once_whatever_the_interleaving(shape, steps, drain):
    play(shape, steps, drain)


@pytest.mark.fuzz
@given(SHAPE, STEPS, st.booleans())
@settings(max_examples=10_000, deadline=None)
def test_every_entry_ends_once_over_ten_thousand_interleavings(shape, steps, drain):
    play(shape, steps, drain)
