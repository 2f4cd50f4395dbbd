"""Resizing is anti-aliased, centred and leaves alone what fits."""

import numpy as np
from PIL import Image
from tinyimages import pixels

from training.datasets.resize import fit, fit_all


def test_what_fits_is_returned_untouched() -> None:
    images = pixels(0)[None]
    assert fit_all(images, 16, 3) is images


def test_a_checkerboard_averages_out_instead_of_aliasing() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = fit(Image.fromarray(board), 16, 1)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3


def test_the_centre_is_kept() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    assert np.unique(fit(Image.fromarray(wide), 8, 3)).tolist() == [200]


def test_grey_to_colour_and_back() -> None:
    grey = pixels(1, (16, 16), 1)[None]
    colour = fit_all(grey, 16, 3)
    assert colour.shape == (1, 16, 16, 3) and np.array_equal(colour[..., 0], colour[..., 2])
    assert np.array_equal(fit_all(colour, 16, 1), grey)
