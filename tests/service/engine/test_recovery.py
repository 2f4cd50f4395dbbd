"""Lack of memory, injected through the session's seam and once for real: every step, and no row is lost."""

import asyncio
import contextlib
import gc
import threading
import weakref

import numpy as np
import pytest
from fakesession import FakeSession, answers, rows
from hanggraph import LIMIT, greedy_session

from service.engine import batcher as batching
from service.engine import session as sessions
from service.engine.batcher import Batcher
from service.engine.entries import BatchPolicy
from service.engine.lanes import run_parts
from service.engine.recovery import FORGIVE_RUNS, GROW_RUNS, NOTES, REBUILDS, RecoveringSession, out_of_memory
from service.engine.session import Watch
from service.errors import RunFailed

TEXTS = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 4294967296",
    "CUDA error executing cudaMalloc: CUDA out of memory",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation",
    "Available memory of 1048576 is smaller than requested bytes of 4194304",
)


class Tight(FakeSession):
    """Holds `room` rows in memory; fails with `text` beyond, and the first `lacking` runs whatever they hold."""

    def __init__(self, room, *, provider="cuda", text=TEXTS[0], lacking=0):
        super().__init__()
        self.room, self.provider, self.text, self.lacking = room, provider, text, lacking

    def run(self, inputs, watch=None):
        if self.lacking or len(inputs["x"]) > self.room:
            self.lacking = max(0, self.lacking - 1)
            raise RunFailed(f"model@1: the run failed: {self.text}")
        return super().run(inputs, watch)


class Maker:
    """Hands out the given sessions; None for one that cannot be made. Keeps whether the CPU was asked for."""

    def __init__(self, *sessions):
        self.sessions, self.asked = list(sessions), []

    def __call__(self, on_cpu):
        self.asked.append(on_cpu)
        session = self.sessions.pop(0)
        if session is None:
            raise RuntimeError("CUDA out of memory")
        return session


def check(session, count):
    given = rows(range(count))
    np.testing.assert_array_equal(session.run(given)["y"], answers(given)["y"])


@pytest.mark.parametrize("text", TEXTS)
def test_a_batch_that_does_not_fit_is_split_and_the_cap_shrinks(text):
    tight, make = Tight(2, text=text), Maker()
    session = RecoveringSession(tight, make, model="m@1")
    check(session, 7)
    assert session.max_rows == 2 and max(map(len, tight.batches)) == 2 and make.asked == []
    tight.batches.clear()
    check(session, 5)
    assert [len(batch) for batch in tight.batches] == [2, 2, 1], "not tried whole again"
    assert any("at most 2" in note for note in session.notes)


def test_for_a_single_row_the_session_is_made_anew_and_the_old_one_is_gone_by_then():
    first, second = Tight(0), Tight(4)
    old = weakref.ref(first)
    gone = []

    def make(on_cpu):
        gc.collect()
        gone.append(old() is None)
        return second

    session = RecoveringSession(first, make, model="m@1")
    del first
    check(session, 1)
    assert gone == [True] and second.batches == [[0.0]] and session.provider == "cuda"


def test_a_device_that_lacks_memory_after_that_too_is_given_up_for_the_cpu():
    make = Maker(Tight(0), Tight(8, provider="cpu"))
    session = RecoveringSession(Tight(0), make, model="m@1")
    check(session, 3)
    assert make.asked == [False, True] and session.provider == "cpu"
    assert "cuda given up for the CPU" in session.notes[-1]


def test_a_device_whose_session_cannot_be_made_anew_is_given_up_too():
    make = Maker(None, Tight(8, provider="cpu"))
    session = RecoveringSession(Tight(0), make, model="m@1")
    check(session, 1)
    assert make.asked == [False, True] and session.provider == "cpu"


def test_a_device_that_lacks_memory_again_and_again_is_given_up():
    made = [Tight(8) for _ in range(REBUILDS)]
    make = Maker(*made, Tight(8, provider="cpu"))
    session = RecoveringSession(Tight(8, lacking=1), make, model="m@1")
    for each in [*made, None]:
        check(session, 1)
        if each is not None:
            check(session, 1)
            each.lacking = 1
    assert session.provider == "cpu" and make.asked == [False] * REBUILDS + [True]


def test_the_cpu_is_the_last_resort_and_later_requests_are_served():
    last = Tight(0, provider="cpu")
    session = RecoveringSession(Tight(0, provider="cpu"), Maker(last), model="m@1")
    with pytest.raises(RunFailed, match="out of memory for a single row"):
        session.run(rows([1]))
    last.room = 4
    check(session, 4)


def test_where_no_session_can_be_made_the_next_request_tries_again():
    session = RecoveringSession(Tight(0, provider="cpu"), Maker(None, Tight(4, provider="cpu")), model="m@1")
    with pytest.raises(RunFailed, match="no session could be made anew"):
        session.run(rows([1]))
    check(session, 2)


def test_other_failures_pass_through_untouched():
    make = Maker()
    session = RecoveringSession(Tight(8), make, model="m@1")
    with pytest.raises(ZeroDivisionError):
        session.run(rows([1, 2], poison="bug"))
    outcome = run_parts(session, [rows([1, 2], poison="raises"), rows([3])], lambda index: True)
    assert isinstance(outcome.answers[0], RunFailed) and outcome.answers[1]["y"].tolist() == [[7, 7]]
    assert session.max_rows is None and make.asked == [] and session.notes == ()


def test_a_run_that_was_ended_is_not_run_again():
    tight, watch = Tight(0), Watch()
    watch.terminate()
    session = RecoveringSession(tight, Maker(), model="m@1")
    with pytest.raises(RunFailed):
        session.run(rows([1]), watch)


def test_lanes_that_fail_together_make_one_session_anew():
    both = threading.Barrier(2)

    class Meeting(Tight):
        def run(self, inputs, watch=None):
            both.wait()
            return super().run(inputs, watch)

    make = Maker(Tight(8))
    session = RecoveringSession(Meeting(0), make, model="m@1")
    results = []
    threads = [threading.Thread(target=lambda: results.append(session.run(rows([1])))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result["y"].tolist() for result in results] == [[[3, 3]]] * 2 and make.asked == [False]


async def test_the_batcher_takes_no_more_than_fits_and_loses_nobody():
    tight = Tight(3)
    session = RecoveringSession(tight, Maker(), model="m@1")
    batcher = Batcher([session], BatchPolicy(16), name="m@1")
    results = await asyncio.gather(*(batcher.submit(rows([value])) for value in range(40)))
    assert [result.outputs["y"][0, 0] for result in results] == [2 * value + 1 for value in range(40)]
    assert session.max_rows == 2 and max(map(len, tight.batches)) <= 3
    stats = batcher.stats()
    assert stats.ended_total == {"answered": 40} and stats.failures_total == 0
    assert set(stats.batch_rows) == {16, 2}, "one batch as planned, the others as they fit"
    await batcher.close()


def test_onnxruntimes_own_words_are_understood(tmp_path):
    real = greedy_session(tmp_path)
    with pytest.raises(RunFailed) as caught:
        real.run(rows([LIMIT + 1]))
    assert out_of_memory(caught.value), str(caught.value)
    session = RecoveringSession(real, lambda on_cpu: greedy_session(tmp_path), model="m@1")
    outcome = run_parts(session, [rows([1]), rows([LIMIT + 1]), rows([2])], lambda index: True)
    assert [type(answer) for answer in outcome.answers] == [dict, RunFailed, dict]
    assert outcome.answers[2]["y"].tolist() == [[5, 5]]


def test_what_is_no_lack_of_memory():
    assert not out_of_memory(RunFailed("Invalid rank for input: z")) and not out_of_memory(None)
    assert out_of_memory(MemoryError())


class TestGrowingAgain:
    """After enough good runs as large as the cap, more is tried; what does not fit costs nobody anything."""

    def grow(self, session):
        """Runs as large as the cap until it changes; how many it took."""
        cap, count = session.max_rows, 0
        while session.max_rows == cap:
            check(session, cap)
            count += 1
        return count

    def test_the_cap_doubles_until_what_failed_fits_again(self):
        tight = Tight(1)
        session = RecoveringSession(tight, Maker(), model="m@1")
        check(session, 8)
        assert session.max_rows == 1
        tight.room = 8  # another process has ended
        self.grow(session)  # the eight single rows counted
        assert session.max_rows == 2 and self.grow(session) == GROW_RUNS
        assert session.max_rows == 4 and self.grow(session) == GROW_RUNS
        assert session.max_rows is None
        tight.batches.clear()
        check(session, 8)
        assert tight.batches == [list(range(8))], "whole again"

    def test_runs_below_the_cap_prove_nothing(self):
        session = RecoveringSession(Tight(4), Maker(), model="m@1")
        check(session, 8)
        for _ in range(3 * GROW_RUNS):
            check(session, 3)
        assert session.max_rows == 4

    def test_a_try_that_fails_loses_no_row_and_the_next_comes_later(self):
        tight = Tight(4)
        session = RecoveringSession(tight, Maker(), model="m@1")
        check(session, 8)
        first = self.grow(session)
        assert session.max_rows is None
        check(session, 8)
        assert session.max_rows == 4, "it did not fit"
        assert self.grow(session) == 4 * GROW_RUNS - 2 == 4 * (first + 2) - 2, "but for the two halves of each try"

    def test_sessions_made_anew_long_ago_do_not_count(self):
        made = [Tight(8) for _ in range(REBUILDS + 1)]
        make = Maker(*made)
        session = RecoveringSession(Tight(8, lacking=1), make, model="m@1")
        for each in made[:-1]:
            check(session, 1)
            check(session, 1)
            each.lacking = 1 if each is not made[-2] else 0
        for _ in range(FORGIVE_RUNS):
            check(session, 1)
        made[-2].lacking = 1
        check(session, 1)
        assert session.provider == "cuda" and make.asked == [False] * (REBUILDS + 1)

    def test_notes_do_not_grow_for_ever(self):
        tight = Tight(1)
        session = RecoveringSession(tight, Maker(), model="m@1")
        for rows_ in range(2 * NOTES + 2, 2, -1):
            session.max_rows = None
            check(session, rows_)
        assert len(session.notes) == NOTES


class Deaf(Tight):
    """A run with a negative number waits until the test lets it go, whatever its watch says."""

    def __init__(self):
        super().__init__(8)
        self.release, self.inside = threading.Event(), threading.Event()

    def run(self, inputs, watch=None):
        if (inputs["x"] < 0).any():
            self.inside.set()
            self.release.wait()
            raise RunFailed("let go")
        return super().run(inputs, watch)


def hang(session, deaf):
    """A lane that does not come back; its watch and its thread."""
    watch = Watch()

    def lane():
        with contextlib.suppress(RunFailed):
            session.run(rows([-1]), watch)

    thread = threading.Thread(target=lane, daemon=True)
    thread.start()
    assert deaf.inside.wait(10)
    return watch, thread


def test_after_a_lane_was_given_up_the_next_run_has_a_session_of_its_own():
    deaf, fresh = Deaf(), Tight(8)
    make = Maker(fresh)
    session = RecoveringSession(deaf, make, model="m@1")
    watch, thread = hang(session, deaf)
    check(session, 1)
    assert make.asked == [], "it may only be slow"
    watch.terminate()
    watch.abandoned = True
    deaf.release.set()
    thread.join()
    check(session, 2)
    assert make.asked == [], "it came back"


def test_a_session_in_which_a_lane_was_given_up_is_made_anew_once():
    deaf, fresh = Deaf(), Tight(8)
    make = Maker(fresh)
    session = RecoveringSession(deaf, make, model="m@1")
    watch, thread = hang(session, deaf)
    watch.abandoned = True
    check(session, 1)
    check(session, 2)
    assert make.asked == [False] and deaf.batches == [] and len(fresh.batches) == 2
    assert session.notes == ("a run never came back, session made anew",)
    deaf.release.set()
    thread.join()
    check(session, 2)
    assert make.asked == [False]


def test_a_session_that_answered_others_meanwhile_is_kept():
    deaf = Deaf()
    make = Maker()
    session = RecoveringSession(deaf, make, model="m@1")
    watch, thread = hang(session, deaf)
    check(session, 2)  # another lane
    watch.abandoned = True
    check(session, 3)
    assert make.asked == [] and len(deaf.batches) == 2
    deaf.release.set()
    thread.join()


async def test_the_batcher_says_which_runs_it_gave_up(monkeypatch):
    monkeypatch.setattr(batching, "TERMINATE_S", 0.1)
    deaf, fresh = Deaf(), Tight(8)
    make = Maker(fresh)
    session = RecoveringSession(deaf, make, model="m@1")
    batcher = Batcher([session], BatchPolicy(8), row_s=0.001, run_timeout_s=0.3, name="m@1")
    with pytest.raises(RunFailed):
        await batcher.submit(rows([-1]))
    assert (await batcher.submit(rows([4]))).outputs["y"][0, 0] == 9
    assert make.asked == [False] and fresh.batches == [[4.0]]
    deaf.release.set()
    await batcher.close()


def test_a_session_that_is_made_during_a_run_is_not_waited_for_for_ever(monkeypatch):
    watch = Watch()
    assert not watch.loading
    watch.loading = True
    assert watch.loading
    later_s = sessions.time.monotonic() + sessions.LOADING_S + 1
    monkeypatch.setattr(sessions.time, "monotonic", lambda: later_s)
    assert not watch.loading
