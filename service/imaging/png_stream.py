"""A PNG written while its rows are still being made: bands of rows in, pieces of the file out."""

from collections.abc import Sequence

import numpy as np

from service.imaging import png
from service.imaging.png import LEVEL, Chunk, Image, chunk

PIECE_BYTES = 1 << 19
"""Of rows that are filtered at once: what that takes on the way stays small."""


class PngStream:
    """One picture. `head()` first, then `rows(...)` from top to bottom, then `end()`; each answers bytes to send.

    Holds one row and deflate's window, whatever the size. Each row takes the better of Sub and Up.

    Args:
        height, width, channels: of the whole picture; 1 channel is gray, 3 RGB, 4 RGB with straight alpha.
        chunks: ancillary chunks, written before the pixels.
    """

    def __init__(self, height: int, width: int, channels: int, chunks: Sequence[Chunk] = ()) -> None:
        if channels not in (1, 3, 4) or height < 1 or width < 1:
            raise ValueError(f"a PNG needs [height, width, 1|3|4], not {[height, width, channels]}")
        self._shape = (width, channels)
        self._left = height
        self._start = png.header_chunk(height, width, channels) + b"".join(chunks)
        self._deflate = png.deflate.compressobj(LEVEL)  # type: ignore[attr-defined]
        self._last: Image | None = None

    def head(self) -> bytes:
        """Everything before the pixels."""
        return self._start

    def rows(self, band: Image) -> bytes:
        """The next rows, uint8 [rows, width, channels]; empty while deflate still gathers.

        Raises:
            ValueError: another shape or type, or more rows than the picture has.
        """
        if band.dtype != np.uint8 or band.shape[1:] != self._shape or not 0 < len(band) <= self._left:
            raise ValueError(f"{self._left} rows of {list(self._shape)} are left, not {band.dtype} {list(band.shape)}")
        self._left -= len(band)
        flat = np.ascontiguousarray(band).reshape(len(band), -1)
        rows = max(8, PIECE_BYTES // flat.shape[1])
        packed = b"".join(self._packed(flat[top : top + rows]) for top in range(0, len(flat), rows))
        return chunk(b"IDAT", packed) if packed else b""

    def _packed(self, flat: Image) -> bytes:
        """Rows [rows, bytes], filtered and packed."""
        known = 0 if self._last is None else 1
        joined = flat if self._last is None else np.concatenate([self._last[None], flat])
        out = np.empty((len(joined), 1 + flat.shape[1]), np.uint8)
        png.filter_band(joined, self._shape[1], known, len(joined), out)
        self._last = flat[-1].copy()
        packed: bytes = self._deflate.compress(out[known:])
        return packed

    def end(self) -> bytes:
        """What is left of the pixels, and the end.

        Raises:
            ValueError: rows are missing.
        """
        if self._left:
            raise ValueError(f"{self._left} rows are missing")
        return chunk(b"IDAT", self._deflate.flush()) + chunk(b"IEND", b"")
