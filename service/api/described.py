"""What the headers of answers hold, in OpenAPI's words: for clients that are made from the document."""

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Seed": ("The seed, of one picture.", {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}),
    "X-Seeds": ("All seeds in order, of a grid, a zip or an npy of latents.", _TEXT),
    "X-Model": ("`name@version`.", _TEXT),
    "X-Label": ("The class of one picture; letters beyond ASCII and `%` are percent-encoded UTF-8.", _TEXT),
    "X-Recipe": ("JSON that asks for it again, of what was steered, where it is short enough.", _TEXT),
    "X-Space": ("Where the latents lie.", {"enum": ["z", "w", "w+"]}),
    "X-Frames": ("How many frames there are.", {"type": "integer", "minimum": 2}),
    "X-Resized": ("Width and height that the model saw, of one whose size is fixed.", _TEXT),
    "X-Psnr-Db": ("How near the reconstruction is, in decibels.", {"type": "number"}),
    "ETag": ("Strong, where the request fixes the bytes.", _TEXT),
    "Server-Timing": ("Milliseconds of the stages and in all.", _TEXT),
    "traceparent": ("This server's span (W3C Trace Context).", _TEXT),
    "X-Request-Id": ("The request's id, which errors and logs repeat.", _TEXT),
}
EVERYWHERE = ("Server-Timing", "traceparent", "X-Request-Id")
"""Headers of every answer, errors too."""


def headers(*names: str) -> dict[str, Any]:
    """OpenAPI's `headers` of a response."""
    return {name: {"description": _KNOWN[name][0], "schema": _KNOWN[name][1]} for name in names}


def answer(description: str, content: dict[str, Any], *names: str) -> dict[str, Any]:
    """OpenAPI's response of status 200, with headers beyond those of every answer."""
    return {"description": description, "content": content, "headers": headers(*names)}
