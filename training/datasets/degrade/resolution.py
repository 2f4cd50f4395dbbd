"""Smaller images: by clean bicubic filtering, and as cameras and web sites leave them."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.uint8]
FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.LANCZOS)


def bicubic(clean: Pixels, random: np.random.Generator, scale: int) -> Pixels:
    """[H, W, 3] to [H / scale, W / scale, 3] with Pillow's anti-aliased bicubic filter; `random` is not used."""
    return resized(clean, clean.shape[1] // scale, clean.shape[0] // scale)


def resized(image: Pixels, width: int, height: int, kind: Image.Resampling = Image.Resampling.BICUBIC) -> Pixels:
    """[H, W, 3] to [height, width, 3]."""
    return np.asarray(Image.fromarray(image).resize((width, height), kind))


def realistic(clean: Pixels, random: np.random.Generator, scale: int) -> Pixels:
    """A light, one-pass form of Real-ESRGAN's degradation (arXiv:2107.10833).

    Blur of 0.2 to 0.5 px per scale step and direction, any of four filters on the way down, noise of up to 8 levels
    (grey or coloured) and JPEG of quality 40 to 95, left out in one case of five.
    """
    sigma = random.uniform(0.2, 0.5, 2) * scale
    soft = gaussian_filter(clean.astype(np.float32), (*sigma, 0), mode="reflect")
    small = resized(
        levels(soft), clean.shape[1] // scale, clean.shape[0] // scale, FILTERS[random.integers(len(FILTERS))]
    )
    shape = small.shape if random.random() < 0.5 else (*small.shape[:2], 1)
    noisy = levels(small + random.normal(0, random.uniform(0, 8), shape))
    return jpeg(noisy, int(random.integers(40, 96))) if random.random() < 0.8 else noisy


def jpeg(image: Pixels, quality: int) -> Pixels:
    """The image after JPEG compression at `quality` (1 to 95)."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data).convert("RGB"))


def levels(values: NDArray[np.floating]) -> Pixels:
    """Rounded and clipped to uint8."""
    result: Pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return result
