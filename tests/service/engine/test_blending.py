"""Mixes and paths: what is asked to be a given point is that point, and the rest lies where it should."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.engine.blending import METHODS, mix_normal, mix_styles, path, places
from service.engine.latents import latents_from_seeds
from service.errors import InvalidRequest

FLOATS = st.floats(-8, 8, width=32)


@given(arrays(np.float32, 5, elements=FLOATS), st.floats(0.01, 10))
def test_a_mix_of_one_is_that_one(latent, weight):
    assert mix_normal([latent], [weight]) is latent and mix_styles([latent], [weight]) is latent


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=4, unique=True), st.data())
def test_a_mix_in_z_has_the_mean_of_its_parts_lengths(seeds, data):
    weights = data.draw(st.lists(st.floats(0.05, 1), min_size=len(seeds), max_size=len(seeds)))
    z = latents_from_seeds(seeds, 32)
    mixed = mix_normal(list(z), weights)
    lengths = np.linalg.norm(z.astype(float), axis=1)
    assert mixed.dtype == np.float32
    assert np.linalg.norm(mixed.astype(float)) == pytest.approx(np.average(lengths, weights=weights), rel=1e-5)
    direction = np.average(z.astype(float), axis=0, weights=weights)
    cosine = (mixed * direction).sum() / np.linalg.norm(mixed) / np.linalg.norm(direction)
    assert cosine == pytest.approx(1, abs=1e-5)


def test_a_mix_in_w_is_the_weighted_mean():
    w = np.array([[1, 2], [3, 6]], np.float32)
    np.testing.assert_allclose(mix_styles(list(w), [3, 1]), [1.5, 3])
    np.testing.assert_allclose(mix_styles(list(w), [2, -1]), [-1, -2])


def test_parts_that_cancel_out_are_refused():
    z = latents_from_seeds([1], 8)[0]
    with pytest.raises(InvalidRequest, match="cancel") as error:
        mix_normal([z, -z], [1, 1])
    assert error.value.field == "mix"


def test_places_are_exact():
    assert places(3, 5, closed=False) == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5), (2, 0.0)]
    assert places(2, 4, closed=True) == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5)]
    for keys in range(2, 7):
        for frames in range(2, 40):
            there = places(keys, frames, closed=False)
            assert there[0] == (0, 0.0) and there[-1] == (keys - 1, 0.0)
            steps = np.diff([index + t for index, t in places(keys, frames, closed=True)])
            np.testing.assert_allclose(steps, keys / frames)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_path_meets_its_key_frames_bit_for_bit(method, closed, shape):
    keys = np.random.RandomState(3).randn(4, *shape, 16).astype(np.float32)
    frames = 12 if closed else 10
    for centre in (None, np.full(16, 0.25, np.float32)):
        way = path(keys, frames, method, closed=closed, centre=centre, level=centre is None)
        assert way.dtype == np.float32 and way.shape == (frames, *keys.shape[1:])
        np.testing.assert_array_equal(way[::3], keys)
        steps = np.abs(np.diff(np.concatenate([way, way[:1]]) if closed else way, axis=0)).reshape(
            len(way[1:]) + closed, -1
        )
        assert steps.max() < 3  # nothing jumps


@pytest.mark.parametrize("method", METHODS)
def test_a_key_frame_that_is_repeated_is_a_pause(method):
    z = latents_from_seeds([5, 5], 16)
    np.testing.assert_array_equal(path(z, 7, method), np.repeat(z[:1], 7, axis=0))


def test_a_layer_goes_its_own_way():
    keys = np.random.RandomState(1).randn(3, 2, 8).astype(np.float32)
    for method in METHODS:
        whole = path(keys, 9, method)
        for layer in range(2):
            np.testing.assert_array_equal(whole[:, layer], path(keys[:, layer], 9, method))


def test_a_straight_line_is_straight():
    keys = np.array([[0, 0], [4, 8], [0, 8]], np.float32)
    np.testing.assert_allclose(path(keys, 5, "linear"), [[0, 0], [2, 4], [4, 8], [2, 8], [0, 8]])


def test_an_arc_keeps_its_distance_and_its_pace():
    keys = np.array([[2, 0], [0, 4]], np.float32)
    way = path(keys, 5, "spherical").astype(float)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), [2, 2.5, 3, 3.5, 4], rtol=1e-6)
    np.testing.assert_allclose(np.degrees(np.arctan2(way[:, 1], way[:, 0])), [0, 22.5, 45, 67.5, 90], atol=1e-4)
    centre = np.array([1, 1], np.float32)
    around = path(keys + centre, 5, "spherical", centre=centre)
    np.testing.assert_allclose(around, way + 1, atol=1e-6)


def test_opposite_points_have_no_arc():
    z = latents_from_seeds([1], 8)
    with pytest.raises(InvalidRequest, match="key frames 0 and 1 are opposite"):
        path(np.concatenate([z, -z]), 3, "spherical")
    with_zero = np.concatenate([z, 0 * z])
    np.testing.assert_allclose(path(with_zero, 3, "spherical")[1], z[0] / 2, rtol=1e-6)


def test_a_curve_has_no_corners():
    keys = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    way = path(keys, 401, "cubic", closed=True).astype(float)
    pace = np.diff(np.concatenate([way, way[:1]]), axis=0)
    turns = np.abs(np.diff(pace, axis=0)).max()
    assert turns < 0.01 * np.abs(pace).max() * 4
    two = path(keys[:2], 5, "cubic")
    np.testing.assert_allclose(two, path(keys[:2], 5, "linear"), atol=1e-7)


def test_a_level_curve_keeps_the_typical_length():
    z = latents_from_seeds([1, 2, 3], 64)
    lengths = np.linalg.norm(z, axis=1)
    level = np.linalg.norm(path(z, 21, "cubic", level=True), axis=1)
    assert level.min() >= lengths.min() * 0.999 and level.max() <= lengths.max() * 1.001
    assert np.linalg.norm(path(z, 21, "cubic"), axis=1).min() < lengths.min() * 0.95
    assert math.isclose(level[10], lengths[1], rel_tol=1e-5)
