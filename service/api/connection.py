"""uvicorn's HTTP protocol with the limits that it leaves to a proxy: bytes and seconds of a request's head.

And with a short way for the hot endpoints (`fast.py`): a plain request that came whole is served here and now.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.fast import Exchange, Front
from service.api.intake import EXTENSION, LEAST_BYTES, Intake
from service.api.plain import Headers, length_of
from service.api.problems import unheard
from service.api.requests import WATCHED_AFTER_S

HEAD_MAX_BYTES = 64 * 1024
"""Request line and headers. A head that comes in one read may be larger; none grows without end."""

URL_MAX_BYTES = HEAD_MAX_BYTES - 1
"""The parser takes no longer one."""

TOO_LONG = f"the request line and headers are longer than {HEAD_MAX_BYTES} bytes"

HEAD_TIMEOUT_S = 30.0
"""From the connection, or from the first byte of a later request, to the end of its head."""

KNOWN_HEAD_BYTES = 2048
"""A head of up to so many bytes is kept, to be known again: whoever asks often sends the same one each time."""

BODY_WAIT_S = 0.05
"""Many clients send a head and its small body in two writes. One that takes longer has its deadline kept by ASGI."""


class _Known(NamedTuple):
    """A head that the parser has read, and what it came to: the same bytes would come to the same.

    `bytes`: of head and body together. `make`: a new exchange under that head.
    """

    head: bytes
    bytes: int
    make: Callable[[], Exchange]


class BoundedConnection(HttpToolsProtocol):
    """One connection. Too long a head is answered with 431, one that does not end with 408, and both are closed."""

    _hot: Exchange | None = None  # whose body is still on its way
    _make: Callable[[], Exchange] | None = None  # of what the parser read last, where it was a hot request
    _known: _Known | None = None
    _current: Exchange | None = None  # the last that was begun; a later request may wait behind it
    _slow: asyncio.TimerHandle | None = None  # until it takes the ASGI way
    _descriptor = -1  # of the socket, where it may be written to past the transport
    _passing = False  # the parser sees bytes that lie where they belong already
    _idle_from_s: float | None = None  # the loop's time of the last answer, while no request is under way

    _fruitful = True  # what came last belonged to a head, or brought a piece of a body
    _beside_bytes = 0  # that did not, of the body that is under way
    _serving: RequestResponseCycle | None = None  # on the ASGI way; a later one may wait behind it
    _watched = False  # whether the connection is read though one does
    _wrong: tuple[int, str] | None = None  # with the head that was read last
    _head_bytes = 0
    _in_head = True  # between two requests too
    _begun = False  # the head's first byte is here
    _late: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._front: Front | None = getattr(getattr(self.config.app, "state", None), "front", None)
        if self.root_path or self.limit_concurrency is not None:
            self._front = None  # as uvicorn has it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there and owes a head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        plain = os.name != "nt" and transport.get_extra_info("sslcontext") is None
        given = transport.get_extra_info("socket") if plain else None
        self._descriptor = -1 if given is None else given.fileno()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._stop_waiting()
        self._descriptor = -1
        self._make = self._known = None  # they refer to this connection
        super()._unset_keepalive_if_required()
        self._take_asgi_way()  # there a body that ends too early is known
        if self._current is not None:
            self._current.leave()
        if self._serving is not None and not self._serving.response_complete:
            # uvicorn tells the newest alone, and another may wait behind this one.
            self._serving.disconnected = True
            self._serving.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to an unfinished head."""
        known = self._known
        if known is not None and len(data) == known.bytes and data.startswith(known.head) and self._is_clear():
            self._serve_again(known, data)
            return
        first = self._in_head and not self._head_bytes and not self._begun
        self._make = None
        self._head_bytes += len(data)
        self._fruitful = self._in_head
        super().data_received(data)
        if self._fruitful:
            self._beside_bytes = 0
        else:
            self._count_beside(len(data))
        if first and self._make is not None:
            self._learn(data, self._make)
        if self._hot is not None and self._slow is None:
            if self._hot.own_deadline:
                self._take_asgi_way()
            else:
                self._slow = self.loop.call_later(BODY_WAIT_S, self._take_asgi_way)
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > HEAD_MAX_BYTES:
            self._refuse(431, TOO_LONG)
        elif self._begun and self._late is None:
            self._wait()

    def _is_clear(self) -> bool:
        """Whether a request that came as a whole may be served past the parser: the byte before ended another, which is
        answered, and nothing has come to forbid it."""
        if not self._in_head or self._head_bytes or self._begun or self._answering:
            return False
        front = self._front
        return front is not None and not (front.parts.draining or self.flow.write_paused or self.transport.is_closing())

    def _learn(self, data: bytes, make: Callable[[], Exchange]) -> None:
        """Remember the head of a hot request that came whole and alone."""
        exchange, size = self._current, data.find(b"\r\n\r\n") + 4
        if exchange is None or not self._in_head or self._begun or size > KNOWN_HEAD_BYTES:
            return
        if size + len(exchange.body) == len(data):
            self._known = _Known(data[:size], len(data), make)

    def _serve_again(self, known: _Known, data: bytes) -> None:
        """A head that was parsed before: only its body is new."""
        self._idle_from_s = None
        exchange = known.make()
        exchange.body = data[len(known.head) :]
        self.cycle = self._current = exchange  # type: ignore[assignment]
        exchange.run()

    def on_message_begin(self) -> None:
        """A head's first byte."""
        self._begun = True
        if self._front is None:
            super().on_message_begin()
        else:  # the scope is made when it is known to be needed
            self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the head; or of a trailer, which nobody here reads."""
        if self._in_head:
            super().on_header(name, value)

    def _count_beside(self, size: int) -> None:
        """Of a body's framing, trailers and extensions of chunks, as much is taken as of a head: it has no use."""
        self._beside_bytes += size
        if self._beside_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
            self._refuse(431, f"more than {HEAD_MAX_BYTES} bytes of trailers, or of extensions of a chunk")

    def on_headers_complete(self) -> None:
        """The head is whole; what follows is a body, which has limits of its own.

        Raises:
            ValueError: it cannot be served; the parser ends, and `send_400_response` says why.
        """
        self._wrong = self._what_is_wrong()
        if self._wrong is not None:
            raise ValueError(self._wrong[1])
        self._head_bytes, self._in_head, self._begun = 0, False, False
        self._stop_waiting()
        if self._front is None:
            super().on_headers_complete()
            self._note_cycle()
            self._offer_intake()
            return
        self._hot = self._exchange(self._front)
        if self._hot is None:
            self._begin_cycle()
            self._offer_intake()

    def _what_is_wrong(self) -> tuple[int, str] | None:
        """With a head that the parser takes: status and detail."""
        names = [name for name, _ in self.headers]
        if names.count(b"host") != 1 and self.parser.get_http_version() == "1.1":
            # Of two, whoever stands before this server might believe the other.
            return 400, "an HTTP/1.1 request has exactly one Host header (RFC 9112, 3.2)"
        if b"transfer-encoding" in names:
            codings = (Headers(self.headers).joined(b"transfer-encoding") or "").lower()
            if codings.strip() != "chunked":
                return 501, f"transfer-encoding is {codings[:60]!r}; only 'chunked' is read (RFC 9112, 6.1)"
        return None

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._fruitful = True
        if self._passing:
            return
        if self._hot is None:
            super().on_body(body)
        else:
            self._hot.body += body

    def on_message_complete(self) -> None:
        """The next byte begins another head."""
        self._head_bytes, self._in_head, self._fruitful = 0, True, True
        if self._hot is None:
            super().on_message_complete()
            return
        exchange, self._hot = self._hot, None
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        self.cycle = self._current = exchange  # type: ignore[assignment]
        exchange.run()

    def pass_by(self, piece: memoryview) -> None:
        """Have the parser count a piece of the body that an intake has read."""
        self._passing = True
        try:
            self.parser.feed_data(piece)
        finally:
            self._passing = False

    def _offer_intake(self) -> None:
        """Let whoever serves the request that has just begun read a large body by himself."""
        if self._descriptor < 0 or self.pipeline:
            return
        length = length_of(Headers(self.headers).first(b"content-length") or b"0")
        if length >= LEAST_BYTES:
            self.scope["extensions"] = {EXTENSION: Intake(self, length)}  # type: ignore[dict-item]

    def _unset_keepalive_if_required(self) -> None:
        """The connection is not idle. Its timer stays: to make one for each request costs more than to look twice."""
        self._idle_from_s = None

    def on_response_complete(self) -> None:
        """As uvicorn's, with one timer for the whole connection."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._serving, self._watched = cycle, False
            self._start_asgi_task(cycle, app)
            return
        self._idle_from_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for long enough; look again when another could have been."""
        self.timeout_keep_alive_task = None
        if self._idle_from_s is None:
            return  # the next answer makes a timer
        left_s = self._idle_from_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)

    def shutdown(self) -> None:
        """End the connection when what is under way on it is answered."""
        self._take_asgi_way()
        super().shutdown()

    def date_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """See `fast.Channel`."""
        return self.server_state.default_headers

    def answer(self, exchange: Exchange, data: bytes) -> None:
        """See `fast.Channel`."""
        data = self._sent_now(data)
        if data:
            self.transport.write(data)
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _sent_now(self, data: bytes) -> bytes:
        """Send what the kernel takes at once; what is left.

        uvloop sends at the end of a turn of the loop. Of a batch's answers the first would wait for the last to be
        made, and the clients, and so the next batch, with it.
        """
        if self._descriptor < 0 or self.transport.is_closing() or self.transport.get_write_buffer_size():
            return data
        try:
            return data[os.write(self._descriptor, data) :]
        except OSError:  # full, or broken: the transport knows what to do
            return data

    def _exchange(self, front: Front) -> Exchange | None:
        """A plain request of a hot endpoint, on a connection with nothing else under way; None for any other."""
        if self._answering or self.expect_100_continue or self.flow.write_paused:
            return None
        parser, headers = self.parser, Headers(self.headers)
        begin = front.begin_of(parser.get_method(), self.url, headers)
        if begin is None or parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return None
        if parser.should_upgrade():
            return None
        self._make = partial(Exchange, front, self, self.client, begin, self.url, headers)
        return self._make()

    def _take_asgi_way(self) -> None:
        """What cannot be served here: a body that is late, or that the connection ends in."""
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        if self._hot is None:
            return
        body, self._hot = self._hot.body, None
        self._begin_cycle()
        if body:
            super().on_body(body)

    def _begin_cycle(self) -> None:
        """Do as uvicorn does from the head's first byte on."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)  # the scope refers to the list
        super().on_headers_complete()
        self._note_cycle()
        ahead = self._current
        if ahead is not None and not ahead.response_complete and not ahead.watched:
            # uvicorn reads no further while one request waits behind another, and would not see the client leave.
            ahead.watched = True
            self.loop.call_later(WATCHED_AFTER_S, self._read_on, ahead)

    def _note_cycle(self) -> None:
        """The newest is served now, or waits behind one that is; then, too, the client is seen to leave."""
        if not self.pipeline:
            self._serving, self._watched = self.cycle, False
        elif self._serving is not None and not self._watched:
            self._watched = True
            self.loop.call_later(WATCHED_AFTER_S, self._read_on, self._serving)

    def _read_on(self, ahead: Exchange | RequestResponseCycle) -> None:
        if not ahead.response_complete and not self.transport.is_closing():
            self.flow.resume_reading()

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if self._answering:
            self._wait()  # for the request before; the next one's head may still come
        else:
            self._refuse(408, f"the request line and headers did not end within {HEAD_TIMEOUT_S:g} s")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP, or more of it than the parser takes."""
        if len(getattr(self, "url", b"")) >= URL_MAX_BYTES:
            self._refuse(431, TOO_LONG)
        elif self._wrong is not None:
            self._refuse(*self._wrong)
        else:
            self._refuse(400, "what came is not an HTTP/1.1 request: its line, a header or its framing is malformed")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer, unless an earlier request's answer is still under way, and close."""
        self._stop_waiting()
        own = self._unanswered()
        if own is not None or not self._answering:
            self.transport.write(unheard(status, detail))
        if own is not None:  # nothing of it may follow that answer
            own.disconnected = True
            own.message_event.set()
        self.transport.close()

    def _unanswered(self) -> RequestResponseCycle | None:
        """The request whose body is being read, where nobody has begun to answer it and none is before it."""
        cycle = self.cycle
        if self._in_head or self.pipeline or cycle is not self._serving or not isinstance(cycle, RequestResponseCycle):
            return None
        return None if cycle.response_started or cycle.response_complete else cycle
