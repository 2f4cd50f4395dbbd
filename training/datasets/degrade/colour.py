"""Colour taken away, pictures turned to line drawings, days to nights."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, grey_closing, minimum_filter

from training.datasets.degrade.resolution import levels

Pixels = NDArray[np.uint8]
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def grey(clean: Pixels, random: np.random.Generator) -> Pixels:
    """The luminance, in all three channels; `random` is not used."""
    luma = levels(clean @ LUMA)
    return np.repeat(luma[..., None], 3, axis=2)


def sketch(clean: Pixels, random: np.random.Generator) -> Pixels:
    """Dark lines on white paper: the picture's own thin dark lines, and borders between its colours.

    Lines are thin or thick, faint or firm, and some are missing. What varies here is what differs between drawings by
    hand and drawings by rule, so that a model does not depend on one rule.
    """
    values = clean.astype(np.float32)
    filled = grey_closing(values, size=(5, 5, 1))  # without thin dark lines
    lines = (filled - values).min(axis=2)
    soft = gaussian_filter(filled, (random.uniform(0.3, 0.9),) * 2 + (0,))
    down = np.abs(np.diff(soft, axis=0, append=soft[-1:])).max(axis=2)
    right = np.abs(np.diff(soft, axis=1, append=soft[:, -1:])).max(axis=2)
    cut, width = random.uniform(6, 22), random.uniform(6, 24)
    ink = np.clip((np.maximum(np.hypot(down, right), lines * 0.5) - cut) / width, 0, 1)
    if random.random() < 0.5:
        worn = gaussian_filter(random.normal(size=ink.shape), 6)
        ink = ink * (worn < worn.std() * random.uniform(1.0, 3.0))
    paper = 255 - ink * random.uniform(190, 255)
    if random.random() < 0.25:
        paper = minimum_filter(paper, size=2)
    if random.random() < 0.5:
        paper = gaussian_filter(paper, random.uniform(0.2, 0.5))
    return np.repeat(levels(paper)[..., None], 3, axis=2)


def night(clean: Pixels, random: np.random.Generator) -> Pixels:
    """The scene at night, as films fake it: dark, blue, little colour, the brightest spots kept; `random` is not used.

    A rule, not data: no photographs of the same places by day and by night were to be had.
    """
    values = clean / 255.0
    luma = values @ LUMA
    dark = luma**1.8 * 0.45
    tinted = dark[..., None] * np.array([0.55, 0.72, 1.15]) * 0.75 + (values**2.0) * 0.12
    lights = np.clip((values.min(axis=2) - 0.93) / 0.07, 0, 1)[..., None] * 0.35
    return levels(255 * (tinted + lights * np.array([1.0, 0.9, 0.7])))
