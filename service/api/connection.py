"""uvicorn's HTTP protocol with the limits that it leaves to a proxy: bytes and seconds of a request's head."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX_BYTES = 64 * 1024
"""Request line and headers. A head that comes in one read may be larger; none grows without end."""

HEAD_TIMEOUT_S = 30.0
"""From the connection, or from the first byte of a later request, to the end of its head."""


class BoundedConnection(HttpToolsProtocol):
    """One connection. Too long a head is answered with 431, one that does not end with 408, and both are closed."""

    _head_bytes = 0
    _in_head = True  # between two requests too
    _begun = False  # the head's first byte is here
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there and owes a head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to an unfinished head."""
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > HEAD_MAX_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._begun and self._late is None:
            self._wait()

    def on_message_begin(self) -> None:
        """A head's first byte."""
        self._begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole; what follows is a body, which has limits of its own."""
        self._head_bytes, self._in_head, self._begun = 0, False, False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next byte begins another head."""
        self._head_bytes, self._in_head = 0, True
        super().on_message_complete()

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if self._answering:
            self._wait()  # for the request before; the next one's head may still come
        else:
            self._refuse(b"408 Request Timeout")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: bytes) -> None:
        """Answer, unless an earlier request's answer is still under way, and close."""
        self._stop_waiting()
        if not self._answering:
            head = b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status
            self.transport.write(head)
        self.transport.close()
