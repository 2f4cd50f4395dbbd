"""DiffAugment: shapes, gradients, and that each transform does what its name says."""

import pytest
import torch

from training.augment import POLICIES, augmentation, color, cutout, translation
from training.recipe import RecipeError


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(16, 3, 8, 8) * 2 - 1


@pytest.mark.parametrize("policy", [*POLICIES, "color, translation,cutout"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 7, 9), (1, 3, 5, 5)])
def test_shapes_and_gradients(policy, shape):
    torch.manual_seed(1)
    images = torch.rand(shape, requires_grad=True)
    out = augmentation(policy)(images)
    assert out.shape == shape and out.dtype == torch.float32 and out.isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert not torch.equal(out, images)


def test_nothing_asked_nothing_done(images):
    assert augmentation("")(images) is images
    assert augmentation(" , ")(images) is images


def test_an_unknown_transform_is_named():
    with pytest.raises(RecipeError, match="augment names 'rotate', must be of color, translation, cutout"):
        augmentation("color,rotate")


def test_translation_shifts_and_lets_zeros_in(images):
    images = images + 3  # no zero of their own
    moved = translation(images, ratio=0.25)
    found = set()
    for image, out in zip(images, moved, strict=True):
        fits = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                expected = torch.zeros_like(image)
                ys, xs = slice(max(0, -dy), 8 - max(0, dy)), slice(max(0, -dx), 8 - max(0, dx))
                sources = slice(max(0, dy), 8 + min(0, dy)), slice(max(0, dx), 8 + min(0, dx))
                expected[:, ys, xs] = image[:, sources[0], sources[1]]
                if torch.equal(out, expected):
                    fits.append((dy, dx))
        assert len(fits) == 1
        found.update(fits)
    assert len(found) > 5  # each image its own way


def test_cutout_zeroes_one_square_and_nothing_else(images):
    images = images + 3
    out = cutout(images, ratio=0.5)
    places = set()
    for image, cut in zip(images, out, strict=True):
        hole = (cut == 0).all(dim=0)
        assert torch.equal(cut[:, ~hole], image[:, ~hole])
        rows, columns = hole.any(dim=1).nonzero().flatten(), hole.any(dim=0).nonzero().flatten()
        assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4  # a square of 4, less what lies outside
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert hole.sum() == len(rows) * len(columns)
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 5


def test_color_is_affine_per_image_and_keeps_edges_in_place(images):
    grey = images[:, :1]
    out = color(grey)  # without colours only brightness and contrast are left: a x + b
    for before, after in zip(grey.flatten(1), out.flatten(1), strict=True):
        slope = (after[1] - after[0]) / (before[1] - before[0])
        torch.testing.assert_close(after, slope * before + (after[0] - slope * before[0]), rtol=1e-3, atol=1e-4)
        assert 0.49 <= slope <= 1.51


def test_each_call_draws_anew(images):
    for transform in POLICIES.values():
        assert not torch.equal(transform(images), transform(images))
