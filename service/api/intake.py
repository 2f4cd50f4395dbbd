"""A large body, read from its socket straight into the memory in which it is wanted, a piece in each turn of the loop.

On uvicorn's way each byte is copied five times by the event loop's thread, and a connection hands it a quarter of a
megabyte at once: sixteen that do keep everybody else waiting. Here the kernel writes where the body shall lie, and all
bodies together get so many bytes a turn. The connection offers an `Intake` with the request; who reads a large body
takes it up. Whoever does not reads from `receive` as ever.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from service.process import populate

if TYPE_CHECKING:
    from service.api.connection import BoundedConnection

EXTENSION = "ganymede.intake"
"""Its name among the scope's extensions."""

LEAST_BYTES = 256 * 1024
"""Bodies below are read as ever: two or three pieces of them come with the head."""

TURN_BYTES = 1 << 20
"""Read in one turn of the loop from all connections together: some third of a millisecond."""
PIECE_BYTES = 16 * 1024
"""At least so much of each body: less would cost more in turns than in copies."""


AHEAD_BYTES = 2 << 20
"""Memory is made ready so far ahead of what has come: a large page of it."""


class Turns:
    """How much of each body is read in one turn of the event loop."""

    def __init__(self) -> None:
        self._reading = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One more body is read within the block."""
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    @property
    def piece_bytes(self) -> int:
        """Of each body."""
        return max(PIECE_BYTES, TURN_BYTES // max(1, self._reading))


class Intake(asyncio.BufferedProtocol):
    """The body of one request. Takes the connection's place at its transport while it is read.

    Args:
        length: of the whole body, as declared.
    """

    def __init__(self, connection: "BoundedConnection", length: int) -> None:
        self._connection, self._cycle, self._length = connection, connection.cycle, length
        self._view = memoryview(b"")
        self._at = 0
        self._ready = 0
        self._preparing = self._stopped = False
        self._turns = Turns()
        self._reach: Callable[[int], None] = lambda amount: None
        self._done: asyncio.Future[None] | None = None

    @staticmethod
    def of(scope: Mapping[str, Any]) -> "Intake | None":
        """What the connection offers with this request."""
        found: Intake | None = scope.get("extensions", {}).get(EXTENSION)
        return found

    async def into(self, view: memoryview, turns: Turns, reach: Callable[[int], None] = lambda amount: None) -> int:
        """Read the whole body; its length. What has come of it when this is cancelled is lost.

        Args:
            view: of bytes, at least as long as the body.
            reach: called with the bytes that are about to be in memory; what it raises ends the reading.

        Raises:
            ClientDisconnect: the client left before its end.
        """
        connection, cycle = self._connection, self._cycle
        loop, transport = connection.loop, connection.transport
        connection.flow.pause_reading()  # for good: `receive` and the answer's end go on reading
        self._view, self._turns, self._ready = view[: self._length], turns, min(self._length, AHEAD_BYTES)
        self._reach = reach
        reach(self._ready)
        await loop.run_in_executor(None, populate, self._view[: self._ready])
        begun, cycle.body = cycle.body, bytearray()
        self._at = len(begun)
        self._view[: self._at] = begun
        if cycle.disconnected:
            raise ClientDisconnect
        if not cycle.more_body:
            return self._at
        if cycle.waiting_for_100_continue:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        self._done = loop.create_future()
        transport.set_protocol(self)
        try:
            with turns.taken():
                self._go_on()
                await self._done
        finally:
            if not transport.is_closing():
                transport.pause_reading()
                transport.set_protocol(connection)
        return self._at

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next piece goes."""
        return self._view[self._at : min(self._at + self._turns.piece_bytes, self._ready)]

    def buffer_updated(self, nbytes: int) -> None:
        """A piece is there; the others come first now."""
        connection, begin = self._connection, self._at
        connection.transport.pause_reading()
        self._at += nbytes
        connection.pass_by(self._view[begin : self._at])
        if self._at < self._length:
            self._prepare()
            connection.loop.call_soon(self._go_on)
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _go_on(self) -> None:
        """Read the next piece, once there is memory for it."""
        if self._done is None or self._done.done():
            return
        self._stopped = self._at >= self._ready
        if not self._stopped:
            self._connection.transport.resume_reading()

    def _prepare(self) -> None:
        """Have the next of the memory made ready by a thread: the loop would wait for it longer than for the bytes."""
        if self._preparing or self._ready >= min(self._length, self._at + AHEAD_BYTES):
            return
        end = min(self._length, max(self._ready, self._at) + AHEAD_BYTES)
        try:
            self._reach(end)
        except Exception as error:
            if self._done is not None and not self._done.done():
                self._done.set_exception(error)
            return
        self._preparing = True
        work = self._connection.loop.run_in_executor(None, populate, self._view[self._ready : end])
        work.add_done_callback(partial(self._prepared, end))

    def _prepared(self, end: int, work: "asyncio.Future[bool]") -> None:
        self._preparing, self._ready = False, end
        if self._done is None or self._done.done():
            return
        self._prepare()
        if self._stopped:
            self._go_on()

    def eof_received(self) -> bool | None:
        """As the connection has it."""
        return self._connection.eof_received()  # type: ignore[func-returns-value]

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(ClientDisconnect())
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """As the connection has it."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """As the connection has it."""
        self._connection.resume_writing()
