"""From Pillow's picture to uint8 RGB and alpha: 16 bits rounded, palettes, keys and gray unfolded, profiles to sRGB.

Pillow is only imported when the first upload is decoded.
"""

import hashlib
import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Pixels = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)
_OTHER_BYTE = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "CMYK;16B": "CMYK;16L",
    "CMYK;16L": "CMYK;16B",
    "LA;16B": "RGBA",
}
"""Pillow keeps the high byte of 16-bit colours; unpacked as the other byte order it keeps the low one. Two passes give
both. Gray with alpha has four bytes a pixel, which plain RGBA hands over as they are."""

_ORIENTATION = 0x0112
_PHOTOMETRIC = 262
_INTO_ARRAYS = ("BMP", "JPEG", "PNG", "WEBP", "AVIF")
"""Whose decoders write where they are told. GIF composes frames, TIFF turns pictures."""
_PROBE: Pixels = np.concatenate(
    [np.repeat(np.arange(256), 3).reshape(256, 3), np.stack(np.meshgrid(*[range(0, 256, 51)] * 3), -1).reshape(-1, 3)]
)[None].astype(np.uint8)
"""All grays and a lattice of colours, [1, 472, 3]: what a colour profile makes of them tells what it is."""
_SAME = 2
"""Levels between sRGB's own profile by one maker and by another."""
_SRGB_KNOWN = 256
_srgb: set[bytes] = set()
"""Digests of profiles that were found to be sRGB: to find out takes four milliseconds, and most uploads have one."""
_BLOCK_PX = 1 << 18  # pixels converted at once: wide intermediate types stay small


def read_pixels(picture: "Picture", reopen: Callable[[], "Picture"]) -> tuple[Pixels, Pixels | None]:
    """Decode, and unfold into colours and transparency.

    Args:
        picture: opened, not yet loaded.
        reopen: opens the same file once more, for the low bytes of 16-bit colours.

    Returns:
        sRGB [H, W, 3] and alpha [H, W], or None where every pixel is opaque by the file's kind.
    """
    profile = picture.info.get("icc_profile")
    rawmode, drawn, grey = _rawmode(picture), _drawn(picture), picture.mode in ("1", "L", "LA")
    if picture.mode.startswith("I;16") or picture.mode == "I":
        grey = True
        rgb, alpha = _gray16(picture)
    elif rawmode in _OTHER_BYTE and picture.mode in ("RGB", "RGBA"):
        grey = rawmode == "LA;16B"
        rgb, alpha = _colour16(picture, reopen(), rawmode)
    else:
        _scale_key(picture, rawmode)
        rgb, alpha = _unfold(picture, profile)
        if picture.mode == "CMYK":
            profile = None  # applied already: it is no profile of RGB
    if profile:
        rgb = _to_srgb(rgb, profile, grey=grey)
    if alpha is None and drawn is not None:
        alpha = np.zeros(rgb.shape[:2], np.uint8)
        alpha[drawn] = 255
    return _turned(rgb, _orientation(picture)), None if alpha is None else _turned(alpha, _orientation(picture))


def _drawn(picture: "Picture") -> tuple[slice, slice] | None:
    """Rows and columns that a GIF's first frame covers, if not its whole screen: the rest is see-through."""
    tiles: list[Any] = getattr(picture, "tile", [])
    if picture.format != "GIF" or not tiles:
        return None
    left, top, right, bottom = tiles[0][1]
    return None if (left, top, right, bottom) == (0, 0, *picture.size) else (slice(top, bottom), slice(left, right))


def _scale_key(picture: "Picture", rawmode: str) -> None:
    """Pillow spreads 2 and 4 bits of gray over 8, but leaves the transparent one as the file has it."""
    key, factor = picture.info.get("transparency"), {"L;2": 85, "L;4": 17}.get(rawmode)
    if picture.format == "PNG" and factor is not None and isinstance(key, int):
        picture.info["transparency"] = key * factor


def _rawmode(picture: "Picture") -> str:
    """How the file's bytes are unpacked; empty where the decoder does that itself."""
    tiles: list[Any] = getattr(picture, "tile", [])
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _unfold(picture: "Picture", profile: bytes | None) -> tuple[Pixels, Pixels | None]:
    """Every mode of 8 bits or fewer."""
    _give_memory(picture)
    picture.load()
    if picture.mode in ("P", "PA") or (picture.mode in ("L", "RGB", "1") and "transparency" in picture.info):
        keyed = picture.mode == "PA" or "transparency" in picture.info
        unfolded = picture.convert("RGBA" if keyed else "RGB")
    elif picture.mode == "CMYK":
        unfolded = _cmyk(picture, profile)
    elif picture.mode in ("RGBA", "RGB"):
        unfolded = picture
    else:
        unfolded = picture.convert("RGBA" if picture.mode in ("LA", "La", "RGBa") else "RGB")
    return _split(_array(unfolded))


def _give_memory(picture: "Picture") -> None:
    """Have a picture of 8-bit colours decoded into an array's memory.

    Pillow's own comes in small pages, which for megabytes cost more than to decode, and goes back to the system while
    no other thread can run, for some ten milliseconds.
    """
    from PIL import _imaging as core

    if picture.format not in _INTO_ARRAYS or picture.mode not in ("RGB", "RGBA") or picture._im is not None:
        return
    width, height = picture.size
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[...] = 0  # what a file leaves out must not be what another left behind; without the interpreter's lock
    picture.im = core.map_buffer(pixels, picture.size, "raw", 0, (picture.mode, 0, 1))


def _array(picture: "Picture") -> npt.NDArray[Any]:
    """A loaded picture's samples, in blocks: Pillow joins its rows in one breath, while no other thread can run."""
    width, height = picture.size
    rows = max(1, _BLOCK_PX // max(1, width))
    if rows >= height:
        return np.asarray(picture)
    first = np.asarray(picture.crop((0, 0, width, rows)))
    out = np.empty((height, *first.shape[1:]), first.dtype)
    out[:rows] = first
    for top in range(rows, height, rows):
        bottom = min(height, top + rows)
        out[top:bottom] = np.asarray(picture.crop((0, top, width, bottom)))
    return out


def _split(pixels: Pixels) -> tuple[Pixels, Pixels | None]:
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels), None
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    rows = max(1, _BLOCK_PX // max(1, pixels.shape[1]))
    for top in range(0, len(pixels), rows):
        for channel in range(3):  # a quarter of the time that three bytes of four take in one
            rgb[top : top + rows, :, channel] = pixels[top : top + rows, :, channel]
    return rgb, np.ascontiguousarray(pixels[:, :, 3])


def _gray16(picture: "Picture") -> tuple[Pixels, Pixels | None]:
    picture.load()
    wide = _array(picture).astype(np.uint16)
    if picture.format == "TIFF" and _tag(picture, _PHOTOMETRIC) == 0:
        wide = 65535 - wide  # 0 is white; with fewer bits Pillow sees to it
    key = picture.info.get("transparency")
    alpha = np.where(wide == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
    return np.repeat(_rounded(wide)[:, :, None], 3, axis=2), alpha


def _colour16(picture: "Picture", again: "Picture", rawmode: str) -> tuple[Pixels, Pixels | None]:
    """Both bytes of every sample, from two passes over the file."""
    key = picture.info.get("transparency")
    tiles: list[Any] = again.tile  # type: ignore[attr-defined]
    again.tile = [_other_byte(tile, _OTHER_BYTE[rawmode]) for tile in tiles]  # type: ignore[attr-defined]
    picture.load()
    again.load()
    high, low = _array(picture), _array(again)
    if rawmode == "LA;16B":
        pair = low[:, :, 0::2].astype(np.uint16) << 8 | low[:, :, 1::2]  # [H, W, gray and alpha]
        return np.repeat(_rounded(pair[:, :, :1]), 3, axis=2), _rounded(pair[:, :, 1])
    wide = high.astype(np.uint16) << 8 | low
    keyed = isinstance(key, tuple) and wide.shape[2] == 3
    alpha8 = np.where((wide == np.array(key)).all(axis=2), 0, 255).astype(np.uint8) if keyed else None
    rgb, alpha = _split(_rounded(wide))
    return rgb, alpha8 if alpha is None else alpha


def _other_byte(tile: Any, rawmode: str) -> Any:
    """A strip's decoder, offset and place, with another unpacking."""
    args = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return type(tile)(tile[0], tile[1], tile[2], args)


def _rounded(wide: npt.NDArray[np.uint16]) -> Pixels:
    """16 bits to the nearest of 8: 65535 / 255 is 257 exactly."""
    out = np.empty(wide.shape, np.uint8)
    rows = max(1, _BLOCK_PX // max(1, wide.shape[1]))
    for top in range(0, len(wide), rows):
        out[top : top + rows] = (wide[top : top + rows].astype(np.uint32) + 128) // 257
    return out


def _cmyk(picture: "Picture", profile: bytes | None) -> "Picture":
    return (_transformed(picture, profile) if profile else None) or picture.convert("RGB")


def _tag(picture: "Picture", number: int) -> object:
    """A TIFF's tag."""
    tags: Any = getattr(picture, "tag_v2", {})
    return tags.get(number)


def _to_srgb(rgb: Pixels, profile: bytes, *, grey: bool) -> Pixels:
    """The same in sRGB. A profile of gray is applied where the file is gray."""
    from PIL import Image

    moved = _transformed(Image.fromarray(rgb[:, :, 0]), profile) if grey else None
    moved = moved or _transformed(Image.fromarray(rgb), profile)
    return rgb if moved is None else np.ascontiguousarray(_array(moved))


def _transformed(picture: "Picture", profile: bytes) -> "Picture | None":
    """The picture in sRGB; None where its profile is sRGB already, does not fit its mode, or is broken."""
    from PIL import Image, ImageCms

    digest = hashlib.sha256(profile).digest() if picture.mode == "RGB" else b""
    if digest in _srgb:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), picture.mode, "RGB")
        if picture.mode == "RGB":
            # Not by its name: there are linear ones that have sRGB in it, and sRGB by a dozen others.
            probe = Image.fromarray(_PROBE)
            if np.abs(np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - _PROBE).max() <= _SAME:
                if len(_srgb) < _SRGB_KNOWN:
                    _srgb.add(digest)
                return None
        return ImageCms.applyTransform(picture, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError) as error:
        _log.debug("a colour profile is passed over: %s", error)  # as every viewer does; the pixels are whole
        return None


def _orientation(picture: "Picture") -> int:
    """EXIF's orientation, 1 to 8; XMP and texts have no say. Pillow turns TIFF itself."""
    from PIL import Image

    data = picture.info.get("exif")
    if picture.format == "TIFF" or not isinstance(data, bytes):
        return 1
    try:
        exif = Image.Exif()
        exif.load(data)
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # metadata in whichever way broken: the picture stays as it lies
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Upright, by the EXIF 2.3 table: 2 mirrored, 3 turned by 180 degrees, 4 flipped, 5 to 8 with the axes swapped."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
