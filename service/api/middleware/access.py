"""The guard on the ASGI way: before a body is read."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.guard import Guard
from service.api.plain import Headers
from service.api.problems import response_to
from service.api.record import STATE_KEY
from service.errors import GanymedeError


class Access:
    """Inside of what opens the record, and of what answers other origins."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] == "http":
            try:
                record, headers = scope["state"][STATE_KEY], Headers(scope["headers"])
                self._guard.look(record, scope["path"], headers, scope.get("client"))
            except GanymedeError as error:
                await response_to(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
