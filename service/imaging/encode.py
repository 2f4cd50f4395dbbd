"""One picture to the bytes of a file. PNG by our own writer, JPEG and WebP by Pillow. Thread-safe; releases the GIL."""

import io
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import numpy as np

from service.engine.resample import on_white
from service.errors import InvalidRequest
from service.imaging import png
from service.imaging.png import Image
from service.imaging.provenance import XMP, Provenance

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Format name to media type, the preferred first."""

LONGEST_SIDE = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
"""Pixels of a side that a format, or its library, holds."""

WEBP_METHOD = 2
"""Effort 0 to 6. 2 costs half of libwebp's usual 4 for about 3 % more bytes."""


@dataclass(frozen=True)
class EncodeOptions:
    """Qualities of the lossy formats: jpeg 1 to 95, webp 1 to 100."""

    jpeg_quality: int = 90
    webp_quality: int = 90


def encode(image: Image, fmt: str, provenance: Provenance | None = None, options: EncodeOptions | None = None) -> bytes:
    """Write one picture: the same bytes for the same arguments and library versions.

    Args:
        image: uint8 [height, width, channels]; 1, 3 or 4 channels.
        fmt: a key of FORMATS. JPEG has no alpha: it is laid on white.
        provenance: the marks to write into the file, or None for none.

    Raises:
        ValueError: another format, or an array of another shape or dtype.
        InvalidRequest: a side is longer than the format holds.
    """
    check_side(fmt, max(image.shape[:2]))
    if fmt == "png":
        return png.encode_png(image, provenance.png_chunks() if provenance else ())
    if fmt not in FORMATS:
        raise ValueError(f"format is {fmt!r}, must be one of {', '.join(FORMATS)}")
    return _encode_lossy(image, fmt, provenance, options or EncodeOptions())


def check_side(fmt: str, side: int) -> None:
    """Hold the longer side against what the format holds.

    Raises:
        InvalidRequest: it is longer; `allowed` has the formats that hold it.
    """
    if side > LONGEST_SIDE.get(fmt, side):
        others = [one for one, longest in LONGEST_SIDE.items() if side <= longest]
        detail = f"format: a {fmt} holds sides of up to {LONGEST_SIDE[fmt]} pixels, the picture would have {side}"
        raise InvalidRequest(f"{detail}; use {' or '.join(others)}", field="format", allowed=others)


def _encode_lossy(image: Image, fmt: str, provenance: Provenance | None, options: EncodeOptions) -> bytes:
    from PIL import Image as Pillow  # only here: PNG needs no Pillow, and its import is not free

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"an image is uint8 [height, width, 1|3|4], not {image.dtype} {list(image.shape)}")
    if fmt == "jpeg" and image.shape[2] == 4:
        image = on_white(image[:, :, :3], image[:, :, 3])
    picture = Pillow.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    marks = {"exif": provenance.exif(), "xmp": XMP.encode()} if provenance else {}
    out = io.BytesIO()
    if fmt == "jpeg":
        picture.save(out, "JPEG", quality=options.jpeg_quality, **marks)
    else:
        picture.save(out, "WEBP", quality=options.webp_quality, method=WEBP_METHOD, **marks)
    return out.getvalue()


@cache
def encoder_version(fmt: str, options: EncodeOptions) -> str:
    """What determines the bytes besides the pixels: writer, libraries, quality. Part of the ETag."""
    if fmt == "png":
        return f"png-3:{png.deflate_version()}:{png.LEVEL}"
    quality = options.jpeg_quality if fmt == "jpeg" else options.webp_quality
    return f"{fmt}-2:pillow-{version('pillow')}:{quality}"
