"""Turns: who asks for more than its share waits for itself. On a virtual clock with simulated lanes."""

import asyncio
import math
from collections import Counter

import numpy as np
import pytest
from fakesession import FakeSession, VirtualLoop, rows
from hypothesis import given
from hypothesis import strategies as st

from service.engine.admission import MOST_GATES, Asked, Gate, Line
from service.engine.batcher import Batcher
from service.engine.entries import BatchPolicy, Entry, signature_of, take
from service.engine.fairness import Share, Turns, level, slowness, tag
from service.engine.pricing import RunCosts
from service.errors import GanymedeError, Overloaded

HEAVY, LIGHT, DOUBLE = Share("heavy"), Share("light"), Share("double", 2.0)


def test_a_tag_is_the_present_or_where_the_own_rows_before_end():
    assert tag(5.0, 0.0, 4, 1.0) == (5.0, 9.0)
    assert tag(5.0, 9.0, 4, 2.0) == (9.0, 11.0)


@pytest.mark.parametrize(
    "demands, capacity, each",
    [
        ([], 100, math.inf),
        ([(1, 50), (1, 50)], 100, math.inf),
        ([(1, 1000)], 100, 100),
        ([(1, 1000), (1, 10)], 100, 90),
        ([(1, 1000), (1, 60)], 100, 50),
        ([(1, 1000), (2, 1000), (1, 10)], 100, 30),
    ],
)
def test_what_nobody_asks_for_is_shared_by_those_who_do(demands, capacity, each):
    assert level(demands, capacity) == pytest.approx(each)


def test_how_slow_a_machine_is_for_one_among_others():
    assert slowness(LIGHT, 10, 10, math.inf, 100) == 1.0, "alone"
    assert slowness(LIGHT, 10, 60, math.inf, 100) == 2.0, "half is taken"
    assert slowness(LIGHT, 10, 1010, 90, 100) == pytest.approx(100 / 90)
    assert slowness(DOUBLE, 1000, 3000, 25, 100) == 2.0


def served_order(arrivals):
    """By whom rows go, one a run, all having come at once in this order."""
    turns, queue = Turns(), []
    for order, (share, count) in enumerate(arrivals):
        entry = Entry(rows(range(count)), count, signature_of(rows([0])), 0.0, order, share=share)
        entry.tag = turns.tag(share, count)
        queue.append(entry)
    order = []
    while queue:
        queue.sort(key=lambda entry: entry.rank)
        (part,) = take(queue, 0.0, BatchPolicy(1)).slices
        entry = part.entry
        turns.served(entry.tag)
        entry.taken = part.stop
        if entry.taken == entry.rows:
            queue.remove(entry)
        else:
            entry.tag += 1 / entry.share.weight
        order.append(entry.share)
    return order


def test_clients_take_turns_whatever_one_of_them_queues():
    order = served_order([(HEAVY, 1)] * 20 + [(LIGHT, 1)] * 3)
    assert [at for at, share in enumerate(order) if share == LIGHT] == [1, 3, 5]
    order = served_order([(HEAVY, 64), (LIGHT, 2)])
    assert order[:4].count(LIGHT) == 2, "a large request is no way around it"


def test_weights_are_shares():
    order = served_order([(HEAVY, 1)] * 30 + [(DOUBLE, 1)] * 30)
    assert Counter(order[:30])[DOUBLE] == pytest.approx(20, abs=1)


@given(st.lists(st.tuples(st.sampled_from([HEAVY, LIGHT, DOUBLE]), st.integers(1, 9)), min_size=1, max_size=40))
def test_nobody_who_waits_falls_behind_its_share_by_more_than_one_request(arrivals):
    order, left, had = served_order(arrivals), Counter(), Counter()
    for share, count in arrivals:
        left[share] += count
    assert Counter(order) == left
    largest = max(count for _, count in arrivals)
    for share in order:
        left[share] -= 1
        had[share] += 1
        waiting = [one for one in left if left[one]]
        for one in waiting:
            for other in waiting:
                behind = had[other] / other.weight - had[one] / one.weight
                assert behind <= largest / one.weight + largest / other.weight + 1e-9


# --- in the batcher --------------------------------------------------------------------------------------------


class Lanes:
    """Lanes whose every run takes 10 ms."""

    def __call__(self, name):
        return self

    def start(self, job):
        asyncio.get_running_loop().call_later(0.01, job)

    def close(self, timeout_s):
        return True


def virtually(work):
    """Run on a loop whose time jumps to the next timer."""
    loop = VirtualLoop()
    select = loop._selector.select

    def jump(timeout):
        events = select(0)
        if not events and timeout:
            loop.now_s += timeout
        return events

    loop._selector.select = jump
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.close()


def batcher_of(loop, **settings):
    settings = {"max_queue_rows": 64, "run_s": lambda count: 0.01, **settings}
    return Batcher([FakeSession()], BatchPolicy(1), make_lane=Lanes(), clock=loop.time, **settings)


async def flooded(loop, batcher, shares, seconds=4.0, light_every_s=0.1):
    """One client keeps its queue full, another asks now and then; seconds that the latter waited, and its refusals."""
    waited, refused, sent, flooding = [], [], [], True

    async def flood():
        while flooding:
            with_deadline = loop.time() + 0.3
            asking = batcher.submit(rows([1]), share=shares[0], deadline_s=with_deadline)
            sent.append(asyncio.ensure_future(ignore(asking)))
            await asyncio.sleep(0.001)

    async def ignore(work):
        try:
            await work
        except Exception:
            return

    flow = asyncio.ensure_future(flood())
    end_s = loop.time() + seconds
    await asyncio.sleep(0.5)
    while loop.time() < end_s:
        began_s = loop.time()
        try:
            await batcher.submit(rows([2]), share=shares[1], deadline_s=began_s + 0.3)
            waited.append(loop.time() - began_s)
        except Overloaded:
            refused.append(began_s)
        await asyncio.sleep(light_every_s)
    flooding = False
    await flow
    await batcher.drain(5)
    await asyncio.gather(*sent)
    return waited, refused


def test_a_flood_of_one_client_neither_delays_nor_refuses_another():
    async def work(loop):
        return await flooded(loop, batcher_of(loop), (HEAVY, LIGHT))

    waited, refused = virtually(work)
    assert refused == [] and len(waited) > 20
    assert np.percentile(waited, 99) <= 0.031, "at most the run under way, one turn of the other's, and its own"


def test_without_turns_it_does_both():
    async def work(loop):
        return await flooded(loop, batcher_of(loop), (None, None))

    waited, refused = virtually(work)
    assert len(refused) > len(waited) or np.percentile(waited, 50) > 0.1


def test_a_client_alone_has_the_whole_queue_and_is_promised_as_ever():
    async def work(loop):
        told = []
        for share in (None, HEAVY):
            batcher = batcher_of(loop, max_queue_rows=8)
            waiting = [asyncio.ensure_future(batcher.submit(rows([i]), share=share)) for i in range(9)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as caught:
                await batcher.submit(rows([99]), share=share)
            told.append(caught.value.retry_after_s)
            await asyncio.gather(*waiting)
            assert batcher._gates._waiting == {} and not batcher.stats().queue_rows
            await batcher.close()
        return told

    alone, turns = virtually(work)
    assert alone == pytest.approx(turns)


def test_rows_that_are_split_or_withdrawn_are_counted_out():
    async def work(loop):
        batcher = batcher_of(loop)
        asked = [asyncio.ensure_future(batcher.submit(rows(range(5)), share=share)) for share in (HEAVY, LIGHT, HEAVY)]
        await asyncio.sleep(0.025)
        asked[2].cancel()
        answers = await asyncio.gather(*asked[:2])
        assert [answer.outputs["y"][:, 0].tolist() for answer in answers] == [[1, 3, 5, 7, 9]] * 2
        assert batcher._gates._waiting == {} and batcher.stats().queue_rows == 0 and batcher.idle
        await batcher.close()

    virtually(work)


def test_turns_of_rows_that_were_withdrawn_are_given_back():
    """Who has taken back what it asked for is not made to wait for it."""

    async def wait_s(withdrawn):
        loop = asyncio.get_running_loop()
        batcher = batcher_of(loop)
        busy = [asyncio.ensure_future(batcher.submit(rows([0]), share=HEAVY)) for _ in range(40)]
        for _ in range(withdrawn):
            gone = asyncio.ensure_future(batcher.submit(rows(range(8)), share=LIGHT))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
        began = loop.time()
        await batcher.submit(rows([1]), share=LIGHT)
        waited = loop.time() - began
        await asyncio.gather(*busy)
        await batcher.close()
        return waited

    without, after = (virtually(lambda loop, count=count: wait_s(count)) for count in (0, 30))
    assert after <= without + 0.011, (without, after)


def test_clients_that_are_served_at_once_are_forgotten_too():
    async def work(loop):
        batcher = batcher_of(loop)
        for index in range(2 * MOST_GATES):
            batcher._gates.asked(Share(str(index)), 1, loop.time())
        assert len(batcher._gates._asked) <= MOST_GATES
        await batcher.close()

    virtually(work)


def test_strangers_who_ask_for_the_same_do_not_wait_for_one_promise():
    """Each of them is told a moment of its own, as those are who ask for pictures of their own."""
    gate = Gate("m", RunCosts(lambda count: 0.01 * count), 8)
    told = []
    for _ in range(20):
        with pytest.raises(Overloaded) as refused:
            gate.admit(Asked(4, 5, 30.0, lambda: ("drawn", 4), True), Line(0.0, 8, 8, [0.04], 4))
        told.append(refused.value.retry_after_s)
    assert len({round(one, 6) for one in told}) >= 15 and len(gate.promises) == 20
    assert gate.admit(Asked(4, 5, 30.0, lambda: ("drawn", 4), True), Line(told[0], 0, 0, [0.0], 4)) > 0
    assert len(gate.promises) == 19


def test_a_place_that_was_promised_can_be_taken_where_nothing_waits():
    """Though it is for more rows than may wait behind others."""
    gate = Gate("m", RunCosts(lambda count: 0.01 * count), 8)
    asked = Asked(32, 5, 30.0, lambda: "who")
    busy = Line(0.0, 4, 4, [0.04], 4)
    with pytest.raises(Overloaded) as refused:
        gate.admit(asked, busy)
    due_s = refused.value.retry_after_s
    assert gate.admit(asked, Line(due_s, 0, 0, [0.0], 4)) > 0


def test_a_multitude_of_clients_cannot_queue_without_end():
    async def work(loop):
        batcher = batcher_of(loop, max_queue_rows=20)
        asked = [asyncio.ensure_future(batcher.submit(rows([0]), share=Share(str(i)))) for i in range(200)]
        await asyncio.sleep(0)
        assert batcher.stats().queue_rows <= 40
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(end, Overloaded) for end in ends) >= 150
        await batcher.close()

    virtually(work)


def test_many_who_each_ask_for_little_are_told_the_truth():
    """None has anything of its own ahead, and yet all others take their turns first."""

    async def work(loop):
        batcher = batcher_of(loop, max_queue_rows=500)
        asked = [batcher.submit(rows([0]), share=Share(str(i)), deadline_s=loop.time() + 0.5) for i in range(200)]
        ends = await asyncio.gather(*map(asyncio.ensure_future, asked), return_exceptions=True)
        answered = sum(not isinstance(end, Exception) for end in ends)
        refused = sum(isinstance(end, Overloaded) for end in ends)
        assert answered + refused == 200 and 25 <= answered <= 50, "a run takes 10 ms"
        await batcher.close()

    virtually(work)


CLIENTS, TIMES = 20, 10
"""So many clients; one of them asks for so many times its share of the same total."""


def others_p99_s(load, *, unfair, turns, seconds=60.0):
    """The p99 of all clients but the first, Poisson arrivals at this part of the capacity; answers and refusals."""

    async def work(loop):
        batcher = batcher_of(loop, max_queue_rows=1024)
        random, waited, refused, sent = np.random.RandomState(1), [], [], []
        parts = np.full(CLIENTS, 1 / CLIENTS)
        if unfair:
            parts[0] *= TIMES
            parts[1:] *= (1 - parts[0]) / parts[1:].sum()

        async def ask(who):
            began_s = loop.time()
            share = Share(f"client {who}") if turns else None
            try:
                await batcher.submit(rows([who]), share=share, deadline_s=began_s + 1.0)
            except GanymedeError:
                refused.append(who)
            else:
                waited.append((who, loop.time() - began_s))

        end_s = loop.time() + seconds
        while loop.time() < end_s:
            await asyncio.sleep(random.exponential(0.01 / load))
            sent.append(asyncio.ensure_future(ask(random.choice(CLIENTS, p=parts))))
        await asyncio.gather(*sent)
        await batcher.close()
        others = [wait_s for who, wait_s in waited if who]
        return float(np.percentile(others, 99)), len(others), sum(who > 0 for who in refused)

    return virtually(work)


@pytest.mark.parametrize("load", [0.5, 0.8, 1.3])
def test_ten_times_the_share_raises_the_others_p99_by_no_more_than_half(load):
    fair_s, _, fair_refused = others_p99_s(load, unfair=False, turns=True)
    unfair_s, answered, unfair_refused = others_p99_s(load, unfair=True, turns=True)
    assert unfair_s <= 1.5 * fair_s, (fair_s, unfair_s)
    assert answered > 500 and unfair_refused <= max(fair_refused, 0.01 * answered)
