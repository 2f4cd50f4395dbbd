"""Smooth fillings: what is known stays, what is not goes on from it; and coarse parts of other fillings."""

import pytest
import torch

from training.smooth_fill import SmoothFill


@pytest.fixture
def ramps():
    """Images [1, 3, 48, 64] that rise evenly, and a hole of 20 by 24 px."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 64), indexing="ij")
    missing = torch.zeros(1, 1, 48, 64)
    missing[..., 10:30, 20:44] = 1
    return torch.stack([rows, columns, (rows + columns) / 2])[None], missing


def test_keeps_what_is_known_and_goes_on_with_it(ramps):
    images, missing = ramps
    filled = SmoothFill()(images * (1 - missing) + 0.9 * missing, missing)
    hole = missing.expand_as(images) == 1
    assert torch.equal(filled[~hole], images[~hole])
    error = (filled - images).abs()[hole]
    grey = images.abs()[hole]
    assert error.mean() < 0.08 < grey.mean() / 2 and error.max() < 0.25


def test_the_grey_under_the_mask_does_not_show(ramps):
    images, missing = ramps
    one, other = (SmoothFill()(images * (1 - missing) + level * missing, missing) for level in (-1.0, 1.0))
    assert torch.equal(one, other)


def test_the_middle_of_a_big_hole_has_the_colours_around_it():
    """82 px across; nothing may shine through from grey, the middle of the range, where the border is far."""
    images = torch.full((1, 3, 128, 128), 0.8)
    missing = torch.zeros(1, 1, 128, 128)
    missing[..., 20:102, 20:102] = 1
    assert (SmoothFill()(images * (1 - missing), missing) - 0.8).abs().max() < 0.01


def test_without_holes_and_without_anything_known(ramps):
    images, missing = ramps
    assert torch.equal(SmoothFill()(images, torch.zeros_like(missing)), images)
    assert SmoothFill()(images, torch.ones_like(missing)).isfinite().all()


def test_settled_takes_colours_from_the_filling_and_detail_from_the_image(ramps):
    """A wrong colour with a fine pattern: the colour is put right, the pattern stays; what is known is untouched."""
    images, missing = ramps
    checks = torch.ones(48, 64)
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    wrong = images + missing * (0.5 + 0.1 * checks)
    settled = SmoothFill().settled(wrong, images, missing)
    hole = missing.expand_as(images) == 1
    assert torch.equal(settled[~hole], images[~hole])
    inside = (settled - images)[..., 16:24, 26:38]  # away from the border
    assert inside.mean().abs() < 0.02 and (inside * checks[16:24, 26:38]).mean() > 0.09
