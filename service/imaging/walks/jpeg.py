"""JPEG (ITU-T T.81): segment by segment, scan by scan, to the end marker."""

import re

from service.imaging.limits import Header, Limits, too_large, unreadable

MAX_SCANS = 100
"""Progressive files have about ten; each one more is another pass over all pixels."""

_SLICE = 1 << 18  # bytes searched at once: a longer search would keep other threads waiting
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FOREIGN = re.compile(
    rb"PK\x03\x04|PK\x05\x06|%PDF-|Rar!\x1a\x07|7z\xbc\xaf\x27|\x7fELF|<\?php|<script|<html|<!doctype|<svg",
    re.IGNORECASE,
)


def walk_jpeg(view: memoryview, limits: Limits) -> Header:
    """Every segment's length; one frame header; then the scans.

    Phones put depth maps, second pictures and short films behind the end marker, so that much may follow; archives,
    documents, programs and web pages may not.
    """
    at, parts, scans, profile, metadata = 2, 0, 0, 0, 0
    size: tuple[int, int] | None = None
    while True:
        at, marker = _next_marker(view, at)
        if marker == 0xD9:
            break
        parts += 1  # before the marker without a segment, of which there could be as many as bytes
        limits.check_parts(parts, "JPEG segments")
        if marker == 0x01:
            continue
        if at + 2 > len(view):
            raise unreadable("is cut off in the middle of a JPEG segment")
        length = view[at] << 8 | view[at + 1]
        if length < 2 or at + length > len(view):
            raise unreadable("is cut off, or malformed: a JPEG segment is longer than the file")
        if marker in _FRAMES:
            if size is not None:
                raise unreadable("is malformed: JPEG with two frame headers")
            size = _frame(view[at : at + length], limits)
        elif marker == 0xE2 and bytes(view[at + 2 : at + 14]) == b"ICC_PROFILE\0":
            profile += length - 16
            limits.check_metadata(profile, "colour profile")
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            metadata += length
            limits.check_metadata(metadata, "metadata")
        elif marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise too_large(f"has more than {MAX_SCANS} JPEG scans")
        at += length
    if size is None or not scans:
        raise unreadable("is malformed: JPEG without a picture")
    _check_foreign(view, at)
    return Header("JPEG", *size)


def _frame(segment: memoryview, limits: Limits) -> tuple[int, int]:
    if len(segment) < 8:
        raise unreadable("is malformed: JPEG with a short frame header")
    height, width = segment[3] << 8 | segment[4], segment[5] << 8 | segment[6]
    if segment[2] != 8:
        raise unreadable(f"is a JPEG with {segment[2]} bits a sample; 8 are read")
    limits.check_size(width, height)
    return width, height


def _next_marker(view: memoryview, at: int) -> tuple[int, int]:
    """Where the marker's segment begins, and the marker; entropy-coded data and fill bytes are passed over."""
    while at < len(view):
        stop = min(at + _SLICE, len(view))
        found = _MARKER.search(view, at, stop)
        if found:
            return found.end(), view[found.end() - 1]
        at = stop if stop == len(view) else stop - 1  # a marker's first byte may end the slice
    raise unreadable("is cut off: JPEG without its end marker")


def _check_foreign(view: memoryview, at: int) -> None:
    while at < len(view):
        stop = min(at + _SLICE, len(view))
        if _FOREIGN.search(view, at, stop):
            raise unreadable(f"holds {len(view) - at} more bytes behind the image's end, another file; send it alone")
        at = stop if stop == len(view) else stop - 16
