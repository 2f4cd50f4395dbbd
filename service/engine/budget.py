"""Which models give way where not all fit into memory: a pure function, no clock, no sessions."""

from collections.abc import Sequence
from typing import NamedTuple


class Held(NamedTuple):
    """A loaded version. `used_s`: when it was last asked for; `busy`: whether it is at work now."""

    ref: str
    weight_bytes: int
    used_s: float
    busy: bool = False


def to_evict(held: Sequence[Held], wanted_bytes: int, budget_bytes: int) -> tuple[str, ...] | None:
    """What must go so that so many bytes fit: who was asked for longest ago first, who is at work last.

    Args:
        held: what may go.
        wanted_bytes: of the newcomer, together with what must stay.

    Returns:
        References in the order in which they go, as few as suffice; None where it does not fit even alone.
    """
    if wanted_bytes > budget_bytes:
        return None
    free = budget_bytes - wanted_bytes - sum(one.weight_bytes for one in held)
    gone = []
    for one in sorted(held, key=lambda one: (one.busy, one.used_s)):
        if free >= 0:
            break
        free += one.weight_bytes
        gone.append(one.ref)
    return tuple(gone)
