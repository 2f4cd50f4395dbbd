"""The hot endpoints on the connection itself: no task, no ASGI messages, one write for head and body.

Of what a small picture costs, a task, a scope, messages and response objects are more than half. So the connection
(`connection.py`) hands a hot request that came whole to an `Exchange`, which calls the functions that the ASGI way
calls (`hot.py`, `ledger.py`, `problems.py`) one after the other. What is in any way unusual takes the ASGI way.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.api import problems
from service.api.guard import Guard
from service.api.hot import HOT, Asked, Begin, Drawing, answered, rendering, took
from service.api.ledger import Ledger, lines_of
from service.api.parts import Parts
from service.api.pictures import Rendered, is_small
from service.api.plain import Headers, Reply, length_of
from service.api.requests import left_of, once_awake, timeout_of
from service.errors import GanymedeError, ModelAsleep

if TYPE_CHECKING:
    from service.api.record import Record
    from service.engine.engine import Generated

MOST_BYTES = 16 * 1024
"""Larger bodies take the ASGI way: they come in several reads, and are checked while they come."""

_log = logging.getLogger("ganymede")


class Front:
    """What connections need to serve hot requests by themselves."""

    def __init__(self, parts: Parts, ledger: Ledger, guard: Guard | None = None) -> None:
        self.parts = parts
        self.ledger = ledger
        self.guard = guard
        self._origins = bool(parts.settings.origins)
        self.varied = [(b"vary", b"Origin")] if self._origins else []
        """What answers say where there are others for other origins; see `middleware/crossorigin.py`."""
        self._most_bytes = min(MOST_BYTES, parts.settings.max_body_bytes)

    def begin_of(self, method: bytes, url: bytes, headers: Headers) -> Begin | None:
        """What serves a request with this head; None where it is no plain request of a hot endpoint."""
        if self.parts.draining or headers.first(b"transfer-encoding") is not None:
            return None
        if self._origins and headers.first(b"origin") is not None:
            return None
        length = headers.first(b"content-length")
        if method == b"POST":
            if url != b"/generate" or length is None or not length.isdigit() or length_of(length) > self._most_bytes:
                return None
            return HOT["POST", "/generate"]
        if method == b"GET" and url.startswith(b"/generate?") and length is None and b"#" not in url:
            return HOT["GET", "/generate"]
        return None


class Channel(Protocol):
    """The connection that a request came over."""

    def answer(self, exchange: "Exchange", data: bytes) -> None:
        """Send an exchange's whole answer; it is over then."""
        ...

    def date_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """What every answer begins with."""
        ...


class Exchange:
    """One hot request and its answer. To uvicorn's protocol it looks like one of its own cycles.

    Args:
        channel: where the answer goes.
        client: see `Ledger.open`.
        begin: from `Front.begin_of`.
        url: as it came.
    """

    __slots__ = (
        "_began", "_begin", "_channel", "_client", "_drawing", "_front", "_headers", "_record", "_url", "_withdraw",
        "body", "disconnected", "keep_alive", "message_event", "response_complete", "started", "watched",
    )  # fmt: skip

    def __init__(
        self, front: Front, channel: Channel, client: object, begin: Begin, url: bytes, headers: Headers
    ) -> None:
        self._front, self._channel, self._client = front, channel, client
        self._begin, self._url, self._headers = begin, url, headers
        self._record: Record
        self._drawing: Drawing
        self._withdraw: Callable[[], object] | None = None
        self._began = 0.0
        self.started = perf_counter()
        self.body = b""
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NOBODY_WAITS
        self.watched = False  # whether the connection is read though another request waits

    @property
    def own_deadline(self) -> bool:
        """Whether the request sets a deadline, which its body must keep."""
        return self._headers.first(b"x-request-timeout-ms") is not None

    def run(self) -> None:
        """The request is here as a whole: serve it, now or by and by. Never raises."""
        path, mark, query = self._url.partition(b"?")
        method = "GET" if mark else "POST"  # as `Front.begin_of` lets them in
        self._record = self._front.ledger.open(method, path.decode("ascii"), self._headers, self._client, self.started)
        guard = self._front.guard
        if guard is not None:
            try:
                guard.look(self._record, "/generate", self._headers, self._client)
            except Exception as error:
                self._fail(error)
                return
        self._begin_drawing(Asked(self._record, self._headers, query, self.body))

    def _begin_drawing(self, asked: Asked) -> None:
        """Never raises."""
        try:
            drawing = self._begin(self._front.parts, asked)
            if isinstance(drawing, Reply):
                self._send(drawing)
                return
            self._drawing = drawing
            withdraw = self._front.parts.engine.start(done=self._drawn, **drawing.arguments)
            if not self.response_complete:
                self._withdraw = withdraw
        except ModelAsleep:
            self._withdraw = asyncio.ensure_future(self._wake(asked)).cancel
        except Exception as error:
            self._fail(error)

    async def _wake(self, asked: Asked) -> None:
        """Begin when the model is in memory: the one way on which a hot request needs a task."""
        parts = self._front.parts
        try:
            timeout_s = left_of(self._record, timeout_of(self._headers, parts))
            await once_awake(parts, lambda: self._begin(parts, asked), timeout_s)
        except Exception as error:
            self._fail(error)
        else:
            self._withdraw = None
            self._begin_drawing(asked)

    def leave(self) -> None:
        """The client is gone."""
        if self.response_complete:
            return
        self.response_complete = self.disconnected = True
        if self._withdraw is not None:
            self._withdraw()
            self._withdraw = None
        self._front.ledger.close(self._record)

    def _drawn(self, outcome: "Generated | Exception") -> None:
        """The engine is done."""
        self._withdraw = None
        if self.response_complete:
            return
        if isinstance(outcome, Exception):
            self._fail(outcome)
            return
        try:
            took(self._record, self._drawing, outcome)
            self._began = perf_counter()
            if is_small(outcome):
                self._rendered(outcome, rendering(self._front.parts, self._drawing, outcome))
                return
            pool = self._front.parts.encoders
            work = asyncio.get_running_loop().run_in_executor(
                pool, rendering, self._front.parts, self._drawing, outcome
            )
            work.add_done_callback(partial(self._encoded, outcome))
        except Exception as error:
            self._fail(error)

    def _encoded(self, drawn: "Generated", work: "asyncio.Future[Rendered]") -> None:
        if self.response_complete or work.cancelled():
            return
        error = work.exception()
        if error is not None:
            self._fail(error)
        else:
            self._rendered(drawn, work.result())

    def _rendered(self, drawn: "Generated", rendered: Rendered) -> None:
        self._send(answered(self._record, self._drawing, drawn, rendered, self._began))

    def _fail(self, error: BaseException) -> None:
        if self.response_complete:
            return
        record = self._record
        if isinstance(error, GanymedeError):
            self._send(problems.reply_to(error, record))
            return
        _log.error("request %s: unexpected error", record.request_id, exc_info=error)
        self._send(problems.unexpected(record.request_id, record.path))

    def _send(self, reply: Reply) -> None:
        """Head and body in one write; the request is over."""
        responding = perf_counter()
        record, ledger = self._record, self._front.ledger
        record.status = reply.status
        self.keep_alive = self.keep_alive and not ledger.draining()
        told = lines_of((*self._channel.date_headers(), *reply.headers, *self._front.varied))
        ending = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        record.body_bytes = len(reply.body)
        self.response_complete = True
        answer = b"".join((STATUS_LINE[reply.status], told, ledger.lines(record), ending, reply.body))
        self._channel.answer(self, answer)
        record.stages["write"] = perf_counter() - responding
        ledger.close(record)


class _Nobody:
    """In an event's place: nothing waits for messages here."""

    def set(self) -> None:
        pass


_NOBODY_WAITS = _Nobody()
