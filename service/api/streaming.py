"""Answers that are sent while they are made."""

from collections.abc import AsyncGenerator, Mapping

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send


class Streamed(StreamingResponse):
    """Ends its source when the client leaves.

    HTTP/1.0 has no chunks: its clients get the whole at once, with a length.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(pieces, 200, headers, media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come."""
        try:
            if scope["http_version"] == "1.0":
                whole = b"".join([piece async for piece in self._pieces])
                headers = {name: value for name, value in self.headers.items() if name != "content-type"}
                await Response(whole, 200, headers, self.media_type)(scope, receive, send)
                return
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()
