"""Every degradation: right shapes, the same for the same seed, and damage that is there."""

import numpy as np
import pytest
from PIL import Image

from training.datasets.degrade import DEGRADATIONS, degradation
from training.datasets.errors import DataError

every = pytest.mark.parametrize("name", DEGRADATIONS)


def picture(seed: int = 0, side: int = 48) -> np.ndarray:
    """Patches of colour with soft borders, uint8 [side, side, 3]."""
    small = np.random.default_rng(seed).integers(40, 216, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def damaged(name: str, clean: np.ndarray, seed: int) -> np.ndarray:
    kind = DEGRADATIONS[name]
    return kind.apply(clean, np.random.default_rng(seed), *((4,) if kind.scales else ()))


@every
def test_shape_type_and_determinism(name):
    kind, clean = DEGRADATIONS[name], picture()
    before = clean.copy()
    one, again = damaged(name, clean, 5), damaged(name, clean, 5)
    side = 12 if kind.scales else 48
    assert one.dtype == np.uint8 and one.shape == (side, side, 4 if kind.mask else 3)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(clean, before)  # the data set must not change under training


@every
def test_damage_is_there_and_not_everywhere_the_same(name):
    kind, clean = DEGRADATIONS[name], picture()
    made = [damaged(name, clean, seed) for seed in range(8)]
    if not kind.scales:
        assert any((image[..., :3] != clean).any() for image in made)
    fixed = name in ("bicubic", "grey", "night")
    assert all((image == made[0]).all() for image in made) == fixed


def test_a_generator_for_tests_differs_from_the_one_for_training():
    for name, kind in DEGRADATIONS.items():
        if kind.unseen is not None:
            other = DEGRADATIONS[kind.unseen]
            assert other.test_only and not kind.test_only and other.mask == kind.mask
            assert (damaged(name, picture(), 1) != damaged(kind.unseen, picture(), 1)).any()


@pytest.mark.parametrize("name", ["holes", "holes-unseen"])
def test_holes_are_told_by_the_mask_and_nothing_else_changes(name):
    clean, shares = picture(), []
    for seed in range(40):
        made = damaged(name, clean, seed)
        mask = made[..., 3]
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(made[..., :3][mask == 0], clean[mask == 0])
        assert (made[..., :3][mask == 255] == 127).all()
        shares.append((mask == 255).mean())
    assert 0.02 < np.mean(shares) < 0.4 and min(shares) > 0


def test_grey_keeps_the_luminance():
    clean = picture()
    made = damaged("grey", clean, 0)
    assert (made[..., 0] == made[..., 1]).all() and (made[..., 1] == made[..., 2]).all()
    assert np.abs(made[..., 0] - clean @ np.array([0.299, 0.587, 0.114])).max() <= 0.5


def test_weather_adds_light_and_night_takes_it():
    clean = np.full((64, 64, 3), 90, np.uint8)
    for name in ("rain", "rain-unseen", "snow", "snow-unseen"):
        made = [damaged(name, clean, seed).astype(int) for seed in range(6)]
        assert all((image >= 90).all() for image in made) and any((image > 110).any() for image in made)
    assert damaged("night", picture(), 0).mean() < 0.6 * picture().mean()


def test_a_sketch_is_paper_with_ink_at_the_borders():
    clean = np.full((48, 48, 3), 230, np.uint8)
    clean[12:36, 12:36] = (200, 40, 40)
    inked = 0
    for seed in range(10):
        made = damaged("sketch", clean, seed)
        assert (made[..., 0] == made[..., 2]).all()
        assert made[20:28, 20:28].min() > 240 and made[:6].min() > 240  # areas stay paper
        inked += made[8:40, 8:40].min() < 120
    assert inked >= 8


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(DataError, match="degradation is 'fog', must be one of bicubic, realistic, holes, weather"):
        degradation("fog")
