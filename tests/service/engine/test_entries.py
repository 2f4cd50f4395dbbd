"""Which entries ride in the next run, as a function of the queue alone."""

import asyncio

from fakesession import rows
from hypothesis import given
from hypothesis import strategies as st
from tinymodels import write_tiny

from service.engine.engine import Engine, EngineOptions
from service.engine.entries import BatchPolicy, Entry, signature_of, take
from service.engine.pipelines.generate import prepare
from service.manifest import Task


def entry(count, *, order=0, priority=5, deadline_s=None, taken=0, width=2):
    inputs = rows(range(count), width=width)
    made = Entry(inputs, count, signature_of(inputs), 0.0, order, priority, deadline_s)
    made.taken = taken
    return made


def taken_rows(decision, queue):
    return [(queue.index(part.entry), part.start, part.stop) for part in decision.slices]


class TestTake:
    def test_nothing_queued_nothing_taken(self):
        assert take([], 0.0, BatchPolicy(4)).slices == ()

    def test_a_lone_entry_goes_at_once(self):
        queue = [entry(1)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(32)), queue) == [(0, 0, 1)]

    def test_what_is_queued_rides_together_in_order(self):
        queue = [entry(2), entry(1), entry(3)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(32)), queue) == [(0, 0, 2), (1, 0, 1), (2, 0, 3)]

    def test_the_last_that_fits_is_split_at_the_cap(self):
        queue = [entry(3), entry(3), entry(1)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(4)), queue) == [(0, 0, 3), (1, 0, 1)]

    def test_an_entry_goes_on_where_it_was_split(self):
        queue = [entry(9, taken=4), entry(2)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(4)), queue) == [(0, 4, 8)]

    def test_other_shapes_wait_for_the_next_run(self):
        queue = [entry(1), entry(1, width=3), entry(1)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(32)), queue) == [(0, 0, 1), (2, 0, 1)]

    def test_what_came_too_late_is_named_and_not_run(self):
        queue = [entry(1, deadline_s=5.0), entry(1), entry(1, deadline_s=5.1)]
        decision = take(queue, 5.0, BatchPolicy(32))
        assert decision.expired == (queue[0],)
        assert taken_rows(decision, queue) == [(1, 0, 1), (2, 0, 1)]

    def test_free_lanes_share_a_queue(self):
        queue = [entry(8)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(32), free_lanes=2), queue) == [(0, 0, 4)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(32), free_lanes=3), queue) == [(0, 0, 3)]

    def test_but_not_below_the_smallest_share(self):
        queue = [entry(8)]
        assert taken_rows(take(queue, 0.0, BatchPolicy(32, min_share=6), free_lanes=4), queue) == [(0, 0, 6)]

    @given(
        sizes=st.lists(st.integers(1, 9), max_size=8),
        cap=st.integers(1, 8),
        share=st.integers(1, 8),
        lanes=st.integers(1, 4),
    )
    def test_every_row_is_taken_once_and_in_order(self, sizes, cap, share, lanes):
        queue = [entry(size, order=index) for index, size in enumerate(sizes)]
        seen = []
        while queue:
            decision = take(queue, 0.0, BatchPolicy(cap, share), lanes)
            assert 1 <= decision.rows <= cap
            for part in decision.slices:
                assert part.start == part.entry.taken
                seen += [(part.entry.order, row) for row in range(part.start, part.stop)]
                part.entry.taken = part.stop
            queue = [left for left in queue if left.taken < left.rows]
        assert seen == [(index, row) for index, size in enumerate(sizes) for row in range(size)]

    def test_who_would_be_too_late_gives_its_place_to_who_waits_behind(self):
        queue = [entry(1, deadline_s=5.1), entry(1, deadline_s=9.0), entry(1)]
        decision = take(queue, 5.0, BatchPolicy(2), run_s=lambda rows: 0.2 * rows)
        assert decision.expired == (queue[0],)
        assert taken_rows(decision, queue) == [(1, 0, 1), (2, 0, 1)]

    def test_who_would_be_too_late_runs_where_nobody_waits_for_its_place(self):
        queue = [entry(1, deadline_s=5.1), entry(1)]
        decision = take(queue, 5.0, BatchPolicy(2), run_s=lambda rows: 0.2 * rows)
        assert decision.expired == () and taken_rows(decision, queue) == [(0, 0, 1), (1, 0, 1)]
        decision = take(queue, 5.0, BatchPolicy(2), free_lanes=2, run_s=lambda rows: 0.2 * rows)
        assert decision.expired == () and taken_rows(decision, queue) == [(0, 0, 1)]

    def test_too_late_for_a_wide_run_of_another_shape_is_not_too_late(self):
        queue = [entry(1), entry(1, width=3, deadline_s=5.1), entry(1)]
        decision = take(queue, 5.0, BatchPolicy(2), run_s=lambda rows: 0.2 * rows)
        assert decision.expired == () and taken_rows(decision, queue) == [(0, 0, 1), (2, 0, 1)]


def test_who_asks_for_any_picture_is_known_again_though_another_is_drawn(tmp_path):
    """A refused client comes back to its place; by its z it would be a stranger each time."""
    write_tiny(tmp_path, "tiny")

    async def keys():
        async with Engine(EngineOptions(tmp_path, providers=("cpu",), profile_s=0.0, poll_models_s=None)) as engine:
            model = engine._serving("tiny", Task.GENERATE)
            asked = [prepare(model, None, count, None, None, 1.0, 64) for count in (None, 3, 3)]
            seeded = prepare(model, [5], None, None, None, 1.0, 64)
            return [rows.asked for rows in asked], seeded.asked

    (one, *three), seeded = asyncio.run(keys())
    assert one == ("drawn", 1) and three == [("drawn", 3)] * 2 and seeded is None
