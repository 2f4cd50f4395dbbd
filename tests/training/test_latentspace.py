"""The latent space as evaluations walk through it: what the server would draw, and the length of ways."""

import math

import numpy as np
import pytest
import torch
from tinytraining import shrunk, tiny_run
from torch import nn

from service.engine.latents import latents_from_seeds
from training import perceptual
from training.evaluation.path_length import path_length
from training.export import read_run
from training.latentspace import LatentSpace, between
from training.layers import to_pixels
from training.pictures import TRUNCATIONS, samples_sheet


@pytest.fixture(scope="module", params=[("dcgan", "modern"), ("stylegan", "features"), ("cgan", "modern")])
def run(request, tmp_path_factory):
    family, recipe = request.param
    return read_run(tiny_run(tmp_path_factory.mktemp(family), family, shrunk(family, recipe)))


def space_of(run) -> LatentSpace:
    return LatentSpace(run.nets["generator"], run.recipe.latent_dim)


def test_seeds_draw_what_the_run_draws(run):
    latents = space_of(run)
    labels = np.array([0, 1, 2]) if run.recipe.classes else None
    wanted = run.sample([3, 4, 5], labels)
    assert latents.spaces == (("z", "w") if run.family.name == "stylegan" else ("z",))
    for space in latents.spaces:
        images = latents.draw(latents.points([3, 4, 5], space), space, None if labels is None else torch.tensor(labels))
        np.testing.assert_array_equal(to_pixels(images).numpy(), wanted)


def test_truncation_is_the_servers(run):
    latents, label = space_of(run), torch.zeros(2, dtype=torch.long) if run.recipe.classes else None
    for space in latents.spaces:
        # Pixels: the last digits of a product depend on how many rows there are.
        none = to_pixels(latents.draw(latents.points([1, 2], space), space, label, 0.0)).int()
        assert (none[0] - none[1]).abs().max() <= 1
    if latents.spaces == ("z",):
        half = latents.draw(latents.points([1, 2], "z"), "z", label, 0.5)
        z = torch.from_numpy(latents_from_seeds([1, 2], run.recipe.latent_dim)) * 0.5
        assert torch.allclose(half, run.nets["generator"](z, label), atol=1e-5)


def test_ways_begin_and_end_at_their_ends_and_arcs_keep_their_length():
    here, there = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = here / here.norm(dim=1, keepdim=True) * 8
    there = there / there.norm(dim=1, keepdim=True) * 8
    for space in ("z", "w"):
        torch.testing.assert_close(between(here, there, torch.zeros(5), space), here)
        torch.testing.assert_close(between(here, there, torch.ones(5), space), there)
    half = torch.full((5,), 0.5)
    torch.testing.assert_close(between(here, there, half, "z").norm(dim=1), here.norm(dim=1))
    torch.testing.assert_close(between(here, there, half, "w"), (here + there) / 2)


class Plane(nn.Module):
    """z [N, 48] as the image itself, and a mapping that doubles it: lengths are known."""

    style_layers = 1

    def __init__(self, styled: bool) -> None:
        super().__init__()
        if styled:
            self.register_buffer("mean_w", torch.zeros(48))

    def mapping(self, z):
        return 2 * z

    def synthesis(self, styles):
        return self(styles[:, 0])

    def forward(self, z, labels=None):
        return z.view(-1, 3, 4, 4)


@pytest.fixture
def squared(monkeypatch):
    """The squared distance of pixels in place of features."""
    monkeypatch.setattr(perceptual, "lpips_hed", lambda a, b: (a - b).double().square().sum(dim=(1, 2, 3)))


def test_the_path_length_of_a_plane_is_its_own(squared):
    # In w: the mean squared length of a way, between normal points of deviation 2 in 48 dimensions: 2 * 48 * 4.
    found = path_length(LatentSpace(Plane(styled=True), 48), "w", samples=400)
    assert found == pytest.approx(2 * 48 * 4, rel=0.03)
    # In z: an arc of about a right angle at a radius of about sqrt(48).
    found = path_length(LatentSpace(Plane(styled=False), 48), "z", samples=400)
    assert found == pytest.approx(48 * (math.pi / 2) ** 2, rel=0.05)


def test_an_uneven_space_has_longer_paths(squared):
    class Uneven(Plane):
        def forward(self, z, labels=None):
            # Everything happens within a small part of the way: as far in all, but at another speed.
            return (10 * z).tanh().view(-1, 3, 4, 4)

    class Even(Plane):
        def forward(self, z, labels=None):
            return (z / 2).tanh().view(-1, 3, 4, 4)

    even, uneven = (path_length(LatentSpace(kind(False), 48), "z", samples=100) for kind in (Even, Uneven))
    assert uneven > 3 * even


def test_labels_are_taken_in_turn_and_samples_checked(squared):
    seen = []

    class Labelled(Plane):
        def forward(self, z, labels=None):
            seen.append(labels.tolist())
            return super().forward(z)

    path_length(LatentSpace(Labelled(False), 48), "z", samples=5, classes=3)
    assert seen == [[0, 1, 2, 0, 1]] * 2
    with pytest.raises(ValueError, match="samples: want at least 2, got 1"):
        path_length(LatentSpace(Plane(False), 48), "z", samples=1)


def test_the_sheet_has_truncations_and_ways_below_the_seeds(run):
    latents, side = space_of(run), run.recipe.size
    sheet = samples_sheet(latents, run.recipe.classes)
    step = side + 2
    rows = run.recipe.classes or 8

    def tile(top: int, row: int, column: int) -> np.ndarray:
        y, x = top + 2 + row * step, 2 + column * step
        return sheet[y : y + side, x : x + side].astype(int)

    cuts = rows * step + 2 + 12
    ways = cuts + len(TRUNCATIONS) * step + 2 + 12
    assert sheet.shape[:2] == (ways + 3 * step + 2, 10 * step + 2)
    full = TRUNCATIONS.index(1.0)
    # Seed 0 (of class 0) stands in all three.
    assert np.abs(tile(0, 0, 0) - tile(cuts, full, 0)).max() <= 1
    assert np.abs(tile(0, 0, 0) - tile(ways, 0, 0)).max() <= 1
    if not run.recipe.classes:
        assert np.abs(tile(0, 0, 1) - tile(ways, 0, 9)).max() <= 1
        assert np.abs(tile(cuts, 0, 0) - tile(cuts, 0, 7)).max() <= 1  # truncation 0 is the mean image
