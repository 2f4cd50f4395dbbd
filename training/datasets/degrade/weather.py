"""Rain and snow, each by two generators with nothing in common: one to train with, one that training never sees."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import convolve, gaussian_filter

from training.datasets.degrade.resolution import levels

Pixels = NDArray[np.uint8]
Layer = NDArray[np.floating]  # [H, W], 0..1: how much light the weather adds


def weather(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Rain or snow at even chances; one image in ten stays clean, so that nothing is taken from good pictures."""
    chance = random.random()
    if chance < 0.1:
        return clean.copy()
    return rain(clean, random) if chance < 0.55 else snow(clean, random)


def weather_unseen(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Rain or snow by the test-only generators."""
    return rain_unseen(clean, random) if random.random() < 0.5 else snow_unseen(clean, random)


def rain(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Sparse noise smeared along one direction, in one to three layers, with a little haze."""
    angle = random.uniform(-0.5, 0.5)
    light = np.zeros(clean.shape[:2])
    for _ in range(random.integers(1, 4)):
        drops = np.where(random.random(light.shape) < random.uniform(0.005, 0.03), random.random(light.shape), 0.0)
        streaks = convolve(drops, _line(int(random.integers(7, 22)), angle), mode="reflect")
        light += gaussian_filter(streaks, random.uniform(0.2, 0.7)) * random.uniform(0.8, 1.8)
    return _lit(clean, light, random.uniform(180, 255), random.uniform(0, 0.15))


def snow(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Sparse noise, blurred and cut off, in two to four layers from small and far to large and near."""
    light = np.zeros(clean.shape[:2])
    for _ in range(random.integers(2, 5)):
        sigma = random.uniform(0.5, 2.2)
        flakes = (random.random(light.shape) < random.uniform(0.001, 0.007) / sigma).astype(np.float64)
        soft = gaussian_filter(flakes, (sigma * random.uniform(1, 1.6), sigma), mode="reflect")
        peak = 1 / (2 * math.pi * sigma**2)
        light += np.clip(soft / peak * random.uniform(1.0, 2.5), 0, 1) * random.uniform(0.5, 1)
    return _lit(clean, light, random.uniform(225, 255), random.uniform(0, 0.2))


def rain_unseen(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Single strokes of their own length, width, slant and brightness, drawn with anti-aliasing."""
    height, width = clean.shape[:2]
    canvas = Image.new("L", (width * 2, height * 2))
    draw = ImageDraw.Draw(canvas)
    slant = random.uniform(-0.6, 0.6)
    for _ in range(int(height * width * random.uniform(0.002, 0.006))):
        x, y = random.uniform(0, 2 * width), random.uniform(-20, 2 * height)
        length, lean = random.uniform(8, 50), slant + random.normal(0, 0.05)
        end = (x + length * math.sin(lean), y + length * math.cos(lean))
        draw.line([(x, y), end], fill=int(random.integers(60, 230)), width=int(random.integers(1, 4)))
    return _lit(clean, _layer(canvas, (width, height), random.uniform(0, 0.6)), random.uniform(170, 250), 0.05)


def snow_unseen(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Single flakes, drawn as ellipses and six-pointed stars of their own size and opacity."""
    height, width = clean.shape[:2]
    canvas = Image.new("L", (width * 2, height * 2))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(height * width * random.uniform(0.001, 0.004))):
        x, y = random.uniform(0, 2 * width), random.uniform(0, 2 * height)
        radius, shade = random.exponential(2.0) + 0.8, int(random.integers(110, 256))
        if random.random() < 0.7:
            stretch = random.uniform(0.7, 1.4)
            draw.ellipse([x - radius, y - radius * stretch, x + radius, y + radius * stretch], fill=shade)
        else:
            turn = random.uniform(0, math.pi / 3)
            for arm in range(3):
                dx, dy = (2 * radius * f(turn + arm * math.pi / 3) for f in (math.cos, math.sin))
                draw.line([(x - dx, y - dy), (x + dx, y + dy)], fill=shade, width=1)
    return _lit(clean, _layer(canvas, (width, height), random.uniform(0, 0.8)), random.uniform(235, 255), 0.05)


def _line(length: int, angle: float) -> NDArray[np.float64]:
    """A kernel that smears along a line `length` px long, `angle` rad from the vertical; its largest entry is 0.5."""
    kernel = np.zeros((length, length))
    middle = (length - 1) / 2
    for step in np.linspace(-middle, middle, 3 * length):
        kernel[round(middle + step * math.cos(angle)), round(middle + step * math.sin(angle))] += 1
    scaled: NDArray[np.float64] = kernel / kernel.max() / 2
    return scaled


def _layer(canvas: Image.Image, size: tuple[int, int], blur: float) -> Layer:
    small = canvas.filter(ImageFilter.GaussianBlur(blur)).resize(size, Image.Resampling.BOX)
    layer: Layer = np.asarray(small) / 255.0
    return layer


def _lit(clean: Pixels, light: Layer, colour: float, haze: float) -> Pixels:
    """The image with light of grey level `colour` laid over it, after a haze of the same level."""
    hazy = clean * (1 - haze) + colour * haze
    cover = np.clip(light, 0, 0.95)[..., None]
    return levels(hazy * (1 - cover) + colour * cover)
