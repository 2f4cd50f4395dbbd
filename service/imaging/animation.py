"""Frames as one moving picture: APNG by our own writer, frame by frame; WebP and GIF by Pillow, all at once.

APNG: W3C PNG, third edition, 11.3.5. It names the number of frames first and then takes them one by one, so it can be
sent while they are made; the other two are written when all are there. Every animation repeats for ever.
"""

import io
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from service.imaging import png
from service.imaging.encode import WEBP_METHOD, EncodeOptions
from service.imaging.png import Chunk, Image, chunk
from service.imaging.provenance import XMP, Provenance

Frames = npt.NDArray[np.uint8]

ANIMATIONS = {"webp": "image/webp", "apng": "image/apng", "gif": "image/gif"}
"""Format name to media type, the preferred first."""

GIF_TICK_MS = 10
"""GIF counts in hundredths of a second, and viewers slow down what is faster than two of them."""
_COLOURS = 256


@dataclass(frozen=True)
class Pace:
    """How fast frames follow one another: `fps` a second, 1 to 60."""

    fps: int

    def ticks(self, frames: int, tick_ms: int = 1, least: int = 1) -> list[int]:
        """How long each frame is shown, in ticks: their ends are rounded, so that the whole is right to half a tick.

        Args:
            least: ticks of a frame, where what is faster is not shown.
        """
        ends = [round(1000 * frame / (self.fps * tick_ms)) for frame in range(frames + 1)]
        return [max(least, end - start) for start, end in itertools.pairwise(ends)]


class ApngStream:
    """One APNG. `head()`, then `frame(...)` for each, then `end()`; each answers bytes to send.

    Args:
        frames: how many there will be, at least 1.
        shape: [height, width, channels] of each; 1 channel is gray, 3 RGB, 4 RGB with straight alpha.
        chunks: ancillary chunks, written before the frames.
    """

    def __init__(self, frames: int, shape: tuple[int, int, int], pace: Pace, chunks: Sequence[Chunk] = ()) -> None:
        if frames < 1:
            raise ValueError(f"an animation needs a frame, not {frames}")
        self._shape, self._pace, self._left = shape, pace, frames
        height, width, channels = shape
        control = chunk(b"acTL", struct.pack(">II", frames, 0))  # 0: repeated for ever
        self._start = b"".join((png.header_chunk(height, width, channels), control, *chunks))
        self._number = 0

    def head(self) -> bytes:
        """Everything before the first frame."""
        return self._start

    def frame(self, image: Image) -> bytes:
        """The next frame, uint8 [height, width, channels].

        Raises:
            ValueError: another shape or type, or more frames than there should be.
        """
        if image.dtype != np.uint8 or image.shape != self._shape or not self._left:
            given = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"{self._left} frames of {list(self._shape)} are left, not {given}")
        self._left -= 1
        height, width, _ = self._shape
        told = chunk(b"fcTL", self._next() + struct.pack(">IIIIHHBB", width, height, 0, 0, 1, self._pace.fps, 0, 0))
        pixels = png.packed(image)
        if self._number == 1:
            return told + chunk(b"IDAT", pixels)
        return told + chunk(b"fdAT", self._next() + pixels)

    def end(self) -> bytes:
        """The file's end.

        Raises:
            ValueError: frames are missing.
        """
        if self._left:
            raise ValueError(f"{self._left} frames are missing")
        return chunk(b"IEND", b"")

    def _next(self) -> bytes:
        self._number += 1
        return struct.pack(">I", self._number - 1)


def animate(
    frames: Frames, fmt: str, pace: Pace, provenance: Provenance | None = None, options: EncodeOptions | None = None
) -> bytes:
    """Write all frames as one file: the same bytes for the same arguments and library versions.

    Args:
        frames: uint8 [count, height, width, channels]; 1, 3 or 4 channels.
        fmt: a key of ANIMATIONS.
        provenance: the marks to write into the file, or None for none.

    Raises:
        ValueError: another format, or an array of another shape or dtype.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] not in (1, 3, 4) or 0 in frames.shape:
        raise ValueError(f"frames are uint8 [count, height, width, 1|3|4], not {frames.dtype} {list(frames.shape)}")
    if fmt == "apng":
        count, height, width, channels = frames.shape
        writer = ApngStream(count, (height, width, channels), pace, provenance.png_chunks() if provenance else ())
        return b"".join((writer.head(), *map(writer.frame, frames), writer.end()))
    if fmt == "webp":
        return _webp(frames, pace, provenance, options or EncodeOptions())
    if fmt == "gif":
        return _gif(frames, pace, provenance)
    raise ValueError(f"format is {fmt!r}, must be one of {', '.join(ANIMATIONS)}")


def _webp(frames: Frames, pace: Pace, provenance: Provenance | None, options: EncodeOptions) -> bytes:
    from PIL import Image as Pillow  # only here: PNG needs no Pillow, and its import is not free

    colours = np.broadcast_to(frames, (*frames.shape[:3], 3)) if frames.shape[3] == 1 else frames
    pictures = [Pillow.fromarray(np.ascontiguousarray(frame)) for frame in colours]
    marks = {"exif": provenance.exif(), "xmp": XMP.encode()} if provenance else {}
    out = io.BytesIO()
    pictures[0].save(
        out, "WEBP", save_all=True, append_images=pictures[1:], duration=pace.ticks(len(pictures)), loop=0,
        quality=options.webp_quality, method=WEBP_METHOD, **marks,
    )  # fmt: skip
    return out.getvalue()


def _gif(frames: Frames, pace: Pace, provenance: Provenance | None) -> bytes:
    """Each frame with a palette of its own: the colours of a way change along it."""
    from PIL import Image as Pillow

    flat = frames[..., :3].astype(np.uint16)
    if frames.shape[3] == 4:  # GIF has no partial transparency
        alpha = frames[..., 3:].astype(np.uint16)
        flat = (flat * alpha + 255 * (255 - alpha) + 127) // 255
    pictures = []
    for frame in flat.astype(np.uint8):
        picture = Pillow.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else np.ascontiguousarray(frame))
        if picture.mode == "RGB":
            picture = picture.quantize(_COLOURS, Pillow.Quantize.MEDIANCUT, dither=Pillow.Dither.FLOYDSTEINBERG)
        pictures.append(picture)
    durations = [ticks * GIF_TICK_MS for ticks in pace.ticks(len(pictures), GIF_TICK_MS, 2)]
    out = io.BytesIO()
    comment = {"comment": provenance.text().encode("ascii")} if provenance else {}
    pictures[0].save(
        out, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, disposal=1,
        optimize=False, **comment,
    )  # fmt: skip
    return _with_xmp(out.getvalue()) if provenance else out.getvalue()


def _with_xmp(data: bytes) -> bytes:
    """A GIF with XMP before its first frame, behind the palette that all share and the block that makes it repeat.

    XMP lies there unframed; a tail of 258 bytes leads readers of blocks to its end (XMP specification, part 3).
    """
    at = 13 + (3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    if data[at : at + 14] == b"\x21\xff\x0bNETSCAPE2.0":
        at += 19
    tail = bytes([1, *range(255, -1, -1), 0])
    return data[:at] + b"\x21\xff\x0bXMP DataXMP" + XMP.encode() + tail + data[at:]


def animation_version(fmt: str, options: EncodeOptions) -> str:
    """What determines the bytes besides the pixels. Part of the ETag."""
    if fmt == "apng":
        return f"apng-1:{png.deflate_version()}:{png.LEVEL}"
    quality = f":{options.webp_quality}" if fmt == "webp" else ""
    return f"{fmt}-anim-2:pillow-{version('pillow')}{quality}"
