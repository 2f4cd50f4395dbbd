"""What a session is asked before it serves: costs, and whether rows keep their bits in every run that may be used."""

import numpy as np
import pytest
from fakesession import FakeSession, answers, rows

from service.engine.probing import WATCHED, Watched, extreme, looked_at_up_to, probe, varied
from service.errors import RunFailed

INF = float("inf")


class Mixing(FakeSession):
    """Rows see the batch's mean, as with training-mode batch norm."""

    def run(self, inputs):
        return {"y": inputs["x"] - inputs["x"].mean(axis=0)}


class Fragile(FakeSession):
    def run(self, inputs):
        if np.abs(inputs["x"]).max() > 50:
            raise RunFailed("too extreme")
        return super().run(inputs)


class Chooses(FakeSession):
    """Other kernels for these numbers of rows: a last bit differs, and only of the rows that hold `shows`."""

    def __init__(self, sizes, shows, place=None):
        super().__init__()
        self.sizes, self.shows, self.place = sizes, shows, place

    def run(self, inputs, watch=None):
        outputs = super().run(inputs)
        if len(inputs["x"]) in self.sizes:
            wrong = inputs["x"][:, 0] == self.shows
            if self.place is not None:
                wrong &= np.arange(len(wrong)) == self.place
            outputs["y"][wrong] = np.nextafter(outputs["y"][wrong], np.float32(1e9))
        return outputs


class Wavers(FakeSession):
    """Plans a shape anew when it is returned to, and otherwise than before."""

    def run(self, inputs, watch=None):
        outputs = super().run(inputs)
        if len(inputs["x"]) == 1 and max(map(len, self.batches)) > 1:
            outputs["y"] += 1
        return outputs


def test_extremes_leave_the_watched_row_alone():
    inputs = {**rows([1, 2]), "i": np.arange(8, dtype=np.uint8).reshape(2, 4), "k": np.array([5, 6])}
    batch = extreme(inputs, 5, 3)
    for name, array in inputs.items():
        np.testing.assert_array_equal(batch[name][3], array[0])
    assert np.abs(batch["x"][[0, 1, 2, 4]]).min() >= 90 and set(batch["i"][[0, 1]].ravel()) == {0, 255}
    assert set(batch["k"]) <= {5, 6}, "whole numbers index something: never out of range"


def test_what_is_watched_are_the_recorded_rows_and_others_like_them():
    inputs = {"x": np.random.RandomState(0).randn(3, 64).astype(np.float32), "k": np.array([5, 6, 7])}
    made = varied(inputs, WATCHED)
    np.testing.assert_array_equal(made["x"][:3], inputs["x"])
    assert len({row.tobytes() for row in made["x"]}) == WATCHED, "no two alike"
    assert all(sorted(made["x"][i]) == sorted(inputs["x"][i % 3]) for i in range(WATCHED))
    assert made["k"].tolist() == [5, 6, 7, 5, 6, 7, 5, 6]


def test_rows_that_are_no_numbers_are_not_watched():
    """A run that answers so has failed, and which of NaN's bit patterns it holds may depend on the place."""

    class Roots(FakeSession):
        def run(self, inputs, watch=None):
            with np.errstate(invalid="ignore"):
                return {"y": np.sqrt(inputs["x"])}

    watched = Watched(Roots(), rows([4, -1, 9, -2]))
    assert [answer["y"][0, 0] for answer in watched.alone] == [2, 3, 2, 3]
    assert watched.inputs["x"][:, 0].tolist() == [4, 9, 4, 9]
    assert probe(Roots(), rows([4, -1, 9, -2]), [2, 4], INF).independent


@pytest.mark.parametrize("size", [2, 3, 5, 8, 32])
def test_every_watched_row_stands_in_a_batch_of_every_size(size):
    watched = Watched(FakeSession(), rows(range(1, 5)))
    batches = list(watched.batches(size))
    assert {row for batch in batches for row in batch} == set(range(WATCHED))
    assert all(len(batch) == size for batch in batches)


@pytest.mark.parametrize(("session", "independent"), [(FakeSession(), True), (Mixing(), False), (Fragile(), True)])
def test_rows_that_see_each_other_are_found(session, independent):
    found = probe(session, rows([1, 2, 3]), [2, 3, 8], INF)
    assert found.independent is independent
    assert set(found.costs) == ({1, 2, 3, 8} if independent else {1})


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("size", [2, 8, 32])
@pytest.mark.parametrize("shows", [1, 4])
def test_one_row_of_several_that_differs_at_one_size_is_found(size, shows, device):
    """On an NVIDIA device one of eight pictures differed in runs of two, and not the first."""
    found = probe(Chooses({size}, shows), rows([1, 2, 3, 4]), [2, 4, 8, 16, 32], INF, device=device)
    assert not found.independent and max(found.costs) < size


@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_that_differs_in_one_place_is_found(place):
    watched = Watched(FakeSession(), rows(range(1, 9)))
    (batch,) = watched.batches(8)
    assert not probe(Chooses({8}, 1 + batch[place], place), rows(range(1, 9)), [2, 4, 8], INF).independent


def test_answers_that_waver_from_run_to_run_are_found_on_a_device():
    found = probe(Wavers(), rows([1, 2, 3]), [2, 4], INF, device=True)
    assert not found.repeatable and not found.independent
    assert probe(FakeSession(), rows([1, 2, 3]), [2, 4], INF, device=True).repeatable


def test_what_returning_to_a_shape_costs_is_measured(monkeypatch):
    """A clock that only the session moves: a second for a shape that is not the last one's, else a tenth."""
    now = [0.0]

    class Plans(FakeSession):
        last = None

        def run(self, inputs, watch=None):
            now[0] += 0.1 if len(inputs["x"]) == self.last else 1.0
            self.last = len(inputs["x"])
            return super().run(inputs)

    monkeypatch.setattr("service.engine.probing.time.perf_counter", lambda: now[0])
    found = probe(Plans(), rows([1, 2, 3]), [2, 4], INF, device=True)
    assert found.shape_s == pytest.approx(0.9) and found.costs == pytest.approx({1: 0.1, 2: 0.1, 4: 0.1})


@pytest.mark.parametrize("device", [False, True])
def test_batches_that_do_not_fit_into_memory_are_not_planned(device):
    class Tight(FakeSession):
        def run(self, inputs, watch=None):
            if len(inputs["x"]) > 4:
                raise RunFailed("Failed to allocate memory for requested buffer")
            return super().run(inputs, watch)

    found = probe(Tight(), rows([1, 2, 3]), [2, 4, 8, 16], INF, device=device)
    assert set(found.costs) == {1, 2, 4} and found.independent


def test_the_deadline_bounds_the_probe():
    session = FakeSession()
    assert set(probe(session, rows([1]), [2, 4, 8], 0.0).costs) == {1, 2}
    assert len(session.batches) < 30


class TestSizesInBetween:
    """On the CPU runs are not filled up, so any number of rows up to the cap may ride together."""

    def test_they_are_looked_at_too(self):
        session = FakeSession()
        assert looked_at_up_to(session, rows([1, 2, 3]), [1, 2, 3, 4, 8, 16], 8, INF) == 8
        assert {len(batch) for batch in session.batches} == {1, 5, 6, 7}
        assert looked_at_up_to(Chooses({6}, 2), rows([1, 2, 3]), [1, 2, 3, 4, 8], 8, INF) == 0

    def test_what_time_is_left_for_is_what_may_be_used(self):
        assert looked_at_up_to(FakeSession(), rows([1, 2, 3]), [1, 2, 3, 4, 8], 8, 0.0) == 4


def test_the_stand_in_answers_as_it_should():
    np.testing.assert_array_equal(Chooses(set(), 1).run(rows([1, 2]))["y"], answers(rows([1, 2]))["y"])
