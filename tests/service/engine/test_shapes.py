"""Few shapes on a device: filled up so that nothing shows, a session for each shape, and no more than memory holds."""

import asyncio
import threading

import numpy as np
import pytest
from fakesession import POISONS, FakeSession, answers, rows

from service.engine.batcher import Batcher
from service.engine.entries import BatchPolicy
from service.engine.lanes import run_parts
from service.engine.recovery import RecoveringSession
from service.engine.session import Watch
from service.engine.shapes import ShapedSession, filled
from service.errors import RunFailed

LACK = "Available memory of 119296 is smaller than requested bytes of 1572864"


class Device(FakeSession):
    """Counts how often the shape changes, as on CUDA each change is planned anew; holds `room` rows in memory."""

    provider = "cuda"

    def __init__(self, room=1000):
        super().__init__()
        self.room, self.changes, self.last, self.shrunk = room, 0, None, []

    def run(self, inputs, watch=None):
        shape = inputs["x"].shape
        self.changes += shape != self.last
        self.last = shape
        if len(inputs["x"]) > self.room:
            raise RunFailed(LACK)
        return super().run(inputs, watch)

    def shrink(self, inputs):
        self.shrunk.append(inputs["x"].shape)


class Devices:
    """Makes sessions and keeps them."""

    def __init__(self, most=100, **kwargs):
        self.made, self.most, self.kwargs = [], most, kwargs

    def __call__(self):
        if len(self.made) >= self.most:
            raise RunFailed(LACK)
        self.made.append(Device(**self.kwargs))
        return self.made[-1]

    @property
    def sizes(self):
        """Rows of all runs so far, in no order."""
        return sorted({len(batch) for device in self.made for batch in device.batches})

    @property
    def changes(self):
        return sum(device.changes for device in self.made)


def shaped(devices, *, sizes=(1, 2, 4, 8), fills=(2, 8), shelf=4):
    row = rows([1])
    return ShapedSession(devices(), devices, row, sizes=sizes, fills=fills, shelf=shelf, model="m@1")


def check(session, count, width=2):
    given = rows(range(count), width=width)
    np.testing.assert_array_equal(session.run(given)["y"], answers(given)["y"])


class TestFilling:
    @pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 2), (3, 8), (7, 8), (8, 8)])
    def test_runs_are_filled_up_with_copies_and_answers_are_those_of_the_rows(self, count, size):
        devices = Devices()
        check(shaped(devices), count)
        (batch,) = devices.made[0].batches
        assert len(batch) == size and batch[:count] == list(range(count)) and set(batch[count:]) <= {batch[count - 1]}

    def test_no_run_has_a_number_of_rows_that_was_not_looked_at(self):
        devices = Devices()
        session = shaped(devices)
        for count in range(1, 30):
            check(session, count)
        assert devices.sizes == [2, 8]

    def test_every_input_is_filled_up(self):
        inputs = {"z": np.arange(6, dtype=np.float32).reshape(3, 2), "label": np.array([4, 5, 6])}
        full = filled(inputs, 5)
        assert full["label"].tolist() == [4, 5, 6, 6, 6] and full["label"].dtype == np.int64
        np.testing.assert_array_equal(full["z"][3:], inputs["z"][[2, 2]])
        assert filled(inputs, 3) is inputs

    @pytest.mark.parametrize("kind", POISONS)
    def test_a_wrong_answer_is_a_failed_run_of_its_own_rows_alone(self, kind):
        session = shaped(Devices())
        outcome = run_parts(session, [rows([1, 2, 3], poison=kind), rows([4, 5])], lambda index: True)
        assert isinstance(outcome.answers[0], RunFailed)
        np.testing.assert_array_equal(outcome.answers[1]["y"], answers(rows([4, 5]))["y"])

    def test_what_is_wrong_with_a_copy_alone_is_nobodys_fault(self):
        class LastIsNaN(Device):
            def run(self, inputs, watch=None):
                outputs = super().run(inputs, watch)
                outputs["y"][-1] = np.nan
                return outputs

        session = ShapedSession(LastIsNaN(), Device, rows([1]), sizes=(1, 4), fills=(4,), shelf=1, model="m@1")
        (answer,) = run_parts(session, [rows([1, 2])], lambda index: True).answers
        np.testing.assert_array_equal(answer["y"], answers(rows([1, 2]))["y"])

    def test_too_many_answers_are_not_taken_for_those_of_copies(self):
        class Long(Device):
            def run(self, inputs, watch=None):
                return {name: array[:-1] for name, array in super().run(inputs, watch).items()}

        session = ShapedSession(Long(), Long, rows([1]), sizes=(1, 4), fills=(4,), shelf=1, model="m@1")
        with pytest.raises(RunFailed, match="another number of rows"):
            session.run(rows([1, 2]))

    async def test_metrics_and_answers_count_the_rows_that_came(self):
        devices = Devices()
        batcher = Batcher([RecoveringSession(shaped(devices), None, model="m@1")], BatchPolicy(8), name="m@1")
        results = await asyncio.gather(*(batcher.submit(rows([value])) for value in range(5)))
        stats = batcher.stats()
        await batcher.close()
        assert [result.outputs["y"].tolist() for result in results] == [[[2 * v + 1] * 2] for v in range(5)]
        assert stats.rows_total == 5 and stats.batch_rows == {5: 1} and {r.batch_rows for r in results} == {5}
        assert devices.sizes == [8]


class TestShelf:
    def test_each_size_that_is_filled_up_to_is_planned_once(self):
        devices = Devices()
        session = shaped(devices)
        session.warm(rows([1]))
        assert devices.sizes == [2, 8] and len(devices.made) == 2
        for count in (1, 8, 2, 5, 1, 7):
            check(session, count)
        assert devices.changes == 2

    def test_rows_of_other_shapes_run_one_by_one_and_are_planned_once_too(self):
        devices = Devices()
        session = shaped(devices)
        session.warm(rows([1]))
        check(session, 3, width=5)
        check(session, 2)
        check(session, 2, width=5)
        assert devices.sizes == [1, 2, 8] and devices.changes == 3

    def test_the_shape_used_longest_ago_goes(self):
        devices = Devices()
        session = shaped(devices, shelf=3)
        for width in (3, 4, 5, 3, 6, 3):
            check(session, 1, width=width)
        assert len(devices.made) == 3 and devices.changes == 4, "that of width 4 made room for width 6"
        check(session, 1, width=4)
        assert devices.changes == 5 and [shape[1][0][1] for shape in session.shapes] == [(6,), (3,), (4,)]

    def test_one_session_serves_all_where_no_more_may_be(self):
        devices = Devices()
        session = shaped(devices, fills=(8,), shelf=1)
        for width in (2, 3, 2):
            check(session, 3, width=width)
        assert len(devices.made) == 1

    def test_where_none_can_be_made_those_that_are_there_go_on(self):
        devices = Devices(most=2)
        session = shaped(devices)
        for width in (2, 3, 4, 2, 3):
            check(session, 1, width=width)
        assert len(devices.made) == 2
        devices.most = 100
        check(session, 1, width=6)
        assert len(devices.made) == 2, "not tried for again"

    def test_one_that_would_be_elsewhere_is_not_taken(self):
        """Asked for whatever works, a session that finds no room on the device ends on the CPU, with other bits."""
        devices = Devices()
        session = shaped(devices)
        check(session, 1)

        def on_the_cpu():
            device = Device()
            device.provider = "cpu"
            return device

        session._make = on_the_cpu
        check(session, 1, width=5)
        assert [one.provider for one in session.sessions] == ["cuda"]

    def test_lanes_that_share_it_disturb_nobody(self):
        devices, wrong = Devices(), []
        session = shaped(devices, shelf=3)

        def lane(width):
            for count in [1, 2, 3, 7] * 50:
                given = rows(range(count), width=width)
                if not np.array_equal(session.run(given)["y"], answers(given)["y"]):
                    wrong.append(width)

        threads = [threading.Thread(target=lane, args=(width,)) for width in (2, 3, 4, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == [] and len(devices.made) == 3

    def test_a_session_that_is_made_meanwhile_is_no_hanging_run(self):
        seen, watch = [], Watch()

        class Slow(Devices):
            def __call__(self):
                seen.append(watch.loading)
                return super().__call__()

        session = shaped(Slow())
        check(session, 1)
        session.run(rows([1], width=7), watch)
        assert seen == [False, True] and not watch.loading

    def test_each_row_that_runs_alone_moves_the_watch_and_none_runs_after_it_was_ended(self):
        devices, watch = Devices(), Watch()
        session = shaped(devices)
        session.run(rows(range(5), width=7), watch)
        assert watch.calls == 5
        watch.terminate()
        with pytest.raises(RunFailed, match="ended"):
            session.run(rows(range(5), width=7), watch)


class TestMemory:
    def test_less_is_filled_up_where_the_whole_does_not_fit(self):
        devices = Devices(room=4)
        session = shaped(devices, fills=(8,), shelf=1)
        check(session, 3)
        assert [len(batch) for batch in devices.made[0].batches] == [8, 4] or devices.sizes == [4]
        check(session, 1)
        assert devices.made[0].last[0] == 1, "a size that was looked at, and no more than needed"

    def test_what_does_not_fit_at_all_is_told(self):
        with pytest.raises(RunFailed, match="Available memory"):
            shaped(Devices(room=4), fills=(8,), shelf=1).run(rows(range(8)))

    def test_other_shapes_sessions_are_given_up_first(self):
        """All of them share one device, whose room is what they leave."""
        devices = Devices()
        session = shaped(devices)
        session.warm(rows([1]))
        check(session, 1, width=9)

        class Crowded(Device):
            def run(self, inputs, watch=None):
                if len(session.sessions) > 1:
                    raise RunFailed(LACK)
                return super().run(inputs, watch)

        for device in devices.made:
            device.__class__ = Crowded
        check(session, 8)
        assert len(session.sessions) == 1
        check(session, 1, width=9)
        assert len(session.sessions) == 1, "and none is kept for others from then on"

    def test_it_recovers_as_any_session_does(self):
        devices = Devices(room=4)
        session = RecoveringSession(shaped(devices, fills=(8,), shelf=1), lambda on_cpu: None, model="m@1")
        check(session, 7)
        assert session.max_rows == 4
        check(session, 8)
        assert set(devices.sizes) <= {1, 2, 4}

    def test_a_row_that_cannot_run_alone_goes_the_way_of_recovery(self):
        made = []

        def make(on_cpu):
            made.append(on_cpu)
            session = FakeSession()
            session.provider = "cpu"
            return session

        session = RecoveringSession(shaped(Devices(room=0), fills=(8,), shelf=1), make, model="m@1")
        check(session, 1)
        assert made == [False]

    def test_filling_up_comes_back_when_as_much_fits_again(self):
        devices = Devices(room=4)
        session = shaped(devices, fills=(8,), shelf=1)
        check(session, 3)
        devices.made[0].room = 8
        check(session, 8)
        check(session, 1)
        assert devices.made[0].last[0] == 8

    def test_while_idle_other_shapes_go_and_the_planned_stay_planned(self):
        devices = Devices()
        session = shaped(devices)
        session.warm(rows([1]))
        check(session, 1, width=9)
        session.shrink(rows([1]))
        assert sorted(device.shrunk for device in devices.made) == [[], [(2, 2)], [(8, 2)]]
        assert len(session.sessions) == 2
        before = devices.changes
        check(session, 8)
        check(session, 1)
        assert devices.changes == before

    def test_a_session_that_had_other_shapes_alone_is_kept_and_shrunk(self):
        devices = Devices()
        session = shaped(devices)
        check(session, 1, width=9)
        session.shrink(rows([1]))
        assert devices.made[0].shrunk == [(1, 2)] and len(session.sessions) == 1
        check(session, 2)
