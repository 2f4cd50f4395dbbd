"""Tiles whose seams cannot be seen: how an axis is cut, given how far the graph reaches.

A window of the input that is cut at multiples of `align`, and whose core keeps `before` and `after` pixels from its cut
sides, has the very sums of the whole picture in its core. Padding of any mode only matters at the picture's own border,
where windows are not cut; what is mirrored there must lie within the window.
"""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Axis:
    """One axis of a graph, in input pixels: what a core must keep from the cut sides, and the size of its output."""

    before: int
    after: int
    align: int
    scale: Fraction


@dataclass(frozen=True)
class Geometry:
    """How a graph may be tiled. `whole` says why it may not, and is None where it may. `mirrors`: it mirrors something
    at its border, for which a picture smaller than its reach may be too small."""

    height: Axis
    width: Axis
    whole: str | None = None
    mirrors: bool = False


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in input pixels: the window that is run, and the part of it that is kept."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def spans(length: int, side: int, axis: Axis) -> list[Span]:
    """Cut one axis into tiles whose cores lie side by side.

    Args:
        length: of the axis, a multiple of `axis.align`.
        side: of the windows wished for; widened where the halo needs more. All windows get the same length, so that
            they can share a batch.
    """
    side = min(length, -(-max(side, least_side(axis)) // axis.align) * axis.align)
    found: list[Span] = []
    done = 0
    while done < length:
        start = max(0, done - axis.before) // axis.align * axis.align if done else 0
        start = min(start, length - side)
        stop = start + side
        core_stop = length if stop == length else stop - axis.after
        found.append(Span(start, stop, done, core_stop))
        done = core_stop
    return found


def least_side(axis: Axis) -> int:
    """The narrowest window that is any use. What is mirrored at the border must lie within the window too."""
    return 2 * (axis.before + axis.after) + 2 * axis.align
