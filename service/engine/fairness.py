"""Whose rows go first where clients take turns: start-time fair queueing (Goyal, Vin and Cheng, 1996), no clock.

Each entry gets a *tag* when it comes: the virtual time at which its rows would begin if its client were served at its
share and no faster. The queue goes by tag. A client that asks for more than its share gets tags ever farther in the
future, and waits for itself; one that asks for less always begins at the present, behind what runs and no more.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Share(NamedTuple):
    """Who asks, and its weight against others."""

    client: Hashable
    weight: float = 1.0


def tag(virtual: float, finish: float, rows: int, weight: float) -> tuple[float, float]:
    """Where a client's next rows begin and end. Pure.

    Args:
        virtual: the tag of what was served last.
        finish: where the client's rows before end.
        rows: how many.
        weight: the client's.

    Returns:
        The tag, and where these rows end.
    """
    begin = max(virtual, finish)
    return begin, begin + rows / weight


def level(demands: Sequence[tuple[float, float]], capacity: float) -> float:
    """What each unit of weight gets where a capacity is shared by turns (max-min fairness). Pure.

    Args:
        demands: (weight, rows a second) of each client.
        capacity: rows a second of all lanes.

    Returns:
        Rows a second; infinite where all get what they ask for.
    """
    weights = sum(weight for weight, _ in demands)
    for weight, demand in sorted(demands, key=lambda one: one[1] / one[0]):
        if demand * weights > capacity * weight:  # this one, and all who ask for more for their weight, get less
            return capacity / weights
        capacity -= demand
        weights -= weight
    return math.inf


def slowness(share: Share, own: float, total: float, level: float, capacity: float) -> float:
    """How many times longer a client's rows take than if the machine were its own. Pure.

    Args:
        own: rows a second that it asks for.
        total: that all ask for.
        level: see `level`.
        capacity: rows a second of all lanes.
    """
    left = capacity - (total - own)
    served = max(left, level * share.weight) if level < math.inf else left
    return max(1.0, capacity / served) if served > 0 else 1.0


class Turns:
    """The virtual time of one priority."""

    __slots__ = ("_finish", "_virtual")

    def __init__(self) -> None:
        self._virtual = 0.0
        self._finish: dict[Hashable, float] = {}

    def tag(self, share: Share, rows: int) -> float:
        """The tag of rows that come now."""
        begin, self._finish[share.client] = tag(self._virtual, self._finish.get(share.client, 0.0), rows, share.weight)
        return begin

    def give_back(self, share: Share, turns: float) -> None:
        """So much of what a client has asked for will not be served."""
        if share.client in self._finish:
            self._finish[share.client] -= turns

    def served(self, tag: float) -> None:
        """Rows with this tag go now."""
        self._virtual = max(self._virtual, tag)

    def clear(self) -> None:
        """Nothing waits any more: all begin anew."""
        self._virtual = 0.0
        self._finish.clear()
