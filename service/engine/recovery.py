"""A session that outlives a lack of memory and a run that never came back.

ONNX Runtime has no error class for the former, and an arena that ran full may stay so, run after run; what helps is a
smaller batch, then a new session (its arena goes with the old one), then another device. No row is given up before
that. The memory may have been another process's for a while, so batches grow again after a time. A lane that was given
up may have left its session stuck: unless that answered another run since, the next run gets a new one.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from service.engine.session import Array, Arrays, Session, Watch
from service.errors import GanymedeError, RunFailed

log = logging.getLogger(__name__)

MARKS = (
    "failed to allocate memory",  # ONNX Runtime's arena, any device
    "available memory of",  # the same, where gpu_mem_limit was reached
    "out of memory",  # CUDA, Vulkan, Direct3D
    "bad allocation",
    "bad_alloc",
    "alloc_failed",  # cuBLAS, cuDNN
)
"""What the texts of such errors hold, in lower case."""

REBUILDS = 3
"""Sessions made anew before a device that runs out of memory again and again is given up for the CPU."""

GROW_RUNS = 64
"""Good runs as large as the cap before twice as many rows are tried; each time that they do not fit it takes four times
as many, up to `GROW_RUNS_MOST`. A try that fails costs one run in halves, no request."""
GROW_RUNS_MOST = 4096
FORGIVE_RUNS = 1000
"""Good runs after which the sessions made anew before them no longer count."""
NOTES = 8
"""Lines kept of what was done; all of them are in the log."""


class Provided(Session, Protocol):
    """A session that knows where it runs."""

    provider: str

    def shrink(self, inputs: Arrays) -> None:
        """Give back what its arenas hold beyond the weights, after a run of these inputs."""
        ...


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that memory could not be had."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(mark in text for mark in MARKS):
            return True
        error = error.__cause__
    return False


class HalvingSession:
    """Stands in a session's place while a model is loaded: what does not fit into memory runs in halves.

    Args:
        session: nothing else is tried than this.
    """

    max_rows: int | None = None

    def __init__(self, session: Session) -> None:
        self.spec = session.spec
        self._session = session

    def run(self, inputs: Arrays, watch: Watch | None = None) -> dict[str, Array]:
        """See `Session.run`.

        Raises:
            RunFailed: the run raised; for lack of memory only where one row alone does not fit.
        """
        rows = len(next(iter(inputs.values())))
        try:
            return self._session.run(inputs, watch)
        except RunFailed as error:
            if rows == 1 or not out_of_memory(error):
                raise
        half = (rows + 1) // 2
        halves = [
            self.run({name: array[part] for name, array in inputs.items()}, watch)
            for part in (slice(half), slice(half, rows))
        ]
        return {name: np.concatenate([one[name] for one in halves]) for name in halves[0]}


class RecoveringSession:
    """Stands in a session's place; lanes may share it.

    Args:
        session: the first one.
        make: another like it; given `True`, one on the CPU whatever was asked for.
        model: `name@version`, for the log.

    Attributes:
        max_rows: rows that went into memory after a larger run did not; None until then, and again when as many rows
            as first failed have come to fit.
        notes: what was done, one line each, the newest `NOTES` of them.
    """

    def __init__(self, session: Provided, make: Callable[[bool], Provided], *, model: str) -> None:
        self.spec = session.spec
        self.provider = session.provider
        self.max_rows: int | None = None
        self.notes: tuple[str, ...] = ()
        self.model = model
        self._make = make
        self._session: Provided | None = session
        self._generation = 0
        self._rebuilt = 0
        self._fresh = False  # made anew, and no run of it went well yet
        self._good = 0  # runs that went well since the last session was made anew
        self._full = 0  # of these, with as many rows as the cap allows
        self._full_needed = GROW_RUNS
        self._failed_rows = 0  # the most rows that did not fit
        self._grown_from: int | None = None  # the cap before it grew, until a larger run went well or did not
        self._under_way: dict[Watch, tuple[int, float]] = {}  # whose run -> the session's number, when it began
        self._answered_s = 0.0  # when the newest run began that this session answered
        self._changing = threading.Lock()  # held while a session is made
        self._counting = threading.Lock()  # never held for long

    def run(self, inputs: Arrays, watch: Watch | None = None) -> dict[str, Array]:
        """See `Session.run`; a batch that does not fit is run in pieces.

        Raises:
            RunFailed: the run raised; for lack of memory only where one row alone does not fit on the CPU either.
        """
        watch = watch or Watch()
        rows = len(next(iter(inputs.values())))
        if self.max_rows is not None and rows > self.max_rows:
            return self._split(inputs, rows, self.max_rows, watch)
        while True:
            session, generation = self._current(watch)
            began_s = time.monotonic()
            self._under_way[watch] = (generation, began_s)
            try:
                answers = session.run(inputs, watch)
            except Exception as error:
                if watch.terminated or not out_of_memory(error):
                    raise
                reason = str(error)[:300]
            else:
                self._went_well(rows, generation, began_s)
                return answers
            finally:
                self._under_way.pop(watch, None)
            del session  # else it could not be freed below
            if rows > 1:
                self._shrink_cap(rows, reason)
                return self._split(inputs, rows, (rows + 1) // 2, watch)
            self._renew(generation, reason, watch)
            watch.calls += 1

    def shrink(self, inputs: Arrays) -> None:
        """Give back what the arenas hold beyond the weights; nothing where the session is being made anew.

        Args:
            inputs: one row to run.

        Raises:
            RunFailed: the run raised.
        """
        session = self._session
        if session is not None:
            session.shrink(inputs)

    def _split(self, inputs: Arrays, rows: int, size: int, watch: Watch) -> dict[str, Array]:
        pieces = []
        for start in range(0, rows, size):
            watch.calls += 1
            pieces.append(self.run({name: array[start : start + size] for name, array in inputs.items()}, watch))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _shrink_cap(self, rows: int, reason: str) -> None:
        fits = (rows + 1) // 2
        with self._counting:
            if self.max_rows is not None and self.max_rows <= fits:
                return  # another lane found the same
            if self._grown_from is not None:
                self._full_needed = min(4 * self._full_needed, GROW_RUNS_MOST)
            self._failed_rows = max(self._failed_rows, rows)
            self.max_rows, self._full, self._grown_from = fits, 0, None
            self._note(f"out of memory with {rows} rows, so at most {fits} in one run: {reason}")

    def _went_well(self, rows: int, generation: int, began_s: float) -> None:
        """Count a good run; after enough of them, the cap grows and what was made anew is forgiven."""
        self._fresh = False
        with self._counting:
            if generation == self._generation:
                self._answered_s = max(self._answered_s, began_s)
            self._good += 1
            if self._good >= FORGIVE_RUNS:
                self._rebuilt = 0
            if self._grown_from is not None and rows > self._grown_from:
                self._grown_from, self._full_needed = None, GROW_RUNS
            cap = self.max_rows
            if cap is None or rows < cap:
                return
            self._full += 1
            if self._full >= self._full_needed:
                self._grown_from, self._full = cap, 0
                self.max_rows = 2 * cap if 2 * cap < self._failed_rows else None
                log.info("%s: %d runs of %d rows fitted; trying more", self.model, self._full_needed, cap)

    def _current(self, watch: Watch) -> tuple[Provided, int]:
        """The session and its number; made where the last attempt left none, or where it is stuck."""
        self._leave_stuck()
        generation, session = self._generation, self._session  # in this order: an old number is only tried again
        if session is not None:
            return session, generation
        watch.loading = True
        try:
            with self._changing:
                if self._session is None:
                    self._session = self._made(on_cpu=self.provider == "cpu")
                return self._session, self._generation
        finally:
            watch.loading = False

    def _leave_stuck(self) -> None:
        """Drop the session where a lane was given up in it and no run that began later was answered."""
        if not self._under_way or not any(watch.abandoned for watch in list(self._under_way)):
            return
        with self._changing:
            given_up = [(watch, *run) for watch, run in list(self._under_way.items()) if watch.abandoned]
            for watch, generation, began_s in given_up:
                self._under_way.pop(watch, None)
                if generation == self._generation and self._answered_s <= began_s:
                    self._session = None
                    self._generation += 1
                    self._note("a run never came back, session made anew")

    def _renew(self, generation: int, reason: str, watch: Watch) -> None:
        """Make the session anew, or on the CPU where that has been of no use.

        Raises:
            RunFailed: nothing is left to try.
        """
        watch.loading = True
        try:
            with self._changing:
                if generation != self._generation:
                    return  # another lane did it meanwhile
                useless = self._fresh or self._rebuilt >= REBUILDS
                if useless and self.provider == "cpu":
                    raise RunFailed(f"{self.spec.file}: out of memory for a single row: {reason}")
                self._session = None  # now, so that its memory is free for the next
                self._generation += 1
                if not useless:
                    self._rebuilt += 1
                    self._note(f"out of memory for a single row on {self.provider}, session made anew: {reason}")
                    try:
                        self._session = self._made(on_cpu=False)
                        return
                    except RunFailed as error:
                        if self.provider == "cpu":
                            raise
                        reason = error.detail
                self._note(f"{self.provider} given up for the CPU: {reason}")
                self.provider, self._rebuilt = "cpu", 0
                self._session = self._made(on_cpu=True)
        finally:
            watch.loading = False

    def _made(self, *, on_cpu: bool) -> Provided:
        try:
            session = self._make(on_cpu)
        except (GanymedeError, MemoryError, RuntimeError) as error:
            raise RunFailed(f"{self.spec.file}: no session could be made anew: {error}") from error
        self.provider, self._fresh = session.provider, True
        self._good, self._answered_s = 0, 0.0
        return session

    def _note(self, text: str) -> None:
        log.error("%s: %s", self.model, text)
        self.notes = (*self.notes, text)[-NOTES:]
