"""The hot endpoints over ASGI, past FastAPI's routing, on which a small picture would spend more than on its model.

FastAPI still owns the routes (documentation, other methods, everything else); this middleware serves the same requests
by the same functions, with the same errors, and does without matching, dependency solving and exit stacks. What comes
whole over a plain connection does not even get here: see `fast.py`.
"""

import asyncio
from functools import partial
from time import perf_counter

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import faults, problems
from service.api.hot import HOT, TASK, Asked, Begin, answered, rendering, took
from service.api.parts import Parts
from service.api.pictures import is_small
from service.api.plain import Headers, PlainResponse, Reply
from service.api.record import record_of
from service.api.requests import left_of, once_awake, timeout_of, while_connected
from service.api.strict_json import read_body
from service.errors import GanymedeError, ModelAsleep


class Direct:
    """Innermost of our middleware."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        begin = HOT.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if begin is None:
            await self._app(scope, receive, send)
            return
        try:
            reply = await serve(Request(scope, receive, send), self._parts, begin)
        except GanymedeError as error:
            reply = problems.reply_to(error, record_of(Request(scope)))
        except (faults.ClientGone, ClientDisconnect):
            reply = Reply(499, [(b"content-length", b"0")], b"")
        await PlainResponse(reply)(scope, receive, send)


async def serve(request: Request, parts: Parts, begin: Begin) -> Reply:
    """Read, ask the engine, give up when the client does, encode off the event loop.

    Raises:
        GanymedeError; ClientGone, ClientDisconnect: nobody waits for the answer.
    """
    record, headers = record_of(request), Headers(request.scope["headers"])
    record.task = TASK  # of all hot endpoints; before anything is refused
    body = await read_body(request, timeout_of(headers, parts)) if request.method == "POST" else b""
    asked = Asked(record, headers, request.scope["query_string"], body)
    try:
        drawing = begin(parts, asked)
    except ModelAsleep:
        look = partial(begin, parts, asked)
        drawing = await while_connected(request, once_awake(parts, look, left_of(record, timeout_of(headers, parts))))
    if isinstance(drawing, Reply):
        return drawing
    drawn = await while_connected(request, parts.engine.generate(**drawing.arguments))
    took(record, drawing, drawn)
    began = perf_counter()
    if is_small(drawn):
        rendered = rendering(parts, drawing, drawn)
    else:
        loop = asyncio.get_running_loop()
        rendered = await loop.run_in_executor(parts.encoders, rendering, parts, drawing, drawn)
    return answered(record, drawing, drawn, rendered, began)
