"""Answers that are sent while they are made."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send


class NotRead(Exception):
    """A client has left a piece of its answer unread for SEND_S; the connection ends."""


SEND_S = 60.0
"""How long a client may leave a piece unread: what it holds meanwhile, pictures and room for them, others wait for."""


def _bounded(send: Send) -> Send:
    """`send`, which waits for a client to read what went before.

    Raises:
        NotRead: it does not.
    """

    async def sent(message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await send(message)
        except TimeoutError:
            raise NotRead from None

    return sent


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
            await super().__call__(scope, receive, _bounded(send))
        finally:
            await self._pieces.aclose()
