"""Uploads of every kind, made here: valid ones in all formats, and what is done to them to break them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture that lossy coders keep, [H, W, C] uint8: gradients and a bright corner."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) * 255 // max(1, width + height - 2)]
    picture = np.stack([*planes, np.full_like(x, 200)][:channels], axis=2).astype(np.uint8)
    picture[: height // 4, : width // 4, 0] = 255
    return picture


def saved(picture: Image.Image | np.ndarray, fmt: str, **options: object) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, fmt, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of raw rows, each already with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(pixels: np.ndarray, *chunks: bytes) -> bytes:
    """A 16-bit PNG of [H, W, C] uint16."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png_of(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *chunks)


def seeds() -> dict[str, bytes]:
    """One or two small valid files of each format and kind."""
    rgb, rgba = smooth(23, 31), smooth(23, 31, 4)
    gray = Image.fromarray(rgb).convert("L")
    files = {fmt: saved(rgb, fmt) for fmt in FORMATS}
    files |= {f"{fmt} with alpha": saved(rgba, fmt) for fmt in ("PNG", "WEBP", "TIFF")}
    files["JPEG progressive"] = saved(rgb, "JPEG", progressive=True, exif=exif(6))
    files["JPEG CMYK"] = saved(Image.fromarray(rgb).convert("CMYK"), "JPEG")
    files["PNG palette"] = saved(Image.fromarray(rgb).convert("P"), "PNG", transparency=3)
    files["PNG 16-bit"] = png16(rgb.astype(np.uint16) * 257)
    files["WEBP lossless"] = saved(rgba, "WEBP", lossless=True)
    files["TIFF LZW"] = saved(rgb, "TIFF", compression="tiff_lzw")
    files["TIFF deflate"] = saved(gray, "TIFF", compression="tiff_adobe_deflate")
    files["TIFF 16-bit"] = saved(Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257), "TIFF")
    more = [Image.fromarray(np.roll(rgb, step, axis=1)) for step in (3, 6)]
    for fmt in ("GIF", "WEBP", "PNG"):
        files[f"{fmt} animated"] = saved(Image.fromarray(rgb), fmt, save_all=True, append_images=more)
    files["BMP palette"] = saved(gray, "BMP")
    return files


def exif(orientation: int) -> bytes:
    """EXIF that holds the orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def mutated(data: bytes, rng: np.random.RandomState) -> bytes:
    """A file with something done to it: bytes changed, cut, doubled, moved, numbers set to their extremes."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randint(0, max(1, len(content)))
        if rng.rand() < 0.5:
            at = rng.randint(0, max(1, min(64, len(content))))  # headers are short
        match rng.randint(0, 7):
            case 0:
                content[at : at + 1] = bytes([rng.randint(0, 256)])
            case 1:
                content[at : at + 4] = rng.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80"]
                )
            case 2:
                del content[at : at + rng.randint(1, 40)]
            case 3:
                content[at:at] = rng.bytes(rng.randint(1, 40))
            case 4:
                del content[rng.randint(0, len(content) + 1) :]
            case 5:
                stop = at + rng.randint(1, 200)
                content[stop:stop] = content[at:stop]
            case 6:
                content[at : at + 1] = bytes([content[at] ^ (1 << rng.randint(0, 8))]) if at < len(content) else b""
    return bytes(content)
