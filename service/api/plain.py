"""A request's headers and an answer as plain data: what the ASGI way and the connection's own way have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from starlette.responses import Response

Pairs = Sequence[tuple[bytes, bytes]]


class Headers:
    """A request's headers; looked up by lower-case name, as HTTP parsers hand them on."""

    __slots__ = ("_first", "first", "pairs")

    first: Callable[[bytes], bytes | None]
    """The first line of that name; None where there is none. The table's own method: it is asked for most often."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._first = dict(reversed(pairs))  # of lines that repeat a name the first stands
        self.first = self._first.get

    def joined(self, name: bytes) -> str | None:
        """A list-valued header, its lines joined (RFC 9110, 5.3); None where there is none."""
        first = self._first.get(name)
        if first is None or len(self._first) == len(self.pairs):
            return None if first is None else first.decode("latin-1")
        return ", ".join(value.decode("latin-1") for key, value in self.pairs if key == name)


def length_of(digits: bytes | str) -> int:
    """A `Content-Length` as a number; beyond 18 digits, as the parser takes hardly more, the largest of so many.

    Zeros before it count for nothing: to look at the first few digits alone would let any length pass.
    """
    left = digits.lstrip(b"0" if isinstance(digits, bytes) else "0")  # type: ignore[arg-type]
    return int(left or 0) if len(left) <= 18 else 10**18


class Reply(NamedTuple):
    """A whole answer. Header names are lower case; `content-length` is among them where it belongs."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def reply(status: int, headers: Mapping[str, str], body: bytes = b"", media_type: str | None = None) -> Reply:
    """An answer from text headers: those given, then length and type of the body.

    Args:
        media_type: of the body; None for an answer without one, which then has no length either (204, 304).
    """
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    if media_type is not None:
        pairs.append((b"content-length", b"%d" % len(body)))
        pairs.append((b"content-type", media_type.encode("latin-1")))
    return Reply(status, pairs, body)


class PlainResponse(Response):
    """A reply as Starlette sends it."""

    def __init__(self, given: Reply) -> None:
        self.status_code, self.raw_headers, self.body = given
        self.background = None
