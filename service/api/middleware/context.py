"""Request id, trace context, timing, access log, and the last net under unexpected errors."""

import logging
import re
from collections.abc import Callable
from random import Random
from time import perf_counter
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import unexpected
from service.api.record import STATE_KEY, Record, publish
from service.metrics import Metrics

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
ALONE_S = 0.02
"""A client counts as alone when no other connection has sent a request for so long.

Requests in flight do not tell: one that never leaves the event loop is over before the next is read.
"""

_random = Random().getrandbits  # seeded by the system; ids need be unique, not secret
_log = logging.getLogger("ganymede")


class RequestContext:
    """Outermost of ours: attaches a `Record`, sends its id, trace context and timings, publishes the record.

    W3C Trace Context: a valid `traceparent` is taken up, else a trace begins here; the answer's `traceparent` names
    this server's span in it, which the log line has too.

    An `X-Request-Id` of up to 128 plain characters is kept, so that one id follows a request through many services;
    anything else is replaced, since it ends in logs.

    Args:
        draining: whether the server is about to stop; its answers then end their connections.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool, draining: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._draining = draining
        self._client: object = None
        self._alone_from = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event; only HTTP is ours."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _record(scope)
        scope.setdefault("state", {})[STATE_KEY] = record
        # HEAD is GET without the body, for every path that has GET.
        inner = {**scope, "method": "GET"} if record.method == "HEAD" else scope
        responding: float | None = None

        async def marked(message: Message) -> None:
            nonlocal responding
            if message["type"] == "http.response.start":
                responding = perf_counter()
                record.status = message["status"]
                headers = [
                    *message["headers"],
                    (b"x-request-id", record.request_id.encode("ascii")),
                    (b"server-timing", record.server_timing().encode("ascii")),
                    (b"traceparent", record.traceparent().encode("ascii")),
                ]
                if self._draining():  # else the client sends its next request down a connection about to close
                    headers = [*(pair for pair in headers if pair[0] != b"connection"), (b"connection", b"close")]
                message["headers"] = headers
            elif message["type"] == "http.response.body":
                if record.method == "HEAD":
                    message = {**message, "body": b""}
                record.body_bytes += len(message.get("body", b""))
            await send(message)

        self._metrics.in_flight += 1
        if scope.get("client") != self._client:
            self._client, self._alone_from = scope.get("client"), record.started + ALONE_S
        record.lone = self._metrics.in_flight == 1 and record.started >= self._alone_from
        try:
            await self._app(inner, receive, marked)
        except Exception as error:
            _log.exception("request %s: unexpected error", record.request_id, exc_info=error)
            if responding is None:
                await unexpected(record.request_id, record.path)(scope, receive, marked)
        finally:
            self._metrics.in_flight -= 1
            if responding is not None:
                record.stages["write"] = perf_counter() - responding
            record.status = record.status or 499
            publish(record, self._metrics, log=self._access_log)


def _record(scope: Scope) -> Record:
    span_id = f"{_random(64) or 1:016x}"
    request_id, trace_id, trace_flags = span_id, "", "00"
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            request_id = given if _SANE_ID.fullmatch(given) else span_id
        elif name == b"traceparent" and (traced := _TRACEPARENT.fullmatch(value)):
            trace_id, trace_flags = traced[1].decode("ascii"), traced[2].decode("ascii")
    raw: bytes | None = scope.get("raw_path")
    path = raw.partition(b"?")[0].decode("ascii", "replace") if raw else quote(scope["path"])
    return Record(
        request_id=request_id,
        method=scope["method"],
        path=path[:256],
        trace_id=trace_id or f"{_random(128) or 1:032x}",
        span_id=span_id,
        trace_flags=trace_flags,
    )
