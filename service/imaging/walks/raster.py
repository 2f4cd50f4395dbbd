"""PNG (W3C PNG, third edition), GIF (89a) and BMP: chunk by chunk, block by block."""

import struct
import zlib

from service.imaging.limits import Header, Limits, check_rest, too_large, unreadable

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PIXELS = (b"IDAT", b"fdAT")
_PACKED_TEXTS = (b"zTXt", b"iTXt")
_TEXTS = (b"tEXt", *_PACKED_TEXTS)
_PIECE = 1 << 16  # bytes unpacked at once


def walk_png(view: memoryview, limits: Limits) -> Header:
    """IHDR first, then every chunk's length up to IEND; profiles are unpacked no further than the bound."""
    width, height = _ihdr(view, limits)
    at, frames, parts, metadata, pixels = 33, 1, 0, 0, False
    while True:
        if at + 12 > len(view):
            raise unreadable("is cut off: PNG without IEND")
        length, kind = struct.unpack_from(">I4s", view, at)
        body, at = at + 8, at + 12 + length
        if not kind.isalpha():
            raise unreadable("is malformed: a PNG chunk's type is not four letters")
        if at > len(view):
            raise unreadable("is cut off in the middle of a PNG chunk")
        if kind == b"IEND":
            break
        if kind in _PIXELS:
            pixels = True
            continue
        parts += 1
        limits.check_parts(parts, "PNG chunks")
        if kind == b"acTL" and length >= 4:
            frames = struct.unpack_from(">I", view, body)[0]
            limits.check_frames(frames)
        elif kind == b"iCCP":
            _check_packed_profile(view[body : body + length], limits)
        metadata += length
        limits.check_metadata(metadata, "metadata")
    if not pixels:
        raise unreadable("is malformed: PNG without pixels")
    check_rest(view, at)
    return Header("PNG", width, height, frames)


def without_text(view: memoryview) -> memoryview:
    """A PNG that was walked, less its texts where any is packed: each is a small bomb, and nothing here reads them."""
    at, packed = 8, False
    spans: list[tuple[int, int]] = [(0, 8)]
    while at + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, at)
        packed |= kind in _PACKED_TEXTS
        stop = at + 12 + length
        if kind not in _TEXTS:
            spans[-1:] = [(spans[-1][0], stop)] if spans[-1][1] == at else [spans[-1], (at, stop)]
        at = stop
        if kind == b"IEND":
            break
    return memoryview(b"".join(view[start:stop] for start, stop in spans)) if packed else view


def _ihdr(view: memoryview, limits: Limits) -> tuple[int, int]:
    if len(view) < 33:
        raise unreadable("is cut off within the PNG header")
    length, kind, width, height, depth, colour, packing, filtering, lacing = struct.unpack_from(">I4sIIBBBBB", view, 8)
    if kind != b"IHDR" or length != 13 or depth not in _PNG_DEPTHS.get(colour, ()) or packing or filtering:
        raise unreadable("is malformed: PNG with a wrong header")
    if lacing > 1:
        raise unreadable("is malformed: PNG with an unknown interlacing")
    limits.check_size(width, height)
    return width, height


def _check_packed_profile(chunk: memoryview, limits: Limits) -> None:
    name = bytes(chunk[:80]).find(b"\0")
    if name < 1:
        return  # not a profile; Pillow passes over it
    unpacker = zlib.decompressobj()
    packed, total = bytes(chunk[name + 2 :]), 0
    try:
        while packed and not unpacker.eof:
            total += len(unpacker.decompress(packed, _PIECE))
            limits.check_metadata(total, "colour profile")
            packed = unpacker.unconsumed_tail
    except zlib.error:
        raise unreadable("is malformed: a colour profile that cannot be unpacked") from None


def walk_gif(view: memoryview, limits: Limits) -> Header:
    """The screen, then blocks up to the trailer; every frame must lie within the bounds."""
    if len(view) < 13:
        raise unreadable("is cut off within the GIF header")
    width, height, flags = struct.unpack_from("<HHB", view, 6)
    limits.check_size(width, height)
    at = 13 + _palette_bytes(flags)
    frames = parts = metadata = 0
    while True:
        if at >= len(view):
            raise unreadable("is cut off: GIF without its trailer")
        kind = view[at]
        if kind == 0x3B:
            break
        if kind == 0x21:
            parts += 1
            end = _skip_blocks(view, at + 2)
            limits.check_parts(parts - 4 * frames, "GIF extensions")
            metadata += 0 if view[at + 1] == 0xF9 else end - at  # a frame's own control block is no metadata
            limits.check_metadata(metadata, "metadata")
            at = end
        elif kind == 0x2C and at + 10 <= len(view):
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", view, at + 1)
            limits.check_size(max(width, left + wide), max(height, top + high))
            frames += 1
            limits.check_frames(frames)
            at = _skip_blocks(view, at + 11 + _palette_bytes(flags))
        else:
            raise unreadable("is malformed: GIF with an unknown block")
    if not frames:
        raise unreadable("is malformed: GIF without a frame")
    check_rest(view, at + 1)
    return Header("GIF", width, height, frames)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(view: memoryview, at: int) -> int:
    while at < len(view):
        size = view[at]
        at += 1 + size
        if not size:
            return at
    raise unreadable("is cut off in the middle of a GIF block")


_RUNS, _RUNS_BYTES = (1, 2), 512 << 10
"""Run-length coded pixels are unpacked some 400,000 bytes a second; drawings by old programs have a few KB."""


def walk_bmp(view: memoryview, limits: Limits) -> Header:
    """The file header and whichever of the info headers follows it; packed rows need as many bytes as they say."""
    if len(view) < 26:
        raise unreadable("is cut off within the BMP header")
    offset, info = struct.unpack_from("<II", view, 10)
    if info == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", view, 18)
        packing = 0
    elif info in (40, 52, 56, 64, 108, 124) and len(view) >= 54:
        width, height, _, depth, packing = struct.unpack_from("<iiHHI", view, 18)
    else:
        raise unreadable("is malformed: BMP with an unknown header")
    if width < 0:
        raise unreadable("is malformed: BMP of negative width")
    height = abs(height)
    limits.check_size(width, height)
    if depth not in (1, 2, 4, 8, 16, 24, 32) or offset > len(view):
        raise unreadable("is malformed: BMP with a wrong header")
    if packing in _RUNS and len(view) > _RUNS_BYTES:
        raise too_large(f"is a run-length coded BMP of {len(view)} bytes; such may have {_RUNS_BYTES}")
    if packing in (0, 3, 6):
        end = offset + (width * depth + 31) // 32 * 4 * height
        if end > len(view):
            raise unreadable(f"is cut off: BMP of {len(view)} bytes instead of {end}")
        if info < 124:  # the newest header may place a profile behind the pixels
            check_rest(view, end)
    return Header("BMP", width, height)
