"""The IDX format of MNIST: a magic number, big-endian sizes, then unsigned bytes.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.datasets.errors import BrokenSet

UNSIGNED_BYTE = 0x08
MAX_BYTES = 8 << 30  # more than any IDX set in use; a gzip bomb stops here instead of filling the memory

PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def decode(raw: bytes, name: str) -> NDArray[np.uint8]:
    """Decode one IDX file's bytes, gzip-compressed or not.

    Returns:
        The array in the shape that the file states, uint8.

    Raises:
        BrokenSet: wrong magic, an element type other than unsigned bytes, or a length that contradicts the header.
    """
    if raw[:2] == b"\x1f\x8b":
        raw = gunzip(raw, name)
    if len(raw) < 4 or raw[0] != 0 or raw[1] != 0:
        raise BrokenSet(f"{name}: not an IDX file (its first two bytes must be zero)")
    if raw[2] != UNSIGNED_BYTE:
        raise BrokenSet(f"{name}: IDX element type 0x{raw[2]:02x}; only unsigned bytes (0x08) are images or labels")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise BrokenSet(f"{name}: truncated inside the IDX header")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if len(raw) - header != prod(shape):
        raise BrokenSet(f"{name}: header says {shape}, {prod(shape)} bytes; the file holds {len(raw) - header}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def gunzip(raw: bytes, name: str) -> bytes:
    """Decompress `raw`, or raise BrokenSet naming the file."""
    try:
        stream = zlib.decompressobj(wbits=31)
        out = stream.decompress(raw, MAX_BYTES)
        if stream.unconsumed_tail or not stream.eof:
            raise BrokenSet(f"{name}: the gzip stream is truncated or larger than {MAX_BYTES} bytes")
        return out
    except (zlib.error, gzip.BadGzipFile) as problem:
        raise BrokenSet(f"{name}: not readable as gzip ({problem})") from problem


def find_parts(folder: Path) -> dict[str, Path]:
    """Return the MNIST-named files in `folder`, gz or not, by their name without `.gz`."""
    found = {}
    for part in PARTS:
        for path in (folder / part, folder / f"{part}.gz", folder / part.replace("-idx", ".idx")):
            if path.is_file():
                found[part] = path
                break
    return found
