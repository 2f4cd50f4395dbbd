"""What waits in the queue, and which of it rides in the next run: plain data and pure functions, no clock, no lanes."""

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.engine.fairness import Share
from service.engine.session import Array, Arrays
from service.errors import GanymedeError

Signature = tuple[tuple[str, tuple[int, ...], str], ...]

FIRST, LAST, USUAL = 1, 9, 5
"""Priorities: 1 goes first, 9 last; 5 where nobody asks."""


def signature_of(inputs: Arrays) -> Signature:
    """What must be equal for two entries to share a batch: names, row shapes and types."""
    if len(inputs) == 1:
        ((name, array),) = inputs.items()
        return ((name, array.shape[1:], array.dtype.str),)
    return tuple(sorted((name, array.shape[1:], array.dtype.str) for name, array in inputs.items()))


class Answer(NamedTuple):
    """One entry's outputs, rows in the order asked, and where its time went.

    `queue_s` runs from arrival to the first run's start, `run_s` from there to the last run's end; `batch_rows` is
    the largest batch that any of its rows rode in, `runs` the number of runs it was split into.
    """

    outputs: dict[str, Array]
    queue_s: float
    run_s: float
    batch_rows: int
    runs: int


Done = Callable[[Answer | GanymedeError], None]
"""Told an entry's end on the event loop's thread, unless the entry is withdrawn. Must not raise."""


@dataclass(eq=False, slots=True)
class Entry:
    """One request's rows in the queue. Ends exactly once: answered, failed, too late or cancelled.

    `arrived_s`, `started_s` and `finished_s` are `time.monotonic()`; `deadline_s` is the event loop's time, whose timer
    ends the entry (uvloop's clock has the same origin but ticks in milliseconds: too coarse for the former).
    `parts`: answers by their first row, of an entry that was split.
    `priced_s`: the wait that was predicted on arrival; 0 where a lane was idle. `share`, `tag`: see `fairness`; where
    clients do not take turns all tags are 0.
    """

    inputs: Arrays
    rows: int
    signature: Signature
    arrived_s: float
    order: int = 0
    priority: int = USUAL
    deadline_s: float | None = None
    priced_s: float = 0.0
    share: Share | None = None
    tag: float = 0.0
    taken: int = 0
    answered: int = 0
    ended: bool = False
    parts: dict[int, dict[str, Array]] | None = None
    started_s: float | None = None
    finished_s: float = 0.0
    batch_rows: int = 0
    done: Done | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def rank(self) -> tuple[int, float, int]:
        """The queue's order: by priority, then by turn, then by arrival."""
        return (self.priority, self.tag, self.order)

    def keep(self, start: int, answer: dict[str, Array]) -> None:
        """Put the answer of the part that begins at this row with those of the others."""
        if self.parts is None:
            self.parts = {}
        self.parts[start] = answer


@dataclass(frozen=True)
class BatchPolicy:
    """What the profile chose for one session.

    Args:
        max_batch: rows in one run, at most; 1 where rows influence one another.
        min_share: rows below which spreading one queue over several free lanes costs more than it gains.
    """

    max_batch: int
    min_share: int = 1


class Slice(NamedTuple):
    """Rows [start, stop) of an entry."""

    entry: Entry
    start: int
    stop: int


class Decision(NamedTuple):
    """What the lane runs now, and the entries met on the way that came too late and must not run."""

    slices: tuple[Slice, ...]
    expired: tuple[Entry, ...]

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return sum(part.stop - part.start for part in self.slices)


def take(
    queue: Sequence[Entry],
    now_s: float,
    policy: BatchPolicy,
    free_lanes: int = 1,
    run_s: Callable[[int], float] | None = None,
) -> Decision:
    """What one free lane runs now, given the queue in its order. Pure: nothing is changed.

    The first entry that is still in time decides the shape signature; rows of that signature are taken in order, up to
    the batch cap, or up to this lane's share where other lanes are free too. An entry with more rows than fit is split.

    Who would come too late even if it went now gives its place to who waits behind it: a queue that has fallen behind
    would else spend its runs on answers that nobody waits for any more. Where nobody waits for the place it runs all
    the same, for what is expected of a run may be wrong, and only runs put that right.

    Args:
        queue: in the order of `Entry.rank`.
        now_s: the event loop's time.
        policy: the batch cap and the smallest share.
        free_lanes: lanes that could run now, this one included; at least 1.
        run_s: seconds that a run of so many rows is expected to take; None where that is not known.
    """
    expired: list[Entry] = []
    late: list[Entry] = []
    alike: list[Entry] = []
    total, in_time, most = 0, 0, policy.max_batch * free_lanes
    done_s = now_s if run_s is None else now_s + run_s(policy.max_batch)  # of a run that others wait for
    for entry in queue:
        if entry.deadline_s is not None and entry.deadline_s <= now_s:
            expired.append(entry)
        elif not alike or entry.signature == alike[0].signature:
            alike.append(entry)
            total += entry.rows - entry.taken
            if entry.deadline_s is not None and entry.deadline_s < done_s:
                late.append(entry)
                continue
            in_time += entry.rows - entry.taken
            if in_time >= most:
                break  # the queue may be long, and nothing behind this changes the answer
    if late and in_time >= most:
        expired += late
        left_out = set(late)
        alike = [entry for entry in alike if entry not in left_out]
        total = in_time
    room = min(policy.max_batch, max(policy.min_share, math.ceil(total / free_lanes)))
    slices = []
    for entry in alike:
        rows = min(room, entry.rows - entry.taken)
        if rows <= 0:
            break
        slices.append(Slice(entry, entry.taken, entry.taken + rows))
        room -= rows
    return Decision(tuple(slices), tuple(expired))


def key_of(inputs: Arrays, priority: int) -> Hashable:
    """By which a request is known again: what it asks for."""
    return (priority, signature_of(inputs), *(hash(inputs[name].tobytes()) for name in sorted(inputs)))


def rows_of(part: Slice) -> Arrays:
    """The rows that a slice stands for."""
    if part.stop - part.start == part.entry.rows:
        return part.entry.inputs
    return {name: array[part.start : part.stop] for name, array in part.entry.inputs.items()}


def assemble(entry: Entry) -> Answer:
    """Join a split entry's rows in their order."""
    assert entry.parts is not None  # somebody has put them there
    parts = [entry.parts[start] for start in sorted(entry.parts)]
    outputs = parts[0]
    if len(parts) > 1:
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
    started_s = entry.started_s if entry.started_s is not None else entry.finished_s
    queue_s = max(0.0, started_s - entry.arrived_s)
    return Answer(outputs, queue_s, entry.finished_s - started_s, entry.batch_rows, len(parts))
