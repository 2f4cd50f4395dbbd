"""Errors as RFC 9457 problem details: one table from error class to status, and the only writer of their bodies."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from service import errors
from service.api.faults import (
    AdminOff,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    FileMissing,
    HostUnknown,
    Invalid,
    KeyMissing,
    KeyUnknown,
    MalformedBody,
    MalformedForm,
    NotAcceptable,
    RateLimited,
    ScopeMissing,
    UnsupportedMediaType,
    pointer,
)
from service.api.plain import PlainResponse, Reply, reply
from service.api.record import STATE_KEY, Record

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """How an error class looks on the wire. `code` ends the problem's `type` and labels `rejected_total`."""

    status: int
    code: str
    title: str


KINDS: dict[type[Exception], Kind] = {
    errors.UnknownModel: Kind(404, "unknown-model", "No such model"),
    errors.TaskNotServed: Kind(422, "task-not-served", "The model does not serve this task"),
    BodyTooLarge: Kind(413, "body-too-large", "The body is too large"),
    BodyTooSlow: Kind(408, "body-too-slow", "The body did not arrive in time"),
    errors.ImageTooLarge: Kind(413, "image-too-large", "The image is too large"),
    errors.ImageUnreadable: Kind(400, "image-unreadable", "The image cannot be read"),
    errors.ImageTypeUnknown: Kind(415, "image-type-unknown", "The image's type is not read here"),
    errors.TooLarge: Kind(422, "too-large", "More than the limit allows"),
    MalformedBody: Kind(400, "malformed-body", "The body is not a JSON object"),
    MalformedForm: Kind(400, "malformed-form", "The body is not a form"),
    UnsupportedMediaType: Kind(415, "unsupported-media-type", "The body's type is not read here"),
    NotAcceptable: Kind(406, "not-acceptable", "Nothing acceptable can be sent"),
    AdminOff: Kind(403, "admin-off", "Operator calls are off"),
    KeyMissing: Kind(401, "key-missing", "A key is needed"),
    KeyUnknown: Kind(401, "key-unknown", "The key is not known"),
    ScopeMissing: Kind(403, "scope-missing", "The key is not for this"),
    HostUnknown: Kind(421, "host-unknown", "Not a name of this server"),
    RateLimited: Kind(429, "rate-limited", "Asked too often"),
    FileMissing: Kind(404, "file-missing", "The model has no such file"),
    errors.InvalidRequest: Kind(422, "invalid-request", "The request is not valid"),
    errors.Overloaded: Kind(429, "overloaded", "Too much is waiting"),
    errors.NotReady: Kind(503, "not-ready", "Not ready"),
    errors.DeadlineExceeded: Kind(504, "deadline-exceeded", "The deadline passed"),
    errors.Unavailable: Kind(503, "unavailable", "Not available now"),
    errors.RunFailed: Kind(500, "run-failed", "The model failed"),
    errors.PackageError: Kind(409, "model-refused", "The model folder failed verification"),
    errors.GanymedeError: Kind(500, "internal", "Internal error"),
}

CHALLENGES: dict[type[Exception], str] = {
    KeyMissing: 'Bearer realm="ganymede"',
    KeyUnknown: 'Bearer realm="ganymede", error="invalid_token"',
    ScopeMissing: 'Bearer realm="ganymede", error="insufficient_scope"',
}
"""What `WWW-Authenticate` says (RFC 6750, 3)."""

DETAIL_CHARACTERS = 1000
"""A detail may repeat what the client sent; this is as much as a person reads."""

DEFAULT_RETRY_S = 1.0
"""When the engine cannot say: long enough not to hammer, short enough for a model that loads in a second."""


def kind_of(error: type[Exception]) -> Kind:
    """The table's row for a class or its nearest ancestor."""
    return next(KINDS[base] for base in error.__mro__ if base in KINDS)


def response_to(scope: Scope, error: errors.GanymedeError) -> Response:
    """The response to one of our errors, noted on the request's record."""
    record: Record | None = scope.get("state", {}).get(STATE_KEY)
    return PlainResponse(reply_to(error, record, quote(scope["path"])))


def reply_to(error: errors.GanymedeError, record: Record | None, path: str = "") -> Reply:
    """The answer to one of our errors, noted on the request's record.

    Args:
        path: the request's, percent-encoded, where there is no record.
    """
    kind = kind_of(type(error))
    headers: dict[str, str] = {}
    body = _body(kind, error.detail[:DETAIL_CHARACTERS], record, path)
    if isinstance(error, errors.InvalidRequest):
        body |= {"field": error.field} if error.field is not None else {}
        body |= {"allowed": error.allowed} if error.allowed is not None else {}
        if isinstance(error, Invalid):
            body["errors"] = error.errors
        elif error.field is not None and kind.status == 422:
            body["errors"] = [{"detail": error.detail, "pointer": pointer(error.field, error.detail)}]
    if isinstance(error, errors.Unavailable):
        body["reason"] = _reason(error, kind)
        if error.retry_after_s is not None or kind.status in (429, 503):
            wait_s = DEFAULT_RETRY_S if error.retry_after_s is None else max(0.0, error.retry_after_s)
            headers = {"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    if isinstance(error, NotAcceptable):
        headers["vary"] = "Accept"
    if isinstance(error, UnsupportedMediaType):
        headers["accept-post"] = ", ".join(map(str, error.allowed or ["application/json"]))
    if type(error) in CHALLENGES:
        headers["www-authenticate"] = CHALLENGES[type(error)]
    if isinstance(error, (BodyTooLarge, BodyTooSlow)):  # the rest of the body is not waited for
        headers["connection"] = "close"
    if record is not None:
        record.rejected = _reason(error, kind) if isinstance(error, errors.Unavailable) else kind.code
    return _reply(body, headers)


def unexpected(request_id: str, path: str) -> Reply:
    """500 without a word about the inside; the log has the stack trace under the same id."""
    kind = KINDS[errors.GanymedeError]
    detail = "an unexpected error; the server's log has it under this request_id"
    body = {"type": _type(kind.code), "title": kind.title, "status": 500, "detail": detail, "instance": path}
    return _reply({**body, "request_id": request_id}, {})


def unheard(status: int, detail: str) -> bytes:
    """The whole answer to what never became a request: the connection ends with it, and there is no path to name."""
    phrase = HTTPStatus(status).phrase
    body = _body(Kind(status, phrase.lower().replace(" ", "-"), phrase), detail, None, "")
    del body["instance"]
    found = _reply(body, {"connection": "close"})
    lines = [b"HTTP/1.1 %d %s" % (status, phrase.encode()), *(b"%s: %s" % pair for pair in found.headers)]
    return b"\r\n".join((*lines, b"", found.body))


def install(app: FastAPI, methods: Callable[[str], Sequence[str]]) -> None:
    """Register the exception handlers.

    Args:
        methods: what a path answers to, for `Allow`.
    """

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.GanymedeError)
        return response_to(request.scope, error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase
        kind = Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase)
        record: Record | None = request.scope.get("state", {}).get(STATE_KEY)
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        detail = str(error.detail)
        if kind.status == 404:
            detail = "nothing is served at this path; /docs lists what is"
        elif kind.status == 405:
            headers["allow"] = ", ".join(methods(request.url.path))
            detail = f"this path answers only {headers['allow']}"
        if record is not None:
            record.rejected = kind.code
        return PlainResponse(_reply(_body(kind, detail, record, quote(request.scope["path"])), headers))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(errors.GanymedeError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(ClientDisconnect, gone)


def responses(*classes: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for the problems that an endpoint can answer with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[int, list[str]] = {}
    for kind in map(kind_of, classes):
        found.setdefault(kind.status, []).append(kind.title)
    return {status: {"description": "; ".join(titles), "content": content} for status, titles in sorted(found.items())}


def _reason(error: errors.Unavailable, kind: Kind) -> str:
    """The engine's fixed word, or the problem's code where it gave none."""
    return kind.code if error.reason == errors.Unavailable("").reason else error.reason


def _type(code: str) -> str:
    return f"urn:ganymede:problem:{code}"


def _body(kind: Kind, detail: str, record: Record | None, path: str) -> dict[str, Any]:
    path = record.path if record else path
    body: dict[str, Any] = {"type": _type(kind.code), "title": kind.title, "status": kind.status, "detail": detail}
    return body | {"instance": path} | ({"request_id": record.request_id} if record else {})


def _reply(body: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
    # ASCII JSON: a lone surrogate that a client sent and a message repeats has no UTF-8 form.
    content = json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")
    return reply(body["status"], {**headers, "cache-control": "no-store"}, content, MEDIA_TYPE)
