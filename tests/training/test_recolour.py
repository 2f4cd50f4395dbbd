"""Fitting a palette's colours: they come nearer to the data, shapes stay, and the result is a run like any other."""

import json

import numpy as np
import pytest
import torch
from tinytraining import shrunk, tiny_run

from training import checkpoint
from training.__main__ import main
from training.export import read_run
from training.families import FAMILIES
from training.recipe import RecipeError
from training.recolour import BATCH, recolour

PALETTE = shrunk("dcgan", palette=4, generator_norm="none")


def generator():
    torch.manual_seed(1)
    return FAMILIES["dcgan"].nets(PALETTE)["generator"].eval()


def brown(count=BATCH):
    """Images [count, 8, 8, 3] of browns, each a little different."""
    shade = np.random.default_rng(0).integers(-20, 20, (count, 1, 1, 1))
    return np.broadcast_to(np.array([120, 70, 40]) + shade, (count, 8, 8, 3)).astype(np.uint8)


@torch.no_grad()
def mean_colour(net):
    images = net(torch.randn(64, PALETTE.latent_dim, generator=torch.Generator().manual_seed(7)))
    return (images.mean(dim=(0, 2, 3)) + 1) * 127.5


def test_colours_come_nearer_and_nothing_else_moves():
    before = generator()
    after = recolour(before, PALETTE.latent_dim, brown(), steps=40)
    wanted = torch.tensor([120.0, 70.0, 40.0])
    assert (mean_colour(after) - wanted).norm() < 0.8 * (mean_colour(before) - wanted).norm()
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before.state_dict()[n])}
    assert moved and all(name.startswith(("to_image.shared", "to_image.colours")) for name in moved)
    assert not after.training and after.state_dict().keys() == before.state_dict().keys()


def test_a_stylegans_palette_is_fitted_from_its_w():
    recipe = shrunk("stylegan", palette=4, architecture="demod", mapping_layers=2)
    torch.manual_seed(1)
    before = FAMILIES["stylegan"].nets(recipe)["generator"].eval()
    after = recolour(before, recipe.latent_dim, brown(), steps=40)
    wanted = torch.tensor([120.0, 70.0, 40.0])
    assert (mean_colour(after) - wanted).norm() < 0.8 * (mean_colour(before) - wanted).norm()
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before.state_dict()[n])}
    assert moved and all(name.startswith(("synthesis.palette.shared", "synthesis.palette.colours")) for name in moved)


def test_equal_seeds_give_equal_colours():
    first, second = (recolour(generator(), PALETTE.latent_dim, brown(), steps=2, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_cannot_be_fitted_is_refused():
    plain = FAMILIES["dcgan"].nets(shrunk("dcgan"))["generator"]
    with pytest.raises(RecipeError, match="palette is 0"):
        recolour(plain, PALETTE.latent_dim, brown())
    with pytest.raises(RecipeError, match=f"images are 9, .* at least {BATCH}"):
        recolour(generator(), PALETTE.latent_dim, brown(9))
    with pytest.raises(RecipeError, match="steps is 0"):
        recolour(generator(), PALETTE.latent_dim, brown(), steps=0)


def test_the_command_makes_a_run_that_can_be_read(tmp_path, monkeypatch, capsys):
    from training import commands

    class Data:
        train = brown()

    monkeypatch.setattr(commands, "_data_of", lambda run, args: Data)
    run = tiny_run(tmp_path / "run", "dcgan", PALETTE)
    command = ["recolour", "--run", str(run), "--out", str(tmp_path / "out"), "--steps", "2", "--threads", "1"]
    assert main(command) == 0 and "step 2 of 2" in capsys.readouterr().out
    old, new = read_run(run), read_run(tmp_path / "out")
    shared = "to_image.shared"
    assert not torch.equal(new.nets["generator"].state_dict()[shared], old.nets["generator"].state_dict()[shared])
    assert new.images_seen == old.images_seen and new.seconds > old.seconds
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["recoloured"] == {"steps": 2}
    assert checkpoint.load(tmp_path / "out" / "last.pt")["recipe"] == PALETTE.to_json()
    assert main(command) == 1 and "already holds a run" in capsys.readouterr().err
