"""Lanes: the worker threads that run a session, and what one run of several entries' rows comes to."""

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from service.engine.entries import Decision
from service.engine.session import Array, Arrays, Session, Watch, check_outputs
from service.errors import GanymedeError, RunFailed
from service.process import step_back


@dataclass(eq=False, slots=True)
class Run:
    """What one lane is doing. `seen`: the session calls that its watcher has given their time."""

    lane: int
    decision: Decision
    started_s: float
    watch: Watch
    rows: int
    seen: int = 1
    timer: asyncio.TimerHandle | None = None


class Lane(Protocol):
    """Runs one job at a time. Tests put one in that runs jobs when told to."""

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; only called while the lane is free. The job never raises."""
        ...

    def close(self, timeout_s: float) -> bool:
        """Take no more jobs and wait for the last; False where it is still running after the timeout."""
        ...


class ThreadLane:
    """A thread of its own. A daemon, so that a run that hangs cannot keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def start(self, job: Callable[[], None]) -> None:
        """See `Lane.start`."""
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """See `Lane.close`."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        step_back()
        while (job := self._jobs.get()) is not None:
            job()
            del job  # else the last run's arrays stay alive while the lane waits


class Outcome(NamedTuple):
    """What a run came to, one answer for each of its parts in their order.

    `started_s` and `ended_s` are `time.monotonic()`. `runs` counts session calls; above one, the rows ran apart.
    """

    answers: tuple[dict[str, Array] | GanymedeError, ...]
    started_s: float
    ended_s: float
    runs: int
    failures: int


def run_parts(
    session: Session, parts: Sequence[Arrays], wanted: Callable[[int], bool], watch: Watch | None = None
) -> Outcome:
    """Run several requests' rows as one batch; where that fails, every row apart, so that a bad one fails alone.

    Args:
        session: called on this thread.
        parts: each request's rows; all of one shape signature.
        wanted: whether anyone still waits for part i; asked before its rows run apart.
        watch: counts the session calls; a run that it ended is not run again.

    Returns:
        Never raises: what went wrong stands in the part's place.
    """
    started_s = time.monotonic()
    watch = watch or Watch()
    try:
        answers, runs, failures = _answers(session, parts, wanted, watch)
    except BaseException as error:  # a lane that died would leave its waiters unanswered
        answers, runs, failures = [_failure(session, error) for _ in parts], 1, 1
    return Outcome(tuple(answers), started_s, time.monotonic(), runs, failures)


def _answers(
    session: Session, parts: Sequence[Arrays], wanted: Callable[[int], bool], watch: Watch
) -> tuple[list[dict[str, Array] | GanymedeError], int, int]:
    """The answers, the session calls that it took, and how many of them failed."""
    sizes = [len(next(iter(part.values()))) for part in parts]
    try:
        whole = _run(session, _join(parts), watch)
        if len(parts) == 1:
            return [whole], 1, 0
        ends = list(itertools.accumulate(sizes))
        bounds = zip([0, *ends], ends, strict=False)
        return [{name: array[a:b] for name, array in whole.items()} for a, b in bounds], 1, 0
    except RunFailed as error:
        if sum(sizes) == 1 or watch.terminated:
            return [error for _ in parts], 1, 1
    runs, failures = 1, 1
    answers: list[dict[str, Array] | GanymedeError] = []
    for index, (part, rows) in enumerate(zip(parts, sizes, strict=True)):
        singles = []
        try:
            for row in range(rows):
                if watch.terminated or not wanted(index):
                    raise RunFailed("nobody waits for these rows any more")
                runs += 1
                singles.append(_run(session, {name: array[row : row + 1] for name, array in part.items()}, watch))
            answers.append(_join(singles))
        except RunFailed as error:
            failures += 1
            answers.append(error)
    return answers, runs, failures


def _run(session: Session, inputs: Arrays, watch: Watch) -> dict[str, Array]:
    """One session call, its answers checked; whatever goes wrong is a RunFailed."""
    watch.calls += 1
    try:
        outputs = session.run(inputs, watch)
        check_outputs(session.spec, inputs, outputs)
    except RunFailed:
        raise
    except Exception as error:
        raise _failure(session, error) from error
    return outputs


def _failure(session: Session, error: BaseException) -> RunFailed:
    return RunFailed(f"{session.spec.file}: the run raised {type(error).__name__}: {error}")


def _join(parts: Sequence[Arrays]) -> dict[str, Array]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
