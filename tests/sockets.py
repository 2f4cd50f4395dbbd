"""An app over a real port, with or without the fast way of its hot endpoints."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from apiclient import client_of
from uvicorn.server import ServerState

from service.api.connection import BoundedConnection
from service.api.fast import Exchange


@dataclass
class Served:
    """An app on a port, its parts, and the requests that took the fast way."""

    address: tuple[str, int]
    client: object
    state: ServerState
    fast: list[Exchange]

    async def talk(self, sent: bytes) -> bytes:
        """Send, and read until the server has nothing more to say: the last request asks it to close."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(sent)
            async with asyncio.timeout(30):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def served(engine, monkeypatch, *, fast: bool = True, **settings):
    """The app over a port; without `fast` every request takes the ASGI way."""
    taken: list[Exchange] = []
    if hasattr(engine, "draining"):
        engine.draining = False  # one fake serves one app after the other
    original = Exchange.run

    def run(self) -> None:
        taken.append(self)
        original(self)

    monkeypatch.setattr(Exchange, "run", run)
    async with client_of(engine, **settings) as client:
        if not fast:
            client.app.state.front = None
        config = uvicorn.Config(
            client.app, http=BoundedConnection, lifespan="off", log_config=None, proxy_headers=False
        )
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: BoundedConnection(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        try:
            yield Served(server.sockets[0].getsockname(), client, state, taken)
        finally:
            server.close()
            for open_connection in list(state.connections):
                open_connection.transport.abort()
            monkeypatch.setattr(Exchange, "run", original)
