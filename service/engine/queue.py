"""What waits, in its order, and how much of it: the batcher's queue. No clock, no lanes."""

import bisect
from collections.abc import Callable

from service.engine.entries import Entry, Slice
from service.engine.fairness import Share, Turns
from service.engine.pricing import PRIORITIES


class Queue:
    """Entries in the order of their rank.

    Args:
        told: told how many rows of a client at a priority wait more, or fewer, where clients take turns.
    """

    def __init__(self, told: Callable[[Share, int, int], None]) -> None:
        self.entries: list[Entry] = []
        self.rows = 0
        self._told = told
        self._waiting = [0] * PRIORITIES
        self._turns = [Turns() for _ in range(PRIORITIES)]

    def __len__(self) -> int:
        return len(self.entries)

    def ahead(self, priority: int) -> int:
        """Rows that go before a newcomer of this priority."""
        return sum(self._waiting[: priority + 1])

    def add(self, entry: Entry, share: Share | None) -> None:
        """One more, which takes its turn where clients do."""
        if share is not None:
            entry.share, entry.tag = share, self._turns[entry.priority].tag(share, entry.rows - entry.taken)
            bisect.insort(self.entries, entry, key=_rank)
        elif self.entries and (self.entries[-1].priority > entry.priority or self.entries[-1].order > entry.order):
            bisect.insort(self.entries, entry, key=_rank)
        else:
            self.entries.append(entry)
        self._count(entry, entry.rows - entry.taken)

    def take(self, part: Slice) -> None:
        """A run takes these rows; what is left of their entry has its turn later."""
        entry = part.entry
        entry.taken = part.stop
        if entry.share is not None:
            self._turns[entry.priority].served(entry.tag)
        if entry.taken == entry.rows:
            self.entries.remove(entry)
        elif entry.share is not None:
            self.entries.remove(entry)
            entry.tag += (part.stop - part.start) / entry.share.weight
            bisect.insort(self.entries, entry, key=_rank)
        self._count(entry, part.start - part.stop)

    def remove(self, entry: Entry) -> None:
        """Nobody waits for what is left of it."""
        self.entries.remove(entry)
        if entry.share is not None:
            self._give_back(entry, entry.share)
        self._count(entry, entry.taken - entry.rows)

    def _give_back(self, entry: Entry, share: Share) -> None:
        """The turns of rows that will not run are those of the client's later ones."""
        turns = (entry.rows - entry.taken) / share.weight
        self._turns[entry.priority].give_back(share, turns)
        later = [
            other
            for other in self.entries
            if other.share is not None
            and other.share.client == share.client
            and other.priority == entry.priority
            and other.tag > entry.tag
        ]
        for other in later:
            other.tag -= turns
        if later:
            self.entries.sort(key=_rank)

    def hasten(self, entry: Entry, priority: int) -> None:
        """What is left of it waits at another priority from now on."""
        self.remove(entry)
        entry.priority = priority
        self.add(entry, entry.share)

    def _count(self, entry: Entry, rows: int) -> None:
        self.rows += rows
        self._waiting[entry.priority] += rows
        if entry.share is not None:
            self._told(entry.share, entry.priority, rows)
            if not self._waiting[entry.priority]:
                self._turns[entry.priority].clear()


def _rank(entry: Entry) -> tuple[int, float, int]:
    return entry.rank
