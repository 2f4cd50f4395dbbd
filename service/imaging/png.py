"""A PNG writer for uint8 HWC arrays: numpy row filters and ISA-L deflate.

PNG encoding is the largest cost of an image server. Each row takes the better of the two cheapest filters, Sub and Up,
by the specification's own rule of thumb (the smallest sum of absolute differences), or the picture takes one of them,
where that is nearly as good; a picture whose bytes lie near zero as they are, as drawings on black or white do, takes
none. With a fast deflate that comes within a few percent of the size of all five filters with a slow one.

Specification: W3C PNG, third edition.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

try:
    from isal import isal_zlib as deflate
except ImportError:  # a platform without a wheel: slower, same pixels
    import zlib as deflate  # type: ignore[no-redef]

crc32 = deflate.crc32
Image = npt.NDArray[np.uint8]
Chunk = bytes
"""A whole chunk: length, four-letter type, data, checksum."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 1
"""Deflate level. ISA-L's 2 costs a fifth more for less than 1 % of size."""

PLAIN_BYTES = 1024
"""So small a picture is written without a filter: to choose would cost more than it saves. And at deflate level 0, with
fixed codes: to make codes of its own takes seven times as long, for a file that goes into one packet either way."""
GRAY_BYTES = 4096
"""So small a gray picture takes none where most of it is black, and Up otherwise."""
ONE_FILTER_BYTES = 1 << 16
"""So small a picture has one filter for all of its rows."""
ROWS_GAIN = 0.03
"""A larger one has, too, where on the sampled rows a choice for each row comes nearer to zero by less than so much: on
photographs the choice costs a fifth of the time and saves 1 % of the size."""
SAMPLED_ROWS = 8

BAND_BYTES = 1 << 17
"""Rows are filtered in bands of so many bytes, which stay in the processor's cache."""

_UINT8 = np.dtype(np.uint8)
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_NONE, _SUB, _UP = 0, 1, 2
_SUMMED = 256  # differences of at most 127 that 16 bits can add up


def encode_png(image: Image, chunks: Sequence[Chunk] = ()) -> bytes:
    """Write one picture.

    Args:
        image: uint8 [height, width, channels]; 1 channel is gray, 3 RGB, 4 RGB with straight alpha.
        chunks: ancillary chunks, written between the header and the pixels.

    Returns:
        The file's bytes, the same for the same arguments and deflate library.

    Raises:
        ValueError: the array is not uint8 HWC, is empty, or has another number of channels.
    """
    if image.dtype != _UINT8 or image.ndim != 3 or image.shape[2] not in _COLOUR_TYPES or 0 in image.shape:
        raise ValueError(f"a PNG needs uint8 [height, width, 1|3|4], not {image.dtype} {list(image.shape)}")
    return b"".join((header_chunk(*image.shape), *chunks, chunk(b"IDAT", packed(image)), _END))


def encode_pngs(images: Image, chunks: Sequence[Sequence[Chunk]]) -> list[bytes]:
    """Write pictures of one size, [N, height, width, channels]: each as `encode_png` does with its chunks.

    Small ones get their filter bytes all at once: to call NumPy for each takes longer than the rest of the file.
    """
    count, height, width, channels = images.shape
    if images.dtype != _UINT8 or channels not in _COLOUR_TYPES or not 0 < height * width * channels <= PLAIN_BYTES:
        return [encode_png(image, own) for image, own in zip(images, chunks, strict=True)]
    head, row_bytes = header_chunk(height, width, channels), width * channels
    rows = np.zeros((count, height, 1 + row_bytes), np.uint8)
    rows[:, :, 1:] = images.reshape(count, height, row_bytes)
    return [
        b"".join((head, *own, chunk(b"IDAT", deflate.compress(one, _FASTEST)), _END))
        for one, own in zip(rows, chunks, strict=True)
    ]


def packed(image: Image) -> bytes:
    """Pixels [height, width, channels] filtered and deflated, as IDAT and fdAT hold them."""
    height, width, channels = image.shape
    level = _FASTEST if image.size <= PLAIN_BYTES else LEVEL
    data: bytes = deflate.compress(_filtered(image.reshape(height, width * channels), channels), level)
    return data


def chunk(kind: bytes, data: bytes) -> Chunk:
    """Frame a chunk's data."""
    told = kind + data
    return b"".join((len(data).to_bytes(4, "big"), told, crc32(told).to_bytes(4, "big")))


_END = chunk(b"IEND", b"")
_FASTEST = 1 if deflate.__name__ == "zlib" else 0  # zlib's 0 does not compress at all


def deflate_version() -> str:
    """The deflate library that writes here: another one gives other bytes for the same pixels."""
    if deflate.__name__ == "zlib":
        return f"zlib-{deflate.ZLIB_RUNTIME_VERSION}"  # type: ignore[attr-defined]
    return f"isal-{version('isal')}"


def text_chunk(keyword: str, text: str) -> Chunk:
    """An uncompressed iTXt chunk, as XMP requires."""
    return chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8"))


@lru_cache(64)
def header_chunk(height: int, width: int, channels: int) -> bytes:
    """Signature and IHDR: how every file of that size begins; 1, 3 or 4 channels of 8 bits."""
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0))


def _filtered(flat: Image, channels: int) -> Image:
    """Rows [height, width * channels] with their filter bytes: uint8 [height, 1 + width * channels]."""
    height, row_bytes = flat.shape
    if flat.size <= PLAIN_BYTES:
        out = np.zeros((height, 1 + row_bytes), np.uint8)
        out[:, 1:] = flat
        return out
    out = np.empty((height, 1 + row_bytes), np.uint8)
    best, by_rows = _best(flat, channels)
    if best == _NONE:
        out[:, 0] = _NONE
        out[:, 1:] = flat
    elif by_rows:
        rows = max(8, BAND_BYTES // row_bytes)
        for top in range(0, height, rows):
            filter_band(flat, channels, top, min(height, top + rows), out)
    elif best == _UP:
        out[:, 0] = _UP
        out[0, 1:] = flat[0]
        np.subtract(flat[1:], flat[:-1], out=out[1:, 1:])
    else:
        out[:, 0] = _SUB
        out[:, 1 : 1 + channels] = flat[:, :channels]
        np.subtract(flat[:, channels:], flat[:, :-channels], out=out[:, 1 + channels :])
    return out


def _best(flat: Image, channels: int) -> tuple[int, bool]:
    """The filter whose bytes lie nearest to zero, modulo 256, and whether each row had better choose its own.

    Judged on 8 to 15 rows; Up where there are fewer.
    """
    if channels == 1 and flat.size <= GRAY_BYTES:
        return (_NONE if 2 * np.count_nonzero(flat) < flat.size else _UP), False
    step = len(flat) // SAMPLED_ROWS
    if not step:
        return _UP, flat.size > ONE_FILTER_BYTES
    rows = flat[step::step, channels:]
    tried = np.empty((3, *rows.shape), np.uint8)  # in the order of the filters' numbers
    tried[_NONE] = rows
    np.subtract(rows, flat[step::step, :-channels], out=tried[_SUB])
    np.subtract(rows, flat[step - 1 : -1 : step, channels:][: len(rows)], out=tried[_UP])
    distances = np.add.reduce(_distances(tried).view(np.uint8), axis=2, dtype=np.uint32)
    whole = distances.sum(axis=1)
    best = int(whole.argmin())
    if flat.size <= ONE_FILTER_BYTES:
        return best, False
    return best, bool(distances[_SUB:].min(axis=0).sum() < (1 - ROWS_GAIN) * whole[best])


def filter_band(flat: Image, channels: int, top: int, bottom: int, out: Image) -> None:
    """Rows [top, bottom), each by the better of Sub and Up; the picture's first row by Sub."""
    into = out[top:bottom]
    left = flat[top:bottom, channels:] - flat[top:bottom, :-channels]
    into[:, 0] = _SUB
    into[:, 1 : 1 + channels] = flat[top:bottom, :channels]
    into[:, 1 + channels :] = left
    first = max(1, top)
    above = flat[first:bottom] - flat[first - 1 : bottom - 1]
    better = np.flatnonzero(_is_nearer(above[:, channels:], left[first - top :]))
    rows = better + (first - top)
    into[rows, 0] = _UP
    into[rows, 1:] = above[better]


def _is_nearer(one: Image, other: Image) -> npt.NDArray[np.bool_]:
    """For each row whether the bytes of `one` lie nearer to zero, modulo 256, than those of `other`."""
    difference = _distances(one) - _distances(other)
    total = np.add.reduce(difference[:, :_SUMMED], axis=1, dtype=np.int16).astype(np.int32)
    for start in range(_SUMMED, difference.shape[1], _SUMMED):
        total += np.add.reduce(difference[:, start : start + _SUMMED], axis=1, dtype=np.int16)
    nearer: npt.NDArray[np.bool_] = total < 0
    return nearer


def _distances(residuals: Image) -> npt.NDArray[np.int8]:
    """Distances from zero, modulo 256; one of 128 counts as -128, which happens to few bytes."""
    return np.abs(residuals.view(np.int8))
