"""A client that speaks to an app through its whole stack, without a port."""

import asyncio
from contextlib import asynccontextmanager

import httpx

from service.api.app import create_app
from service.settings import Settings


@asynccontextmanager
async def client_of(engine, **settings):
    """A client of a started app; leaving shuts the app down. `client.parts` are the app's."""
    app = create_app(Settings(**settings), engine)
    async with app.router.lifespan_context(app):
        while app.state.parts.state == "loading":  # noqa: ASYNC110  # as a balancer would
            await asyncio.sleep(0.001)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            client.parts, client.app = app.state.parts, app
            yield client
