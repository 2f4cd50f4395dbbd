"""DiffAugment: shapes, gradients, and that each transform does what its name says."""

import pytest
import torch
from tinytraining import shrunk, spying, tiny_trainer

from training import checkpoint
from training.augment import (
    CAP,
    OBSERVED,
    POLICIES,
    Adaptive,
    _moved,
    _recoloured,
    augmentation,
    color,
    cutout,
    translation,
)
from training.families import FAMILIES
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
    assert augmentation("ada")(images) is images  # as long as D asks for nothing
    assert augmentation(" , ")(images) is images


def test_an_unknown_transform_is_named():
    with pytest.raises(RecipeError, match="augment names 'rotate', must be of color, translation, cutout, ada"):
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


# ADA


@pytest.mark.parametrize("shape", [(8, 3, 8, 8), (8, 1, 8, 8), (8, 6, 8, 8)])
@pytest.mark.parametrize("p", [0.1, CAP])
def test_adaptive_shapes_and_gradients(p, shape):
    torch.manual_seed(1)
    images = torch.rand(shape, requires_grad=True)
    adaptive = Adaptive()
    adaptive.p = p
    out = adaptive(images)
    assert out.shape == shape and out.isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


# At p = 0.1. Half of the flips, a quarter of the turns by right angles and a 16th of the whole shifts change nothing;
# then scaling, two turns, stretching and shifts.
MOVED = 0.95 * 0.925 * (1 - 0.1 * 15 / 16) * 0.9**4
# Brightness, contrast, hue and saturation; half of the inversions change nothing.
RECOLOURED = 0.9**4 * 0.95


@pytest.mark.parametrize("transform", [_moved, _recoloured])
def test_at_probability_p_so_many_images_are_left_alone(transform):
    torch.manual_seed(0)
    images = torch.rand(4000, 3, 16, 16)
    for p, expected in ((0.0, 1.0), (0.1, MOVED if transform is _moved else RECOLOURED)):
        apart = (transform(images, p) - images).abs().amax(dim=(1, 2, 3))
        assert apart.lt(1e-5).float().mean().item() == pytest.approx(expected, abs=0.03)


def test_movements_keep_colours_and_colours_keep_places():
    torch.manual_seed(0)
    flat = torch.tensor([0.2, -0.4, 0.9]).view(1, 3, 1, 1).expand(64, 3, 8, 8)
    torch.testing.assert_close(_moved(flat, 0.8), flat)  # mirrored at the borders: nothing foreign comes in
    images = torch.zeros(64, 3, 8, 8)
    images[:, :, 2, 5] = torch.randn(64, 3)
    changed = _recoloured(images, 0.8)
    elsewhere = changed - changed[:, :, :1, :1]
    elsewhere[:, :, 2, 5] = 0
    assert elsewhere.abs().max() < 1e-5


def test_hue_and_saturation_leave_greys():
    torch.manual_seed(0)
    grey = torch.rand(64, 1, 4, 4).expand(-1, 3, -1, -1)
    out = _recoloured(grey, 0.8)
    torch.testing.assert_close(out[:, 0], out[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, 1], out[:, 2], atol=1e-5, rtol=0)


def test_p_follows_the_certainty():
    adaptive = Adaptive(kimg=1.0, target=0.6)
    for _ in range(OBSERVED - 1):
        adaptive.observe(1.0, 25)
    assert adaptive.p == 0
    adaptive.observe(1.0, 25)
    assert adaptive.p == pytest.approx(0.1)
    for _ in range(20 * OBSERVED):
        adaptive.observe(0.9, 25)
    assert adaptive.p == CAP
    for _ in range(20 * OBSERVED):
        adaptive.observe(0.1, 25)
    assert adaptive.p == 0


@pytest.mark.parametrize("family", ["gan", "dcgan", "lapgan", "stylegan", "progan"])
def test_a_run_turns_it_up_and_a_resumed_one_goes_on_from_there(tmp_path, family):
    recipe = shrunk(family, augment="ada", ada_kimg=0.2, penalty_every=2)
    one = tiny_trainer(tmp_path / "one", family, recipe)
    one.augment.adaptive.target = -1.1  # below any certainty
    for _ in range(6):
        stats = one.step()
    assert stats["augment_p"] == pytest.approx(OBSERVED * 8 / 200)
    checkpoint.save(tmp_path / "one" / "last.pt", one.state())
    readings = [one.step() for _ in range(3)]
    other = tiny_trainer(tmp_path / "other", family, recipe)
    other.augment.adaptive.target = -1.1
    other.restore(checkpoint.load(tmp_path / "one" / "last.pt"))
    assert [other.step() for _ in range(3)] == readings


def test_reals_and_fakes_are_augmented_alike(tmp_path):
    seen = []
    spied = spying(FAMILIES["gan"], lambda phase, nets, batch: seen.append(batch.augment))
    trainer = tiny_trainer(tmp_path, spied, shrunk("gan", augment="ada,color"))
    trainer.step()
    assert len(set(seen)) == 1, "what notices that it is called, in the first iteration"
    seen.clear()
    trainer.step()
    assert seen and all(augment is trainer.augment for augment in seen)
    assert trainer.augment.adaptive is trainer.augment.steps[0]


def test_images_on_top_of_each_other_have_each_its_own_grey():
    """A grey image has no saturation, joined to another or not: what changes is brightness and contrast alone."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, 8, 8)
    y = color(x)
    before, after = ((one - one.mean(dim=(1, 2, 3), keepdim=True)).flatten(1) for one in (x, y))
    ratios = after / before
    assert (ratios.std(dim=1) < 1e-3 * ratios.mean(dim=1).abs()).all(), "one factor for both, for all pixels"
    assert ratios.mean(dim=1).min() >= 0.499 and ratios.mean(dim=1).max() <= 1.501
