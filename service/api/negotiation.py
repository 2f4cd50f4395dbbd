"""Which form an answer takes: what the body names stands, `Accept` chooses what it leaves open (RFC 9110, 12.5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from starlette.requests import Request

from service.api.faults import NotAcceptable
from service.api.plain import Headers
from service.errors import InvalidRequest
from service.imaging import FORMATS
from service.imaging.animation import ANIMATIONS

JSON, ZIP, NPY = "application/json", "application/zip", "application/x-npy"
_TYPES = {"json": JSON, "zip": ZIP, "npy": NPY}

F = TypeVar("F", "Form", "MotionForm")

CACHED_CHARACTERS = 256
"""Of an `Accept` header: longer ones are read anew each time, so that nobody fills memory with them."""


@dataclass(frozen=True)
class Form:
    """How pictures come: `shape` is image, json, zip, grid or npy; `fmt` a key of FORMATS."""

    shape: str
    fmt: str

    @property
    def media_type(self) -> str:
        """The response's content type."""
        return _TYPES.get(self.shape, FORMATS[self.fmt])


def choose(
    shape: str | None, fmt: str | None, images: int, accept: str | None, formats: tuple[str, ...] = tuple(FORMATS)
) -> Form:
    """The form that the client likes best; among equals ours, which are listed first.

    Args:
        shape: the body's `as`.
        fmt: the body's `format`. For one image it means the image itself.
        images: how many.
        accept: the `Accept` header; None accepts everything.
        formats: those that may be chosen where `fmt` is left open.

    Raises:
        NotAcceptable: the body leaves the type open and `Accept` has none of ours; `allowed` lists them.
    """
    if accept is not None and len(accept) > CACHED_CHARACTERS:
        return _choose(shape, fmt, images == 1, accept, formats)
    return _choose_again(shape, fmt, images == 1, accept, formats)


def _choose(shape: str | None, fmt: str | None, single: bool, accept: str | None, formats: tuple[str, ...]) -> Form:
    if shape is None and fmt is not None and single:
        shape = "image"
    shapes = [shape] if shape else (["image", "json", "zip"] if single else ["json", "zip", "grid"])
    return _liked_best([Form(one, other) for one in shapes for other in ([fmt] if fmt else formats)], accept)


_choose_again = lru_cache(maxsize=1024)(_choose)
"""Clients send the same few headers again and again."""


MIXED, NDJSON = "multipart/x-mixed-replace", "application/x-ndjson"


@dataclass(frozen=True)
class MotionForm:
    """How frames come: `shape` is animation, grid, zip, stream or ndjson; `fmt` a key of ANIMATIONS or FORMATS."""

    shape: str
    fmt: str

    @property
    def media_type(self) -> str:
        """The response's content type, without parameters."""
        return {"zip": ZIP, "stream": MIXED, "ndjson": NDJSON}.get(self.shape) or (ANIMATIONS | FORMATS)[self.fmt]


MOTION_FORMS = [
    *(MotionForm("animation", fmt) for fmt in ANIMATIONS),
    *(MotionForm(shape, fmt) for shape in ("grid", "zip", "stream", "ndjson") for fmt in FORMATS),
]
"""What `/interpolate` can answer, the preferred first."""


def choose_motion(shape: str | None, fmt: str | None, accept: str | None) -> MotionForm:
    """The form of an animation that the client likes best; among equals ours, which are listed first.

    Args:
        shape: the body's `as`; `fmt` its `format`. What they name stands.
        accept: the `Accept` header; None accepts everything.

    Raises:
        InvalidRequest: no such shape comes in this format.
        NotAcceptable: the body leaves the type open and `Accept` has none of ours; `allowed` lists them.
    """
    forms = [one for one in MOTION_FORMS if shape in (None, one.shape) and fmt in (None, one.fmt)]
    if not forms:
        right = [one.fmt for one in MOTION_FORMS if one.shape == shape]
        raise InvalidRequest(f"format: {shape} comes as {', '.join(right)}, not {fmt}", field="format", allowed=right)
    return _liked_best(forms, accept)


def choose_projection(shape: str | None, fmt: str | None, accept: str | None) -> Form:
    """The form of a projection's answer that the client likes best; among equals JSON, which holds all there is.

    Args:
        shape: the field `as`: json, image or npy; `fmt` the field `format`, of the drawn picture.
        accept: the `Accept` header; None accepts everything.

    Raises:
        NotAcceptable: `Accept` has none of ours; `allowed` lists them.
    """
    shapes = ("json", "image", "npy") if shape is None else (shape,)
    return _liked_best([Form(one, other) for one in shapes for other in ([fmt] if fmt else FORMATS)], accept)


def _liked_best(forms: "Sequence[F]", accept: str | None) -> "F":
    """Of forms with media types, the first that `Accept` likes best."""
    types = list(dict.fromkeys(form.media_type for form in forms))
    ranges = parse_accept(accept) if accept is not None else [("*/*", 1.0)]
    liked = [quality(media_type, ranges) for media_type in types]
    best = max(liked)
    if best > 0:
        chosen = types[liked.index(best)]
        return next(form for form in forms if form.media_type == chosen)
    if len(types) == 1:
        return forms[0]
    raise NotAcceptable(f"Accept has none of {', '.join(types)}", field="accept", allowed=types)


def parse_accept(header: str) -> list[tuple[str, float]]:
    """Media ranges with their q-values; what cannot be read is left out, an empty header accepts everything."""
    found: list[tuple[str, float]] = []
    for part in header.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            value = float(weight)
        except ValueError:
            continue
        media_range = "*/*" if media_range == "*" else media_range  # as some old clients write it
        if "/" in media_range and 0 <= value <= 1:
            found.append((media_range, value))
    return found if header.strip() else [("*/*", 1.0)]


def quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The q-value of the most specific range that covers the type, 0 if none does."""
    for wanted in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        values = [value for media_range, value in ranges if media_range == wanted]
        if values:
            return max(values)
    return 0.0


def field_of(request: Request, name: str) -> str | None:
    """A list-valued header, its lines joined (RFC 9110, 5.3); None if it is absent."""
    return Headers(request.scope["headers"]).joined(name.lower().encode("latin-1"))


def matches(tag: str, if_none_match: str | None) -> bool:
    """Whether the client's copy is current: `*`, or a list that has the tag, compared weakly (RFC 9110, 13.1.2)."""
    tags = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return tags == ["*"] or tag.removeprefix("W/") in tags
