"""The pictures on a model's card, made from its latent space."""

import numpy as np
import torch
from torch import Tensor

from training.latentspace import LatentSpace, between
from training.layers import to_pixels
from training.runlog import grid, png

COLUMNS, ROWS, CLASSES_SHOWN = 10, 8, 20
TRUNCATIONS = (0.0, 0.5, 0.7, 1.0, 1.3)
STRIPS = 3
GAP = 12
"""Pixels of the model between the parts."""


def samples_sheet(latents: LatentSpace, classes: int = 0) -> np.ndarray:
    """Three grids one above the other, [H, W, C] uint8.

    Seeds from 0 on, unselected (a conditional model: one row per class); the first ten of them at each of TRUNCATIONS,
    from top to bottom (a conditional model: a class each, in turn); and ways between seeds, 0 to 1, 2 to 3 and 4 to 5,
    each from left to right: arcs in z, or lines in w where there are styles.
    """
    rows = min(classes, CLASSES_SHOWN) if classes else ROWS
    labels = torch.arange(rows).repeat_interleave(COLUMNS) if classes else None
    space = latents.spaces[-1]
    turns = torch.arange(COLUMNS) % classes if classes else None
    first = latents.points(range(COLUMNS), space)
    parts = [
        grid(_pixels(latents.draw(latents.points(range(rows * COLUMNS), space), space, labels)), COLUMNS),
        grid(np.concatenate([_pixels(latents.draw(first, space, turns, cut)) for cut in TRUNCATIONS]), COLUMNS),
        grid(np.concatenate([_strip(latents, 2 * row, row, classes) for row in range(STRIPS)]), COLUMNS),
    ]
    white = np.full((GAP, *parts[0].shape[1:]), 255, np.uint8)
    return np.concatenate([parts[0], white, parts[1], white, parts[2]])


def _strip(latents: LatentSpace, seed: int, row: int, classes: int) -> np.ndarray:
    """The way from a seed to the next in COLUMNS pictures, both ends among them."""
    space = latents.spaces[-1]
    ends = latents.points([seed, seed + 1], space)
    here, there = (end.expand(COLUMNS, -1) for end in ends[:, None])
    labels = torch.full((COLUMNS,), row % classes) if classes else None
    return _pixels(latents.draw(between(here, there, torch.linspace(0, 1, COLUMNS), space), space, labels))


def _pixels(images: Tensor) -> np.ndarray:
    return to_pixels(images).contiguous().numpy()


def card_png(image: np.ndarray) -> bytes:
    """[H, W, C] uint8 as a PNG file at least 800 px wide, each pixel a square of whole pixels."""
    return png(image, max(1, 800 // image.shape[1]), optimize=True)
