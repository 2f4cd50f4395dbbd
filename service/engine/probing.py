"""Looks at a session before it serves: what runs cost by their rows, and whether a row's answer depends on the others.

A provider may choose other kernels for other shapes, which add in another order; so every size of a run that is to be
used is looked at, with several rows in several places, and what they answer is held against what they answer alone.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.engine.recovery import out_of_memory
from service.engine.session import Array, Arrays, Session
from service.errors import RunFailed

ROUNDS = 3
"""Times that each run is timed, in turns, of which the best counts: whatever else ran meanwhile only made it slower,
and what runs for a while is met by all of them."""
TIME_S = 0.02
"""Seconds for which one batch size is timed, and three runs at least."""
WATCHED, LEAST_WATCHED = 8, 2
"""Rows that are watched, and how many of them where a run takes long. A last bit that differs shows only where it
crosses a rounding: on an NVIDIA H200 in one of eight pictures."""
WATCHED_SHARE = 0.2
"""Of the time that there is, at most so much for what they answer alone."""


@dataclass(frozen=True)
class Probed:
    """What was found.

    Args:
        costs: rows in a run -> seconds of the run, 1 first; only sizes at which every row kept its bits.
        independent: the watched rows had the same bits alone and in every batch and place.
        repeatable: they had the same bits alone when they were run again.
        shape_s: seconds that the first run took beyond the others when a shape was returned to.
    """

    costs: dict[int, float]
    independent: bool = True
    repeatable: bool = True
    shape_s: float = 0.0


class Watched:
    """Rows of which it is known what they answer alone.

    Args:
        session: which answers.
        inputs: recorded rows.
        budget_s: for the runs.

    Raises:
        RunFailed: the first recorded row alone fails.
    """

    def __init__(self, session: Session, inputs: Arrays, budget_s: float = math.inf) -> None:
        end_s = time.monotonic() + budget_s
        made = varied(inputs, WATCHED)
        kept: list[int] = []
        self.alone: list[Arrays] = []
        for row in range(WATCHED):
            if row >= LEAST_WATCHED and time.monotonic() > end_s:
                break
            try:
                answers = session.run({name: array[row : row + 1] for name, array in made.items()})
            except RunFailed as error:  # one that was made up may be more than a graph can take
                if not kept or out_of_memory(error):
                    raise
                continue
            if not kept or all(np.isfinite(array).all() for array in answers.values()):  # NaN has many bit patterns
                kept.append(row)
                self.alone.append(answers)
        self.inputs = {name: array[kept] for name, array in made.items()}

    def rows(self, chosen: Sequence[int]) -> dict[str, Array]:
        """The watched rows of these numbers."""
        return {name: array[list(chosen)] for name, array in self.inputs.items()}

    def batches(self, size: int) -> Iterator[list[int]]:
        """Batches in which each of them stands at least once, in another place than that of its number."""
        count = len(self.alone)
        for first in range(0, count, size):
            yield [(first + place + 1) % count for place in range(size)]

    def same(self, answers: Arrays, place: int, row: int) -> bool:
        """Whether the answer at this place has the bits of the row alone."""
        return all(array[place].tobytes() == self.alone[row][name][0].tobytes() for name, array in answers.items())

    def again(self, session: Session) -> bool:
        """Whether all of them alone still have the bits that they had."""
        return all(self.same(session.run(self.rows([row])), 0, row) for row in range(len(self.alone)))

    def among(self, session: Session, size: int) -> bool:
        """Whether they keep their bits in runs of so many rows.

        Raises:
            RunFailed: such a run failed.
        """
        for batch in self.batches(size):
            answers = session.run(self.rows(batch))
            if not all(self.same(answers, place, row) for place, row in enumerate(batch)):
                return False
        return True

    def among_extremes(self, session: Session, size: int) -> bool:
        """Whether the first of them keeps its bits in the first place and the last of a run full of extremes.

        Raises:
            RunFailed: memory was short. Extremes may be more than a graph can take: those runs are passed over.
        """
        for place in {0, size - 1}:
            try:
                answers = session.run(extreme(self.inputs, size, place))
            except RunFailed as error:
                if out_of_memory(error):
                    raise
                continue
            if not self.same(answers, place, 0):
                return False
        return True


def probe(session: Session, inputs: Arrays, sizes: Sequence[int], deadline_s: float, *, device: bool = False) -> Probed:
    """Time runs of growing batches, and see whether rows keep their bits in them.

    Args:
        session: what is looked at.
        inputs: recorded rows.
        sizes: rows in a run, ascending, above 1; those that would pass the deadline are left out, but never 2.
        deadline_s: `time.monotonic()`.
        device: not the CPU: a shape's first run may take long, and the others are not disturbed by what the cores do;
            so each size is timed once, and returning to a shape is looked at.

    Raises:
        RunFailed: a row alone fails.
    """
    watched = Watched(session, inputs, max(0.0, WATCHED_SHARE * (deadline_s - time.monotonic())))
    costs = {1: _time(session, watched.rows([0]), deadline_s)}
    first_s = 0.0
    for size in sizes:
        if size > 2 and time.monotonic() + first_s + 3 * size * costs[1] > deadline_s:
            break
        began_s = time.perf_counter()
        try:
            session.run(resize(inputs, size))
            first_s = max(first_s, time.perf_counter() - began_s)
            if not (watched.among(session, size) and watched.among_extremes(session, size)):
                return Probed(costs, independent=False)
            costs[size] = _time(session, resize(inputs, size), deadline_s)
        except RunFailed:  # recorded rows, so it is their number: more than fits into memory
            break
    if device:
        began_s = time.perf_counter()
        session.run(watched.rows([0]))
        shape_s = max(0.0, time.perf_counter() - began_s - costs[1])
        repeatable = watched.again(session)
        return Probed(costs, repeatable, repeatable, shape_s)
    _time_again(session, inputs, costs, deadline_s)
    return Probed(costs)


def looked_at_up_to(session: Session, inputs: Arrays, sizes: Sequence[int], cap: int, deadline_s: float) -> int:
    """The widest of the sizes up to the cap below which no size is left that was not looked at; 0 where rows depend.

    Where runs are not filled up, any number of rows may ride in one.

    Args:
        sizes: those looked at before.
        deadline_s: `time.monotonic()`; what is not looked at by then is not used.
    """
    watched = Watched(session, inputs, max(0.0, WATCHED_SHARE * (deadline_s - time.monotonic())))
    widest = 1
    for size in range(2, cap + 1):
        if size in sizes:
            widest = size
            continue
        if time.monotonic() > deadline_s:
            break
        if not watched.among(session, size):
            return 0
    return widest


def resize(inputs: Arrays, rows: int) -> dict[str, Array]:
    """So many rows, repeating the recorded ones."""
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}


def varied(inputs: Arrays, rows: int) -> dict[str, Array]:
    """So many rows: the recorded ones, then these with their numbers moved along. Whole numbers stay: they index."""
    batch = resize(inputs, rows)
    for name, array in batch.items():
        count = len(inputs[name])
        if array.dtype == np.int64:
            continue
        for row in range(count, rows):
            array[row] = np.roll(array[row], 7 * (row // count), axis=0)
    return batch


def extreme(inputs: Arrays, rows: int, position: int) -> dict[str, Array]:
    """The first recorded row at `position` among neighbours at the ends of what the types allow."""
    batch = resize(inputs, rows)
    signs = np.where(np.arange(rows) % 2, -1, 1)
    for name, array in batch.items():
        shape = (rows,) + (1,) * (array.ndim - 1)
        if array.dtype == np.uint8:
            array[...] = np.where(signs > 0, 255, 0).reshape(shape)
        elif array.dtype == np.float32:
            array[...] = array * 100 + 100 * signs.reshape(shape)
        array[position] = inputs[name][0]
    return batch


def _time_again(session: Session, inputs: Arrays, costs: dict[int, float], deadline_s: float) -> None:
    """Once more in turns, where time is left: who was held up the first time is not taken to be slow."""
    for _ in range(ROUNDS - 1):
        for size in costs:
            if time.monotonic() + 3 * costs[size] > deadline_s:
                return
            costs[size] = min(costs[size], _time(session, resize(inputs, size), deadline_s))


def _time(session: Session, rows: Arrays, deadline_s: float) -> float:
    """Seconds of a run: the least of three or more, for anything else that ran meanwhile only adds.

    Short runs are repeated for TIME_S, longer than a busy machine usually takes a core away.
    """
    best, began_s = math.inf, time.monotonic()
    for repeat in range(100):
        started_s = time.perf_counter()
        session.run(rows)
        best = min(best, time.perf_counter() - started_s)
        now_s = time.monotonic()
        if now_s > deadline_s or (repeat >= 2 and now_s - began_s > TIME_S):
            break
    return best
