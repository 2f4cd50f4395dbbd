"""Request id, trace context, timing, access log, and the last net under unexpected errors."""

import asyncio
import logging
from time import perf_counter
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.ledger import Ledger
from service.api.plain import Headers, PlainResponse
from service.api.problems import reply_to, unexpected
from service.api.record import STATE_KEY
from service.api.streaming import NotRead
from service.errors import NotReady

_log = logging.getLogger("ganymede")


class RequestContext:
    """Outermost of ours: opens each request's record in the ledger, tells it in the answer's head and closes it."""

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event; only HTTP is ours."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = self._ledger.open(scope["method"], _path(scope), Headers(scope["headers"]), scope.get("client"))
        scope.setdefault("state", {})[STATE_KEY] = record
        # HEAD is GET without the body, for every path that has GET.
        inner = {**scope, "method": "GET"} if record.method == "HEAD" else scope
        responding: float | None = None

        async def marked(message: Message) -> None:
            nonlocal responding
            if message["type"] == "http.response.start":
                responding = perf_counter()
                record.status = message["status"]
                own = self._ledger.headers(record)
                given = message["headers"]
                if own[-1][0] == b"connection" or own[0][0] != b"x-request-id":  # some would be told twice
                    names = {name for name, _ in own}
                    given = [pair for pair in given if pair[0] not in names]
                message["headers"] = [*given, *own]
            elif message["type"] == "http.response.body":
                if record.method == "HEAD":
                    message = {**message, "body": b""}
                record.body_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(inner, receive, marked)
        except asyncio.CancelledError:
            if responding is not None or not self._ledger.draining():
                raise
            # The time to drain is over, and more; who waits still is told so.
            error = NotReady("shutting down", reason="draining")
            await PlainResponse(reply_to(error, record))(scope, receive, marked)
        except NotRead:
            _log.info("request %s: the client reads no further, and is left", record.request_id)
            record.status = 499
        except Exception as error:
            _log.exception("request %s: unexpected error", record.request_id, exc_info=error)
            if responding is None:
                await PlainResponse(unexpected(record.request_id, record.path))(scope, receive, marked)
        finally:
            if responding is not None:
                record.stages["write"] = perf_counter() - responding
            self._ledger.close(record)


def _path(scope: Scope) -> str:
    raw: bytes | None = scope.get("raw_path")
    return raw.partition(b"?")[0].decode("ascii", "replace") if raw else quote(scope["path"])
