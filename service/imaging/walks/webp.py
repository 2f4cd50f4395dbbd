"""WebP (RFC 9649): RIFF chunk by chunk."""

import struct

from service.imaging.limits import Header, Limits, check_rest, unreadable


def walk_webp(view: memoryview, limits: Limits) -> Header:
    """The canvas, and each bitstream's own size; the two are not taken on trust."""
    if len(view) < 30:
        raise unreadable("is cut off within the WebP header")
    end = 8 + struct.unpack_from("<I", view, 4)[0]
    if end > len(view):
        raise unreadable(f"is cut off: WebP of {len(view)} bytes instead of {end}")
    canvas: tuple[int, int] | None = None
    picture: tuple[int, int] | None = None
    at, parts, frames, metadata = 12, 0, 0, 0
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", view, at)
        body, at = at + 8, at + 8 + length + (length & 1)
        if body + length > end:
            raise unreadable("is cut off in the middle of a WebP chunk")
        if kind == b"ANMF":
            frames += 1
            limits.check_frames(frames)
            if length < 24:
                raise unreadable("is malformed: a WebP frame without a picture")
            limits.check_size(_u24(view, body + 6) + 1, _u24(view, body + 9) + 1)
            picture = picture or _first_picture(view, body + 16, body + length, limits)
            continue
        parts += 1
        limits.check_parts(parts, "WebP chunks")
        if kind == b"VP8X" and length >= 10:
            canvas = _u24(view, body + 4) + 1, _u24(view, body + 7) + 1
            limits.check_size(*canvas)
        elif kind in (b"VP8 ", b"VP8L"):
            picture = picture or _bitstream(view, kind, body, length, limits)
        elif kind != b"ALPH":
            metadata += length
            limits.check_metadata(metadata, "profile and metadata")
    if picture is None:
        raise unreadable("is malformed: WebP without a picture")
    if canvas is not None and not frames and canvas != picture:
        raise unreadable("is malformed: WebP whose canvas and picture differ in size")
    check_rest(view, end)
    return Header("WEBP", *(canvas or picture), max(frames, 1))


def _first_picture(view: memoryview, at: int, end: int, limits: Limits) -> tuple[int, int] | None:
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", view, at)
        if at + 8 + length > end:
            raise unreadable("is cut off in the middle of a WebP chunk")
        if kind in (b"VP8 ", b"VP8L"):
            return _bitstream(view, kind, at + 8, length, limits)
        at += 8 + length + (length & 1)
    return None


def _bitstream(view: memoryview, kind: bytes, at: int, length: int, limits: Limits) -> tuple[int, int]:
    """A lossy or lossless stream's own size."""
    if kind == b"VP8 ":
        if length < 10 or bytes(view[at + 3 : at + 6]) != b"\x9d\x01\x2a":
            raise unreadable("is malformed: WebP with a wrong lossy header")
        size = struct.unpack_from("<HH", view, at + 6)
        width, height = size[0] & 0x3FFF, size[1] & 0x3FFF
    else:
        if length < 5 or view[at] != 0x2F:
            raise unreadable("is malformed: WebP with a wrong lossless header")
        bits = struct.unpack_from("<I", view, at + 1)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    limits.check_size(width, height)
    return width, height


def _u24(view: memoryview, at: int) -> int:
    return view[at] | view[at + 1] << 8 | view[at + 2] << 16
