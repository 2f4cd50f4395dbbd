"""AVIF (AV1 Image File Format over ISO/IEC 14496-12): box by box, and the AV1 streams' own sizes."""

import struct
from collections.abc import Iterator

from service.imaging.limits import Header, Limits, check_rest, unreadable

_MAX_ITEMS = 4096
"""And so many pieces of items. Pictures are cut into tiles of their own from some 4,000 pixels on, rarely into more
than a hundred."""


def walk_avif(view: memoryview, limits: Limits) -> Header:
    """All items' sizes (`ispe`), and those that the coded pictures say of themselves, are held against the limits."""
    sizes: list[tuple[int, int]] = []
    parts = metadata = units = 0
    data = False
    for kind, body in _boxes(view, 0):
        parts += 1
        limits.check_parts(parts, "AVIF boxes")
        if kind == b"mdat":
            data = True
            continue
        metadata += 0 if kind == b"free" else len(body)
        limits.check_metadata(metadata, "profile and metadata")
        if kind == b"ftyp" and bytes(body[:4]) == b"avis":
            raise unreadable("is an animated AVIF; only still ones are read")
        if kind == b"meta":
            found, places = _properties(body[4:], limits)
            sizes += found
            for piece in _pieces(view, places):
                units = _check_stream(piece, limits, units)
    if not data or not sizes:
        raise unreadable("is malformed: AVIF without a picture")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header("AVIF", width, height)


def _boxes(view: memoryview, depth: int) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at < len(view):
        if at + 8 > len(view):
            check_rest(view, at)
            return
        length, kind = struct.unpack_from(">I4s", view, at)
        head = 8
        if length == 1 and at + 16 <= len(view):
            length, head = struct.unpack_from(">Q", view, at + 8)[0], 16
        if length == 0 and depth == 0:
            length = len(view) - at
        if not all(32 <= letter < 127 for letter in kind):
            raise unreadable("is malformed: AVIF with bytes that are no box")
        if length < head or at + length > len(view):
            raise unreadable("is cut off in the middle of an AVIF box")
        yield kind, view[at + head : at + length]
        at += length


def _properties(meta: memoryview, limits: Limits) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Every size in `iprp/ipco/ispe`, and every (offset, length) in `iloc`."""
    sizes: list[tuple[int, int]] = []
    places: list[tuple[int, int]] = []
    for kind, body in _boxes(meta, 1):
        if kind == b"iloc":
            places = _places(bytes(body))
        for inner, container in _boxes(body, 2) if kind == b"iprp" else ():
            for count, (name, box) in enumerate(_boxes(container, 3) if inner == b"ipco" else ()):
                limits.check_parts(count, "AVIF properties")
                if name == b"ispe" and len(box) >= 12:
                    width, height = struct.unpack_from(">II", box, 4)
                    limits.check_size(width, height)
                    sizes.append((width, height))
    return sizes, places


def _places(box: bytes) -> list[tuple[int, int]]:
    """Where items lie in the file (ISO/IEC 14496-12, 8.11.3); those within `idat` are no pictures."""
    at = 0

    def take(size: int) -> int:
        nonlocal at
        at += size
        if at > len(box):
            raise unreadable("is cut off in the middle of an AVIF box")
        return int.from_bytes(box[at - size : at], "big")

    version = take(4) >> 24
    widths = take(2)
    offset_size, length_size, base_size, index_size = (widths >> shift & 15 for shift in (12, 8, 4, 0))
    places = []
    pieces = 0
    items = take(4 if version == 2 else 2)
    if items > _MAX_ITEMS:
        raise unreadable(f"is an AVIF of more than {_MAX_ITEMS} items")
    for _ in range(items):
        take(4 if version == 2 else 2)
        method = take(2) & 15 if version in (1, 2) else 0
        take(2)
        base = take(base_size)
        extents = take(2)
        pieces += extents  # counted before they are read: with fields of no width they cost no bytes
        if pieces > _MAX_ITEMS:
            raise unreadable(f"is an AVIF of more than {_MAX_ITEMS} pieces")
        for _ in range(extents):
            take(index_size if version in (1, 2) else 0)
            offset, length = take(offset_size), take(length_size)
            if not method:
                places.append((base + offset, length))
    return places


def _pieces(view: memoryview, places: list[tuple[int, int]]) -> Iterator[memoryview]:
    """The bytes at each place, once; together no more than the file has, or looking at them would take for ever."""
    left = len(view)
    for offset, length in dict.fromkeys(places):
        # Length 0 stands for all that follows.
        piece = view[offset : offset + length] if length else view[offset:]
        left -= len(piece)
        if left < 0:
            raise unreadable("is malformed: AVIF whose pieces overlap")
        yield piece


def _check_stream(data: memoryview, limits: Limits, units: int) -> int:
    """The size in an AV1 sequence header may differ from the box's; the decoder allocates by the former.

    Returns:
        how many of the stream's units were looked at, with the `units` before.
    """
    at = 0
    while at + 2 <= len(data):
        head = data[at]
        kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        if head & 0x80:
            return units  # not an AV1 stream: another item's data
        units += 1
        limits.check_parts(units, "AV1 units")
        start = at + 1 + extended
        length, start = _leb128(data, start) if sized else (len(data) - start, start)
        if start + length > len(data):
            return units
        if kind == 1:
            size = sequence_size(bytes(data[start : start + min(length, 64)]))
            if size is None:
                raise unreadable("is an AVIF whose picture does not say its size")
            limits.check_size(*size)
        at = start + length
    return units


def _leb128(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, at


def sequence_size(header: bytes) -> tuple[int, int] | None:
    """Largest (width, height) of an AV1 sequence header (AV1 specification, 5.5.1); None where it ends early.

    Only headers of still pictures and of sequences without timing information are followed; others answer None.
    """
    bits = "".join(f"{byte:08b}" for byte in header)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at] or "0", 2)

    take(4)  # seq_profile, still_picture
    if take(1):  # reduced_still_picture_header
        take(5)
    else:
        if take(1):  # timing_info_present_flag
            return None
        delay = take(1)  # initial_display_delay_present_flag
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay and take(1):
                take(4)
    wide, high = take(4) + 1, take(4) + 1
    width, height = take(wide) + 1, take(high) + 1
    return (width, height) if at <= len(bits) else None
