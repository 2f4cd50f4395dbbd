"""Whose rows go first where clients take turns: start-time fair queueing (Goyal, Vin and Cheng, 1996), no clock.

Each entry gets a *tag* when it comes: the virtual time at which its rows would begin if its client were served at its
share and no faster. The queue goes by tag. A client that asks for more than its share gets tags ever farther in the
future, and waits for itself; one that asks for less always begins at the present, behind what runs and no more.
"""

from collections.abc import Hashable, Mapping
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


def slowness(own: Share, waiting: Mapping[Share, int]) -> float:
    """How many times longer a client's queue takes than if it were alone: all weights that wait over its own.

    Args:
        waiting: rows that wait, by whom.
    """
    others = sum(share.weight for share, rows in waiting.items() if rows > 0 and share.client != own.client)
    return 1.0 + others / own.weight


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

    def served(self, tag: float) -> None:
        """Rows with this tag go now."""
        self._virtual = max(self._virtual, tag)

    def clear(self) -> None:
        """Nothing waits any more: all begin anew."""
        self._virtual = 0.0
        self._finish.clear()
