"""Tiny images of every kind, made here."""

import io
import struct

import numpy as np
from PIL import Image


def pixels(seed: int, size: tuple[int, int] = (16, 16), channels: int = 3) -> np.ndarray:
    """Random uint8 pixels [H, W, C], smooth enough to survive a resize as something of its own."""
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def png(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rgb(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(pixels(seed, size))


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
