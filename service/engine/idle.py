"""Models that nobody asks for: when they are idle, and what they give back."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from service.engine.memory import resident_bytes, trim
from service.engine.recovery import RecoveringSession
from service.engine.session import Arrays
from service.errors import GanymedeError

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


class Activity(Protocol):
    """What is looked at: part of a batcher's stats."""

    @property
    def queue_rows(self) -> int: ...
    @property
    def lanes_busy(self) -> int: ...
    @property
    def runs_total(self) -> int: ...


class IdleLooks(Generic[K]):
    """Remembers when each graph was last seen to run; names each that has become idle, once until it runs again.

    A graph that has not run since it was loaded counts as busy when first seen: what was measured at load is given
    back too.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._seen: dict[K, tuple[int, float, bool]] = {}  # runs so far, since when, whether it was named

    def due(self, graphs: Mapping[K, Activity], now_s: float) -> list[K]:
        """The graphs that have done nothing for `after_s`.

        Args:
            graphs: all that are loaded; the others are forgotten.
            now_s: `time.monotonic()`.
        """
        before, self._seen = self._seen, {}
        idle = []
        for key, stats in graphs.items():
            runs, since_s, named = before.get(key, (-1, now_s, False))
            if stats.runs_total != runs or stats.lanes_busy or stats.queue_rows:
                since_s, named = now_s, False
            elif not named and now_s - since_s >= self._after_s:
                named = True
                idle.append(key)
            self._seen[key] = (stats.runs_total, since_s, named)
        return idle


def shrink(sessions: Sequence[RecoveringSession], row: Arrays) -> int | None:
    """Have each session give back what its arenas hold beyond the weights, and the process what was freed.

    Lanes are not held up: what one begins meanwhile runs beside the one row that this takes.

    Returns:
        Bytes by which the process became smaller; None where a session could not.
    """
    before = resident_bytes()
    done = True
    for session in dict.fromkeys(sessions):
        try:
            session.shrink(row)
        except GanymedeError as error:  # a provider without such an arena; the model itself is well
            log.info("%s: memory is not given back while idle: %s", session.model, error)
            done = False
    trim()
    after = resident_bytes()
    if not done:
        return None
    return 0 if before is None or after is None else max(0, before - after)
