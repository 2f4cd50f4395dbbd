"""TIFF 6.0: the directories' chain; the first directory's tags."""

import struct

from service.imaging.limits import Header, Limits, too_large, unreadable

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_PACKINGS = {
    1: "none",
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
}
_BITS = (1, 2, 4, 8, 16)
_COLOURS = (0, 1, 2, 3, 5, 6)
_OFFSETS, _COUNTS = (273, 324), (279, 325)


def walk_tiff(view: memoryview, limits: Limits) -> Header:
    """Every directory is counted; of the first, sizes, sample types, packing and where its pixels lie are checked."""
    if len(view) < 8:
        raise unreadable("is cut off within the TIFF header")
    order = "<" if view[0] == 0x49 else ">"
    if struct.unpack_from(order + "H", view, 2)[0] != 42:
        raise unreadable("is a BigTIFF, or malformed; plain TIFF is read")
    at = first = struct.unpack_from(order + "I", view, 4)[0]
    seen: set[int] = set()
    while at:
        if at in seen or at + 2 > len(view):
            raise unreadable("is malformed: TIFF directories lead nowhere or in a circle")
        seen.add(at)
        limits.check_frames(len(seen))
        entries = struct.unpack_from(order + "H", view, at)[0]
        limits.check_parts(entries, "TIFF tags")
        if at + 2 + 12 * entries + 4 > len(view):
            raise unreadable("is cut off in the middle of a TIFF directory")
        at = struct.unpack_from(order + "I", view, at + 2 + 12 * entries)[0]
    if not seen:
        raise unreadable("is malformed: TIFF without a picture")
    width, height = _directory(view, order, first, limits)
    return Header("TIFF", width, height, len(seen))


def _directory(view: memoryview, order: str, at: int, limits: Limits) -> tuple[int, int]:
    tags: dict[int, tuple[int, int, int]] = {}
    metadata = 0
    for entry in range(struct.unpack_from(order + "H", view, at)[0]):
        place = at + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", view, place)
        size = _SIZES.get(kind, 1) * count
        where = place + 8 if size <= 4 else struct.unpack_from(order + "I", view, place + 8)[0]
        if where + size > len(view):
            raise unreadable("is cut off, or malformed: a TIFF tag lies beyond the file's end")
        metadata += size if size > 4 else 0
        limits.check_metadata(metadata, "profile and metadata")
        if tag in tags:  # the decoder might take the other one
            raise unreadable("is malformed: a TIFF tag is given twice")
        tags[tag] = (kind, count, where)

    def value(tag: int, default: int) -> int:
        return _values(view, order, tags[tag])[0] if tag in tags and tags[tag][1] else default

    width, height = value(256, 0), value(257, 0)
    limits.check_size(width, height)
    bits = _values(view, order, tags[258])[:8] if 258 in tags else [1]
    if any(one not in _BITS for one in bits) or value(339, 1) not in (1, 4):
        raise unreadable("is a TIFF of a sample type that is not read; whole numbers of 1, 2, 4, 8 or 16 bits are")
    if value(259, 1) not in _PACKINGS or value(262, 1) not in _COLOURS or value(277, 1) > 8:
        raise unreadable("is a TIFF of a packing or colour space that is not read")
    if value(284, 1) == 2 and 16 in bits and value(277, 1) > 1:
        raise unreadable("is a TIFF of 16-bit planes, which is not read; store a pixel's samples together")
    tile = value(322, width), value(323, height)
    if tile[0] * tile[1] > 4 * limits.max_pixels or max(tile) > 4 * limits.max_side:
        raise too_large(f"has TIFF tiles of {tile[0]}x{tile[1]} pixels")
    if 324 in tags:
        if min(tile) < 1:
            raise unreadable("is malformed: TIFF tiles without a size")
        pieces = -(-width // tile[0]) * -(-height // tile[1])
    else:
        rows = value(278, height)
        if rows < 1:
            raise unreadable("is malformed: TIFF strips without rows")
        pieces = -(-height // rows)
    _check_places(view, order, tags, pieces * (value(277, 1) if value(284, 1) == 2 else 1))
    return width, height


def _check_places(view: memoryview, order: str, tags: dict[int, tuple[int, int, int]], pieces: int) -> None:
    """Strips or tiles: as many as the picture needs, each of its own bytes within the file.

    The decoder unpacks each strip that is told, begins anew at the top where there are too many, and reads byte by byte
    where they overlap: a small file would keep it busy for hours.
    """
    offsets = [one for tag in _OFFSETS if tag in tags for one in _values(view, order, tags[tag])]
    counts = [one for tag in _COUNTS if tag in tags for one in _values(view, order, tags[tag])]
    if not counts and len(offsets) == 1:
        counts = [len(view) - offsets[0]]
    if len(offsets) != pieces or len(counts) != pieces:
        raise unreadable("is malformed: TIFF that does not say where its pixels are, each once")
    end = 0
    for offset, count in sorted(zip(offsets, counts, strict=True)):
        if offset + count > len(view) or count < 0:
            raise unreadable("is cut off: TIFF with pixels beyond the file's end")
        if count and offset < end:
            raise unreadable("is malformed: TIFF whose strips overlap")
        end = max(end, offset + count)


def _values(view: memoryview, order: str, tag: tuple[int, int, int]) -> list[int]:
    kind, count, where = tag
    code = {1: "B", 3: "H", 4: "I"}.get(kind)
    if code is None:
        raise unreadable("is malformed: a TIFF tag that must be a whole number is none")
    return list(struct.unpack_from(f"{order}{count}{code}", view, where))
