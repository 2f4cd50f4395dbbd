"""uvicorn in this process: start, logs, and the order in which SIGTERM ends things."""

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.api.app import create_app
from service.api.connection import BoundedConnection
from service.api.parts import Parts
from service.api.record import JsonFormatter, TextFormatter
from service.process import bound_heaps, go_first
from service.settings import Settings

_log = logging.getLogger("ganymede")

SWITCH_S = 0.0005
"""How long a lane that is done may wait for the interpreter. Python's 5 ms are many runs of a small model."""

COLLECT = (700, 10, 100)
"""Python's own thresholds, but the oldest objects are looked at ten times less often: most of them are requests that
wait, and to look at a thousand of those takes longer than to answer one."""

CUT_OFF_S = 2.0
"""After the time to drain, for answers that say 503 to be sent; what is not over then, uvicorn ends."""

LINGER_S = 0.2
"""Between closing the port and closing idle connections: what clients had sent by then is still read and answered."""


def serve(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serve until a signal; the exit status: 0 drained, 1 the models or the port could not be opened.

    Args:
        warnings: what there is to say of how it was started; the log's first lines.
    """
    start_logs(settings)
    for message in warnings:
        _log.warning("%s", message)
    server = server_of(settings)
    try:
        server.run()
    except SystemExit:  # uvicorn's own end when the port is taken; it has logged why
        return 1
    return 1 if server.parts.failure is not None else 0


def server_of(settings: Settings) -> "DrainingServer":
    """The server that these settings describe, in a process that is tuned for it; not yet running."""
    sys.setswitchinterval(SWITCH_S)
    if "MALLOC_ARENA_MAX" not in os.environ:
        bound_heaps(max(2, (os.cpu_count() or 1) // 4))  # as few as have not been seen to be waited for
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedConnection,
        loop="auto",  # uvloop where it is installed
        ws="none",  # no endpoint speaks it, and importing it takes as long as loading a small model
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # whom to believe is said by `forwarded`, for both ways of a request
        timeout_keep_alive=math.ceil(settings.keep_alive_s),
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s + CUT_OFF_S),
    )
    return DrainingServer(config, app)


def settle() -> None:
    """Collect garbage from now on, but leave out what is there: modules, classes and models, which stay for good.

    To look at all of it stops every request for up to a tenth of a second.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT)
    gc.enable()


def start_logs(settings: Settings) -> None:
    """One handler on stderr for ours and uvicorn's messages, in the format of the settings."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[output], force=True)
    logging.getLogger("uvicorn").setLevel(max(logging.INFO, logging.getLogger().level))


class DrainingServer(uvicorn.Server):
    """uvicorn stops accepting at once on SIGTERM, while a balancer still sends. Here readiness turns first.

    SIGTERM: `/readyz` answers 503; after `drain_delay_s` the port closes; accepted requests finish within
    `drain_timeout_s`. SIGINT (Ctrl+C) skips the delay. A second signal ends the delay, a third cuts off what runs.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.parts: Parts = app.state.parts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Note the loop, for the signal handler, and have its thread go first."""
        self._loop = asyncio.get_running_loop()
        go_first()
        await super().startup()

    async def on_tick(self, counter: int) -> bool:
        """End when the models could not be opened: a server that can never serve should be restarted."""
        if self.parts.opened and not self._settled:
            self._settled = True
            settle()
        return self.parts.failure is not None or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, then let requests that are on their way arrive before idle connections are closed."""
        listeners = [] if os.name == "nt" else [own.fileno() for server in self.servers for own in server.sockets]
        copies = [socket.socket(fileno=os.dup(descriptor)) for descriptor in listeners]
        self.parts.drain_until_s = asyncio.get_running_loop().time() + self.parts.settings.drain_timeout_s
        for server in self.servers:
            server.close()
        for connection in [found for copy in copies for found in _waiting(copy)]:
            await self._take_on(connection)
        if not self.force_exit:
            await self._linger()
        ending = asyncio.create_task(self._end_in_time())
        await super().shutdown(sockets)
        ending.cancel()
        with suppress(asyncio.CancelledError):
            await ending

    async def _end_in_time(self) -> None:
        """What is not finished when the time to drain is over ends with 503, as everything that is refused then."""
        await asyncio.sleep(self.parts.left_to_drain_s())
        await self.parts.engine.drain(0.0)

    async def _take_on(self, connection: socket.socket) -> None:
        config, loop = self.config, asyncio.get_running_loop()
        made = {"config": config, "server_state": self.server_state, "app_state": self.lifespan.state, "_loop": loop}
        with suppress(OSError):  # the client is gone again
            await loop.connect_accepted_socket(lambda: BoundedConnection(**made), connection)

    async def _linger(self) -> None:
        await asyncio.sleep(LINGER_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; called in the main thread between two bytecodes."""
        if self.parts.draining or self._loop is None:
            self.force_exit = self.should_exit
            self.should_exit = True
            return
        self.parts.draining = True
        delay_s = 0.0 if sig == signal.SIGINT else self.parts.settings.drain_delay_s
        self._loop.call_soon_threadsafe(self._drain, delay_s)

    def _drain(self, delay_s: float) -> None:
        _log.info("draining: not ready now, the port closes in %g s", delay_s)
        asyncio.get_running_loop().call_later(delay_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def _waiting(listener: socket.socket) -> list[socket.socket]:
    """Close a listening socket, and return the clients whom the kernel had let in and the loop had not yet met.

    A close alone would reset them, requests sent and all; under load there are always some.
    """
    found: list[socket.socket] = []
    with listener:
        listener.setblocking(False)
        with suppress(OSError):  # BlockingIOError: no more
            while True:
                found.append(listener.accept()[0])
    for connection in found:
        connection.setblocking(False)
    return found
