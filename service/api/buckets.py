"""Token buckets: how often a client may ask, and when it may again. Arithmetic, no clock of its own."""

from collections import OrderedDict
from collections.abc import Hashable

MOST_CLIENTS = 100_000
"""Clients remembered at once, the last asked for longest: about 15 MB."""


def admit(full_at_s: float, now_s: float, rate_per_s: float, burst: float) -> tuple[float, float]:
    """One token, of a bucket that fills at a rate up to a burst. Pure (the generic cell rate algorithm).

    Args:
        full_at_s: when the bucket will be full again, as the last call returned it; anything past for a new client.
        rate_per_s: tokens a second.
        burst: tokens in a full bucket, at least 1.

    Returns:
        When it will be full again, and the seconds after which there is a token: 0 where one was taken.
    """
    full_at_s = max(full_at_s, now_s)
    # As many tokens are missing as come in until it is full; one more must not be more than it holds.
    wait_s = full_at_s + (1 - burst) / rate_per_s - now_s
    if wait_s > 1e-9:
        return full_at_s, wait_s
    return full_at_s + 1 / rate_per_s, 0.0


class Buckets:
    """One bucket for each client."""

    def __init__(self, most: int = MOST_CLIENTS) -> None:
        self._most = most
        self._full_at_s: OrderedDict[Hashable, float] = OrderedDict()

    def take(self, client: Hashable, now_s: float, rate_per_s: float, burst: float) -> float:
        """Take a token; seconds to wait for one where there is none."""
        known = self._full_at_s
        full_at_s, wait_s = admit(known.get(client, now_s), now_s, rate_per_s, burst)
        known[client] = full_at_s
        known.move_to_end(client)
        if len(known) > self._most:
            known.popitem(last=False)
        return wait_s
