"""The seed promise: literals computed once, so a change of stream cannot pass unseen."""

import numpy as np
import pytest

from service.engine.latents import (
    check_latents,
    check_seed,
    check_truncation,
    labels_from_seeds,
    latents_from_seeds,
    noise_from_seeds,
    truncate,
)
from service.errors import InvalidRequest

# The first four of z as float32 bits; the class of 3 and of 10.
VECTORS = {
    0: ([1071762552, 1053614440, 1064996499, 1074752203], 2, 7),
    1: ([1070590605, 3206323217, 3204920900, 3213448969], 0, 9),
    7: ([1071145765, 3203305304, 1023831664, 1053861369], 1, 3),
    4294967295: ([1059454492, 1059805385, 3213512514, 1049733663], 1, 4),
}


@pytest.mark.parametrize("seed", VECTORS)
def test_published_vectors(seed):
    bits, of_three, of_ten = VECTORS[seed]
    assert latents_from_seeds([seed], 4).view(np.uint32).tolist() == [bits]
    assert labels_from_seeds([seed], 3).tolist() == [of_three]
    assert labels_from_seeds([seed], 10).tolist() == [of_ten]


@pytest.mark.parametrize("latent_dim", [1, 3, 64, 129])
def test_each_row_is_its_own_randomstate(latent_dim):
    seeds = [0, 5, 5, 2**32 - 1, 3, 2**31]
    z = latents_from_seeds(seeds, latent_dim)
    assert z.dtype == np.float32 and z.shape == (6, latent_dim)
    for row, seed in zip(z, seeds, strict=True):
        np.testing.assert_array_equal(row, np.random.RandomState(seed).randn(latent_dim).astype(np.float32))


def test_a_longer_latent_begins_with_the_shorter():
    np.testing.assert_array_equal(latents_from_seeds([9], 100)[:, :64], latents_from_seeds([9], 64))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "7", None, True, np.float32(3)])
def test_bad_seeds_are_named(seed):
    with pytest.raises(InvalidRequest) as error:
        latents_from_seeds([seed], 4)
    assert error.value.field == "seeds"


def test_numpy_integers_are_seeds():
    assert check_seed(np.uint32(2**32 - 1)) == 2**32 - 1
    assert type(check_seed(np.int64(5))) is int


def test_truncation_scales_z():
    z = latents_from_seeds([1, 2], 8)
    assert truncate(z, 1.0) is z
    np.testing.assert_array_equal(truncate(z, 0.5), z * np.float32(0.5))
    assert truncate(z, 0.5).dtype == np.float32
    assert not truncate(z, 0.0).any()


@pytest.mark.parametrize("truncation", [-0.1, 2.1, float("nan"), float("inf"), "1", None, True])
def test_bad_truncations_are_named(truncation):
    with pytest.raises(InvalidRequest) as error:
        check_truncation(truncation)
    assert error.value.field == "truncation"


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        ([[1.0, 2.0]], "rows of 3 numbers"),
        ([[1.0, 2.0, 3.0], [1.0]], "rows of 3|every row"),
        ([], "rows of 3"),
        ([["a", "b", "c"]], "rows of 3"),
        ([[1.0, float("nan"), 3.0]], "row 0 .* between"),
        ([[0.0, 0.0, 0.0], [1e300, 0.0, 0.0]], "row 1"),
        ([[0.0, -1.1e6, 0.0]], "between -1e.06 and 1e.06"),
        (np.zeros((1, 1, 3)), "rows of 3"),
        (5, "rows of 3"),
        ([[None, 1, 2]], "rows of 3"),
        ([[True, False, True]], "rows of 3"),
    ],
)
def test_bad_latents_are_named(latents, says):
    with pytest.raises(InvalidRequest, match=says) as error:
        check_latents(latents, 3)
    assert error.value.field == "latents"


def test_one_flat_row_is_a_batch_of_one():
    z = check_latents([1, 2, 3], 3)
    assert z.shape == (1, 3) and z.dtype == np.float32


def test_labels_are_spread_and_free_of_z():
    seeds = range(3000)
    labels = labels_from_seeds(seeds, 3)
    assert np.bincount(labels, minlength=3).min() > 900
    first = latents_from_seeds(seeds, 1)[:, 0]
    assert abs(np.corrcoef(first, labels)[0, 1]) < 0.08


def test_noise_goes_on_where_z_ended():
    noise = noise_from_seeds([0, 9, 9], 8, 20)
    for row, seed in zip(noise, (0, 9, 9), strict=True):
        expected = np.random.RandomState(seed).randn(28)
        np.testing.assert_array_equal(row, expected[8:].astype(np.float32))
    assert noise_from_seeds([1], 8, 0).shape == (1, 0)
    with pytest.raises(InvalidRequest, match="seeds"):
        noise_from_seeds([-1], 8, 4)
