"""JSON bodies, read strictly: UTF-8, one object, no repeated names, bounded nesting."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from service.api.faults import BodyTooSlow, Invalid, MalformedBody, UnsupportedMediaType, pointer
from service.api.plain import Headers


def object_of(body: bytes, headers: Headers, others: Sequence[str] = ()) -> dict[str, Any]:
    """The body as a dict. NaN and Infinity pass as floats here, so that the schema can name the field that holds them.

    Args:
        headers: the content type is among them.
        others: types that the endpoint reads, too; a refusal names them.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        MalformedBody: not UTF-8, not JSON, not an object, nested too deeply, or a number of thousands of digits.
        Invalid: a name occurs twice in one object.
    """
    content_type = headers.first(b"content-type")
    if content_type != b"application/json":
        _check_type(None if content_type is None else content_type.decode("latin-1"), others)
    if not body:
        lost = "; the HTTP parser drops bodies of requests to upgrade: ask for HTTP/1.1" if _upgrades(headers) else ""
        raise MalformedBody(f"the body is empty, must be a JSON object{lost}")
    try:
        parsed = _decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise MalformedBody("the JSON is nested too deeply") from None
    except ValueError:  # int() refuses more than some 4,300 digits
        raise MalformedBody("a number in the JSON has too many digits") from None
    if not isinstance(parsed, dict):
        raise MalformedBody(f"the body is a JSON {_json_type(parsed)}, must be an object")
    return parsed


async def read_body(request: Request, timeout_s: float) -> bytes:
    """The whole body.

    Raises:
        BodyTooSlow: it had not arrived after `timeout_s`.
        ClientDisconnect: the client left before its end.
        BodyTooLarge: from the middleware.
    """
    # One timer instead of `asyncio.timeout`: nearly every body is here with its head, and this is on the hot path.
    task = asyncio.current_task()
    assert task is not None
    late = False

    def end() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, end)
    parts: list[bytes] = []
    try:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)
    except asyncio.CancelledError:
        if not late or task.uncancel():  # somebody else ends this task
            raise
        raise BodyTooSlow(f"the body had not arrived after {timeout_s:g} s", field="body") from None
    finally:
        timer.cancel()


def shown(value: object, limit: int = 60) -> str:
    """A value for an error message: as JSON, cut short."""
    if isinstance(value, (list, dict)):
        return f"a JSON {_json_type(value)}"
    text = json.dumps(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _upgrades(headers: Headers) -> bool:
    """Whether the client offers HTTP/2 as Java's does at first."""
    return headers.first(b"upgrade") is not None and headers.first(b"content-length") not in (None, b"0")


def _check_type(content_type: str | None, others: Sequence[str]) -> None:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/(.+\+)?json", media_type):
        given = f"is {media_type[:60]!r}" if media_type else "is missing"
        allowed = ["application/json", *others]
        named = " or ".join(f"'{one}'" for one in allowed)
        raise UnsupportedMediaType(f"content-type {given}, must be {named}", field="content-type", allowed=allowed)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0][:60]
        detail = f"{twice!r} occurs more than once"
        raise Invalid([{"detail": detail, "pointer": pointer(twice)}], field=twice, allowed=None)
    return found


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode  # `json.loads` would make a decoder for each body


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
