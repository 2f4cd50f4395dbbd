"""A session that outlives a lack of memory: splits the batch, shrinks the cap, is made anew, at last on the CPU.

ONNX Runtime has no error class for it and an arena that ran full may stay so, run after run; what helps is a smaller
batch, then a new session (its arena goes with the old one), then another device. No row is given up before that.
"""

import logging
import threading
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


class Provided(Session, Protocol):
    """A session that knows where it runs."""

    provider: str


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that memory could not be had."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(mark in text for mark in MARKS):
            return True
        error = error.__cause__
    return False


class RecoveringSession:
    """Stands in a session's place; lanes may share it.

    Args:
        session: the first one.
        make: another like it; given `True`, one on the CPU whatever was asked for.
        model: `name@version`, for the log.

    Attributes:
        max_rows: rows that went into memory after a larger run did not; None until then. It stays until a reload.
        notes: what was done, one line each.
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
        self._changing = threading.Lock()

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
            try:
                answers = session.run(inputs, watch)
            except Exception as error:
                if watch.terminated or not out_of_memory(error):
                    raise
                reason = str(error)[:300]
            else:
                self._fresh = False
                return answers
            del session  # else it could not be freed below
            if rows > 1:
                self._shrink(rows, reason)
                return self._split(inputs, rows, (rows + 1) // 2, watch)
            self._renew(generation, reason, watch)
            watch.calls += 1

    def _split(self, inputs: Arrays, rows: int, size: int, watch: Watch) -> dict[str, Array]:
        pieces = []
        for start in range(0, rows, size):
            watch.calls += 1
            pieces.append(self.run({name: array[start : start + size] for name, array in inputs.items()}, watch))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _shrink(self, rows: int, reason: str) -> None:
        fits = (rows + 1) // 2
        with self._changing:
            if self.max_rows is None or fits < self.max_rows:
                self.max_rows = fits
                self._note(f"out of memory with {rows} rows, so at most {fits} in one run: {reason}")

    def _current(self, watch: Watch) -> tuple[Provided, int]:
        """The session and its number; made where the last attempt left none."""
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
                self._generation += 1
                self._session = None  # first, so that its memory is free for the next
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
        return session

    def _note(self, text: str) -> None:
        log.error("%s: %s", self.model, text)
        self.notes = (*self.notes, text)
