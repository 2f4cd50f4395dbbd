"""The hot endpoints, past FastAPI's routing: a request for one small picture spends more there than in its model.

FastAPI still owns the routes (documentation, other methods, everything else); this middleware calls the same functions
that it would, with the same errors, and does without matching, dependency solving and exit stacks.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import faults, problems
from service.api.parts import Parts
from service.errors import GanymedeError

Endpoint = Callable[[Request, Parts], Awaitable[Response]]


class Direct:
    """Innermost of our middleware.

    Args:
        endpoints: by method and path; each is also a route of the app behind this.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[tuple[str, str], Endpoint], parts: Parts) -> None:
        self._app = app
        self._endpoints = dict(endpoints)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        endpoint = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive, send), self._parts)
        except GanymedeError as error:
            response = problems.response_to(scope, error)
        except (faults.ClientGone, ClientDisconnect):
            response = Response(status_code=499)
        await response(scope, receive, send)
