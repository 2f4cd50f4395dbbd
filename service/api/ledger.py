"""Each request's record, whichever way it is served: opened with its ids, told in its answer's head, closed once."""

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from time import perf_counter

from service.api.plain import Headers
from service.api.record import Record, publish
from service.metrics import Metrics

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_TRACEPARENT = re.compile(
    rb"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?"
)
"""Later versions may say more behind the flags; version 00 may not."""
_FLAGS_KNOWN = 0x03
"""Sampled, and random trace id; others are not handed on."""
ALONE_S = 0.02
"""A client counts as alone when no other connection has sent a request for so long.

Requests in flight do not tell: one that never leaves the event loop is over before the next is read.
"""

_NOT_ZERO = 1 << 191 | 1
"""Neither half of what is drawn for trace and span may be zero."""

_OWN = ("x-request-id", "server-timing", "traceparent")
"""Headers of every answer, as `_own` fills them in."""

_random = Random().getrandbits  # seeded by the system; ids need be unique, not secret


class Ledger:
    """The requests of one app.

    W3C Trace Context: a valid `traceparent` is taken up, else a trace begins here; the answer's `traceparent` names
    this server's span in it, which the log line has too.

    An `X-Request-Id` of up to 128 plain characters is kept, so that one id follows a request through many services;
    anything else is replaced, since it ends in logs.

    Args:
        metrics: counts requests in flight and those that are over.
        access_log: whether each request is a line in the log.
        draining: whether the server is about to stop; its answers then end their connections.
        told: further headers of every answer.
    """

    def __init__(
        self,
        metrics: Metrics,
        access_log: bool,
        draining: Callable[[], bool],
        told: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._told = tuple(told)
        self._told_lines = lines_of(self._told)
        self._metrics = metrics
        self._access_log = access_log
        self.draining = draining
        self._client: object = None
        self._alone_from = 0.0

    def open(self, method: str, path: str, headers: Headers, client: object, started: float | None = None) -> Record:
        """Begin a request's record and count the request as in flight.

        Args:
            path: percent-encoded, without the query.
            client: by which the requests of one connection are known.
            started: `perf_counter()` when its head was complete; now where it is not given.
        """
        drawn = f"{_random(192) | _NOT_ZERO:048x}"
        span_id, trace_id, trace_flags = drawn[32:], drawn[:32], "00"
        request_id = span_id
        if (given := headers.first(b"x-request-id")) is not None:
            text = given.decode("latin-1")
            request_id = text if _SANE_ID.fullmatch(text) else span_id
        parent = headers.first(b"traceparent")
        if parent is not None and (traced := _TRACEPARENT.fullmatch(parent)):
            trace_id, trace_flags = traced[1].decode("ascii"), f"{int(traced[2], 16) & _FLAGS_KNOWN:02x}"
        record = Record(
            request_id=request_id,
            method=method,
            path=path[:256],
            trace_id=trace_id,
            span_id=span_id,
            trace_flags=trace_flags,
            started=perf_counter() if started is None else started,
        )
        self._metrics.in_flight += 1
        if client != self._client:
            self._client, self._alone_from = client, record.started + ALONE_S
        record.lone = self._metrics.in_flight == 1 and record.started >= self._alone_from
        return record

    def headers(self, record: Record) -> list[tuple[bytes, bytes]]:
        """What the head of every answer ends with: id, timings so far, trace context."""
        own = zip(_OWN, _own(record), strict=True)
        told = [*self._told, *((name.encode("ascii"), value.encode("ascii")) for name, value in own)]
        if self.draining():  # else the client sends its next request down a connection about to close
            told.append((b"connection", b"close"))
        return told

    def lines(self, record: Record) -> bytes:
        """The same as a head's lines, for who writes it outright; without `connection`."""
        return self._told_lines + (_OWN_LINES % _own(record)).encode("ascii")

    def close(self, record: Record) -> None:
        """The request is over; without a status its client has left."""
        self._metrics.in_flight -= 1
        record.status = record.status or 499
        publish(record, self._metrics, log=self._access_log)


def lines_of(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as lines of a head."""
    return b"".join([b"%b: %b\r\n" % pair for pair in pairs])


_OWN_LINES = "".join(f"{name}: %s\r\n" for name in _OWN)


def _own(record: Record) -> tuple[str, str, str]:
    """A record's id, timings so far, and trace context."""
    return record.request_id, record.server_timing(), record.traceparent()
