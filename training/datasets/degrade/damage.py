"""Missing parts, and the wear of old prints; each by two generators, one of which training never sees."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from training.datasets.degrade.resolution import levels

Pixels = NDArray[np.uint8]
MISSING = 127  # the level of pixels that are not there


def holes(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Free strokes and boxes missing, 6 % of the area at the median, 1 to 14 % for nine in ten.

    [H, W, 4] with the mask as last channel.
    """
    height, width = clean.shape[:2]
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    side = min(height, width)
    for _ in range(random.integers(1, 4)):
        if random.random() < 0.35:
            w, h = random.uniform(0.08, 0.35, 2) * side
            x, y = random.uniform(0, width - w), random.uniform(0, height - h)
            draw.rectangle([x, y, x + w, y + h], fill=255)
        else:
            _stroke(draw, random, (width, height), random.uniform(0.02, 0.09) * side)
    return _with_hole(clean, np.asarray(canvas))


def holes_unseen(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Blobs missing: low-frequency noise cut at the level that leaves 8 to 25 % of the area out."""
    noise = gaussian_filter(random.normal(size=clean.shape[:2]), min(clean.shape[:2]) * random.uniform(0.03, 0.08))
    mask = noise > np.quantile(noise, 1 - random.uniform(0.08, 0.25))
    return _with_hole(clean, (mask * 255).astype(np.uint8))


def _with_hole(clean: Pixels, mask: Pixels) -> Pixels:
    """[H, W, 4]: the image with MISSING where the mask [H, W] is 255, and the mask."""
    image = np.where(mask[..., None] > 0, np.uint8(MISSING), clean)
    return np.concatenate([image, np.where(mask[..., None] > 0, 255, 0).astype(np.uint8)], axis=2)


def _stroke(draw: ImageDraw.ImageDraw, random: np.random.Generator, size: tuple[int, int], width: float) -> None:
    """A thick line that wanders."""
    x, y = random.uniform(0, size[0]), random.uniform(0, size[1])
    heading = random.uniform(0, 2 * math.pi)
    for _ in range(random.integers(2, 7)):
        heading += random.normal(0, 0.8)
        reach = random.uniform(0.08, 0.25) * min(size)
        end = (x + reach * math.cos(heading), y + reach * math.sin(heading))
        draw.line([(x, y), end], fill=255, width=max(round(width), 1))
        half = width / 2
        draw.ellipse([end[0] - half, end[1] - half, end[0] + half, end[1] + half], fill=255)
        x, y = end


def old(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Straight scratches and specks, light or dark, over a faded, toned and grainy print."""
    faded = clean * random.uniform(0.45, 0.95) + random.uniform(5, 70)
    toned = _toned(faded, np.array([1.0, 0.86, 0.66]), random.uniform(0, 0.8))
    worn = toned + random.normal(0, random.uniform(0, 9), (*clean.shape[:2], 1))
    height, width = clean.shape[:2]
    canvas = Image.new("L", (width * 2, height * 2), 128)
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(0, 7)):
        x, y, slant = random.uniform(0, 2 * width), random.uniform(-height, height), random.normal(0, 0.35)
        reach = random.uniform(0.3, 2) * height
        shade = int(random.choice([random.integers(0, 50), random.integers(200, 256)]))
        draw.line([(x, y), (x + reach * slant, y + reach)], fill=shade, width=int(random.integers(1, 5)))
    for _ in range(random.integers(0, max(2, height * width // 400))):
        x, y, r = random.uniform(0, 2 * width), random.uniform(0, 2 * height), random.exponential(1.2) + 0.5
        draw.ellipse([x - r, y - r, x + r, y + r], fill=int(random.choice([15, 240])))
    marks = np.asarray(canvas.resize((width, height), Image.Resampling.BOX)).astype(np.float64) - 128
    cover = np.clip(np.abs(marks) / 110, 0, 1)[..., None]
    return levels(worn * (1 - cover) + np.where(marks[..., None] > 0, 245, 20) * cover)


def old_unseen(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Cracks that wander, stains, uneven yellowing and blotchy fading."""
    height, width = clean.shape[:2]
    blotch = gaussian_filter(random.normal(size=(height, width)), min(height, width) * 0.15)
    blotch = (blotch - blotch.min()) / (np.ptp(blotch) + 1e-9)
    contrast = random.uniform(0.5, 0.8) + 0.25 * blotch[..., None]
    yellow = _toned(clean * contrast + 50 * (1 - contrast), np.array([1.0, 0.9, 0.7]), random.uniform(0.2, 0.7))
    canvas = Image.new("L", (width * 2, height * 2))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(2, 7)):
        _crack(draw, random, (2 * width, 2 * height))
    cracks = np.asarray(canvas.resize((width, height), Image.Resampling.BOX))[..., None] / 255.0
    stain = np.clip((blotch[..., None] - random.uniform(0.75, 0.9)) * 4, 0, 0.35)
    stained = yellow * (1 - stain) + np.array([120, 90, 50]) * stain
    return levels(stained * (1 - cracks) + random.uniform(215, 250) * cracks)


def _crack(draw: ImageDraw.ImageDraw, random: np.random.Generator, size: tuple[int, int]) -> None:
    x, y, heading = random.uniform(0, size[0]), random.uniform(0, size[1]), random.uniform(0, 2 * math.pi)
    for _ in range(random.integers(10, 40)):
        heading += random.normal(0, 0.5)
        end = (x + 5 * math.cos(heading), y + 5 * math.sin(heading))
        draw.line([(x, y), end], fill=int(random.integers(150, 256)), width=int(random.integers(1, 4)))
        x, y = end


def _toned(values: NDArray[np.floating], tone: NDArray[np.floating], share: float) -> NDArray[np.floating]:
    """Between the colours as they are (share 0) and a print in one tone (share 1)."""
    luma = values @ np.array([0.299, 0.587, 0.114])
    mixed: NDArray[np.floating] = values * (1 - share) + luma[..., None] * tone * share
    return mixed
