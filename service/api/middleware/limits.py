"""The limit on a body's size: from Content-Length before a byte is read, and while it streams."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.faults import BodyTooLarge
from service.api.problems import response_to


class BodyLimit:
    """Refuses bodies above `max_bytes` with 413, and closes the connection rather than read the rest."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            await response_to(scope, self._error())(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._max_bytes:
                    raise self._error()
            return message

        await self._app(scope, counted, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes} bytes", field="body", allowed=[self._max_bytes])
