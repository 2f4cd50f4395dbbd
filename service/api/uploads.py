"""Bodies that hold pictures: a multipart form (RFC 7578), or the bare file with its fields in the query.

The loop only has what arrives written into one buffer; taking the form apart, which is a search through megabytes, is
done by a worker thread. Parts are windows of the buffer, not copies. Nothing is fetched by URL, nothing touches a disk.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.api.bodies import UNKNOWN_TOLD, unknown
from service.api.faults import BodyTooLarge, BodyTooSlow, MalformedForm, UnsupportedMediaType, raise_all
from service.api.intake import Intake, Turns
from service.api.plain import length_of
from service.api.strict_json import shown
from service.errors import InvalidRequest, Overloaded

MAX_PARTS = 16
MAX_HEAD_BYTES = 8 * 1024
"""Of one part's headers."""
MAX_FIELD_BYTES = 1024
"""Of one field that is no file."""

FORM = "multipart/form-data"
_BARE = ("application/octet-stream", "application/x-www-form-urlencoded", "")
"""Content types besides an image's under which a bare file comes; the second is what curl's --data-binary says."""
_SLICE = 1 << 18  # bytes searched at once: a longer search would keep the loop waiting
_PLAIN = ("", "binary", "7bit", "8bit")

Reach = Callable[[int], None]
FILES = ("image", "mask")
"""Names of what comes as a file; everything else comes as text."""


@dataclass(frozen=True)
class Part:
    """A file of the form, or the bare body. `media_type` as it was declared."""

    data: memoryview
    media_type: str | None


@dataclass(frozen=True)
class Form:
    """What a request brought: files and fields by name."""

    files: Mapping[str, Part]
    fields: Mapping[str, str]


class Room:
    """How much of something all requests together may hold; one alone is always let in.

    Args:
        limit: in bytes or pixels.
        what: for the error.
    """

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.held = 0
        self._what = what

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Hold so much within the block.

        Raises:
            Overloaded: others hold too much.
        """
        if self.held and self.held + amount > self.limit:
            raise Overloaded(f"{self.held} {self._what} of other requests are held already", reason="uploads")
        self.held += amount
        try:
            yield
        finally:
            self.held -= amount

    @contextmanager
    def growing(self, most: int) -> Iterator[Reach]:
        """Hold within the block what is taken bit by bit, at most so much. Yields what is called with each amount to
        come: the first is held as it is, then twice of it if there is room, so that of many that begin at once some are
        refused early.

        An upload that does not come holds next to nothing, however much it has declared.
        """
        own = 0

        def reach(amount: int) -> None:
            nonlocal own
            if amount <= own:
                return
            others = self.held - own
            want = min(most, 2 * amount) if own else amount
            want = want if others + want <= self.limit else amount
            if others and others + want > self.limit:
                raise Overloaded(f"{others} {self._what} of other requests are held already", reason="uploads")
            self.held, own = others + want, want

        try:
            yield reach
        finally:
            self.held -= own


def expected_bytes(request: Request, max_bytes: int) -> int:
    """What the body may take: its declared length, or the limit.

    Raises:
        BodyTooLarge: it declares more than the limit.
    """
    declared = request.headers.get("content-length", "")
    size = length_of(declared) if declared.isdecimal() else max_bytes
    if size > max_bytes:
        raise BodyTooLarge(f"the body is larger than {max_bytes} bytes", field="body", allowed=[max_bytes])
    return size


async def read_body(
    request: Request, size: int, timeout_s: float, turns: Turns, reach: Reach = lambda amount: None
) -> memoryview:
    """The body, in memory that is only taken as it fills.

    Args:
        turns: shared by all that read.
        reach: called with the bytes that are about to be in memory.

    Raises:
        BodyTooSlow: it had not arrived after `timeout_s`.
        BodyTooLarge: more than `size` bytes came.
        Overloaded: as `reach` has it.
    """
    buffer: npt.NDArray[np.uint8] = np.empty(max(1, size), np.uint8)
    view, intake = buffer.data, Intake.of(request.scope)
    try:
        async with asyncio.timeout(timeout_s):
            at = await (_streamed(request, view, reach) if intake is None else intake.into(view, turns, reach))
    except TimeoutError:
        raise BodyTooSlow(f"the body had not arrived after {timeout_s:g} s", field="body") from None
    return view[:at].toreadonly()


async def _streamed(request: Request, view: memoryview, reach: Reach) -> int:
    """The body as ASGI hands it over: of unknown length, small, or by way of TLS."""
    at, size = 0, len(view)
    async for chunk in request.stream():
        if at + len(chunk) > size:
            raise BodyTooLarge(f"the body is larger than {size} bytes", field="body", allowed=[size])
        reach(at + len(chunk))
        view[at : at + len(chunk)] = chunk  # numpy would give the interpreter away and have to wait for it
        at += len(chunk)
    return at


def query_fields(request: Request) -> dict[str, str]:
    """The query's fields.

    Raises:
        InvalidRequest: one occurs twice.
    """
    fields: dict[str, str] = {}
    for name, value in parse_qsl(request.url.query, keep_blank_values=True, errors="replace"):
        if name in fields:
            raise InvalidRequest(f"{shown(name)} occurs more than once in the query", field=name[:60])
        fields[name] = value
    return fields


def take_apart(body: memoryview, content_type: str, query: Mapping[str, str], known: Sequence[str]) -> Form:
    """The files and fields of a body. Runs in a worker thread.

    Args:
        content_type: the header.
        query: fields of the query, joined to the form's.
        known: names of the files, then of the fields, that the endpoint takes; unknown ones are refused.

    Raises:
        UnsupportedMediaType: neither a form nor a file.
        MalformedForm: a form that is cut off or out of bounds.
        InvalidRequest: an unknown field, or one that is given twice.
    """
    media_type, options = parse_options_header(content_type.encode("latin-1", "replace"))
    kind = media_type.decode("latin-1").lower()
    files: dict[str, Part] = {}
    fields = dict(query)
    if kind == FORM:
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:
            raise MalformedForm("content-type: multipart/form-data without a boundary of 1 to 70 bytes", field="body")
        for name, part, is_file in _parts(body, boundary):
            if name in files or name in fields:
                raise InvalidRequest(f"{shown(name)} is given more than once", field=name[:60])
            if is_file:
                files[name] = part
            else:
                fields[name] = _text(name, part)
    elif kind.startswith("image/") or kind in _BARE:
        files["image"] = Part(body, kind if kind.startswith("image/") else None)
    else:
        allowed = [FORM, "image/*"]
        detail = f"content-type is {shown(kind)}; send a form ({FORM}) or the image itself"
        raise UnsupportedMediaType(detail, field="content-type", allowed=allowed)
    raise_all([*islice(_misplaced(files, fields, known), UNKNOWN_TOLD)])
    return Form(files, fields)


def _misplaced(files: Mapping[str, Part], fields: Mapping[str, str], known: Sequence[str]) -> Iterator[InvalidRequest]:
    """What is none of the endpoint's, or came as the other kind."""
    for name in (*files, *fields):
        if name not in known:
            yield unknown(name, known)
        elif name in files and name not in FILES:
            yield InvalidRequest(f"{name}: came as a file, must be text", field=name)
        elif name in fields and name in FILES:
            yield InvalidRequest(f"{name}: the form has no such file; it needs a filename", field=name)


def _text(name: str, part: Part) -> str:
    if len(part.data) > MAX_FIELD_BYTES:
        detail = f"{shown(name)} has {len(part.data)} bytes, at most {MAX_FIELD_BYTES}; a file needs a filename"
        raise MalformedForm(detail, field=name[:60])
    try:
        return bytes(part.data).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedForm(f"{shown(name)} is not UTF-8; a file needs a filename", field=name[:60]) from None


def _parts(body: memoryview, boundary: bytes) -> Iterator[tuple[str, Part, bool]]:
    """Name, content, and whether it is a file, of every part but the files that a page's user has not chosen."""
    mark = b"--" + boundary
    between = re.compile(re.escape(b"\r\n" + mark) + rb"(?=--|\r\n)")
    at = 0 if bytes(body[: len(mark)]) == mark else _find(between, body, 0, len(mark) + 4) + 2
    for _ in range(MAX_PARTS + 1):
        at += len(mark)
        if bytes(body[at : at + 2]) == b"--":
            return
        head_end = bytes(body[at : at + MAX_HEAD_BYTES]).find(b"\r\n\r\n")
        if head_end < 0:
            raise MalformedForm(f"a part's headers do not end within {MAX_HEAD_BYTES} bytes", field="body")
        name, media_type, filename = _head(bytes(body[at : at + head_end]))
        start = at + head_end + 4
        end = _find(between, body, start - 2, len(mark) + 4)  # an empty part's own line end is the headers'
        part = Part(body[start : max(start, end)], media_type)
        if filename != b"" or len(part.data):
            yield name, part, filename is not None or (media_type or "").lower().startswith("image/")
        at = end + 2
    raise MalformedForm(f"the form has more than {MAX_PARTS} parts", field="body")


def _find(pattern: "re.Pattern[bytes]", body: memoryview, at: int, length: int) -> int:
    while at < len(body):
        stop = min(at + _SLICE, len(body))
        if found := pattern.search(body, at, stop):
            return found.start()
        at = stop if stop == len(body) else stop - length
    raise MalformedForm("the form is cut off: its last boundary is missing", field="body")


def _head(lines: bytes) -> tuple[str, str | None, bytes | None]:
    """A part's name, media type and filename."""
    headers: dict[bytes, bytes] = {}
    for line in lines.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    disposition, options = parse_options_header(headers.get(b"content-disposition", b""))
    given = options.get(b"name")
    if disposition.lower() != b"form-data" or given is None:
        raise MalformedForm("a part has no `Content-Disposition: form-data` with a name", field="body")
    if headers.get(b"content-transfer-encoding", b"").decode("latin-1").lower() not in _PLAIN:
        raise MalformedForm("a part has a transfer encoding; send its bytes as they are", field="body")
    media_type = headers[b"content-type"].decode("latin-1") if b"content-type" in headers else None
    return given.decode("utf-8", "replace"), media_type, options.get(b"filename")
