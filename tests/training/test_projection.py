"""Projection in training: an encoder that learns to look in passes, refinement by gradient, the way to the server."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tinytraining import facts_of, shrunk, tiny_images, tiny_run

from service.engine.engine import Engine, EngineOptions
from training import __main__ as cli
from training.datasets import DataError
from training.export import export_run, read_run
from training.families import FAMILIES
from training.layers import to_pixels
from training.projection import PassEncoder, encode, read_encoder, refine, space_of, train_encoder
from training.projectionruns import read_picture
from training.recipe import RecipeError


@pytest.fixture(scope="module")
def recipe():
    return shrunk("stylegan", "features", size=16)


@pytest.fixture(scope="module")
def generator(recipe):
    torch.manual_seed(0)
    return FAMILIES["stylegan"].nets(recipe)["generator"].eval().requires_grad_(False)


@pytest.fixture(scope="module")
def space(generator):
    return space_of(generator)


@pytest.fixture(scope="module")
def known(space):
    """Styles, and what they draw."""
    styles = space.styles(8, torch.Generator().manual_seed(5))
    return styles, space.draw(styles).detach().clamp(-1, 1)


def error(space, styles, target) -> float:
    return float((space.draw(styles).detach().clamp(-1, 1) - target).square().mean())


def test_space_draws_as_the_generator_does(space, generator):
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    styles = generator.mapping(z)[:, None].expand(-1, space.layers, -1)
    torch.testing.assert_close(space.draw(styles).clamp(-1, 1), generator(z))
    assert space.start(2).shape == (2, space.layers, 8)
    mixed = space.styles(16, torch.Generator().manual_seed(2))
    apart = (mixed != mixed[:, :1]).any(dim=2).any(dim=1)
    assert 2 <= int(apart.sum()) <= 14  # some of one seed, some of two


def test_an_encoder_begins_by_changing_nothing(recipe, space, known):
    encoder = PassEncoder(recipe, space.layers)
    assert torch.equal(encode(space, encoder, known[1]), space.start(8))


@pytest.mark.slow
def test_an_encoder_learns_and_is_a_function_of_its_seed(generator, recipe, space, known):
    real = to_pixels(known[1]).numpy()
    said = []
    encoder = train_encoder(generator, recipe, real, steps=120, batch=8, say=said.append)
    assert len(said) == 2 and "step 120 of 120" in said[-1]
    blind = error(space, space.start(8), known[1])
    looks = [error(space, encode(space, encoder, known[1], passes), known[1]) for passes in (1, 3)]
    assert looks[1] < looks[0] < blind * 0.8
    first, second = (train_encoder(generator, recipe, real, steps=2, batch=4, seed=3) for _ in range(2))
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_refinement_comes_nearer_and_keeps_the_best(space, known):
    target = known[1][:2]
    found = refine(space, target, space.start(2), steps=150)
    assert error(space, found, target) < 0.3 * error(space, space.start(2), target)
    still = refine(space, target, known[0][:2], steps=5, rate=10.0)
    assert error(space, still, target) < 1e-8  # steps too large leave what it began with


def test_only_stylegan_is_projected(recipe):
    for family in ("dcgan", "vae"):
        with pytest.raises(RecipeError, match="a VAE has an encoder of its own"):
            space_of(FAMILIES[family].nets(shrunk(family))["generator"])
    torch.manual_seed(0)
    net = FAMILIES["stylegan"].nets(recipe)["generator"]
    for arguments in ({"steps": 0}, {"batch": 1}):
        with pytest.raises(RecipeError, match="are needed"):
            train_encoder(net, recipe, tiny_images(recipe)[0], **arguments)


def test_pictures_are_read_as_a_model_draws(tmp_path):
    wide = np.zeros((10, 30, 4), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", 10, 3) == 255).all()
    assert read_picture(tmp_path / "a.png", 8, 1).shape == (8, 8, 1)
    (tmp_path / "b.png").write_bytes(b"no picture")
    for name in ("b.png", "c.png"):
        with pytest.raises(DataError, match="cannot be read"):
            read_picture(tmp_path / name, 8, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny StyleGAN run whose data set is a folder of pictures."""
    root = tmp_path_factory.mktemp("projected")
    recipe = shrunk("stylegan", "features")
    directory = tiny_run(root / "run", "stylegan", recipe)
    images, _ = tiny_images(recipe, count=40)
    (root / "pictures").mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image).save(root / "pictures" / f"{place}.png")
    facts = facts_of(recipe, "stylegan")
    (directory / "recipe.json").write_text(json.dumps(facts))
    return root


@pytest.mark.slow
async def test_from_a_run_to_the_server(run, capsys):
    directory = run / "run"
    project = ["project", "--run", str(directory), "--image", str(run / "pictures" / "3.png"), "--steps", "4"]
    assert cli.main([*project, "--out", str(run / "blind"), "--threads", "1"]) == 0
    assert "no encoder" in capsys.readouterr().out
    command = ["encoder", "--run", str(directory), "--data", str(run / "pictures"), "--steps", "3", "--batch", "4"]
    assert cli.main([*command, "--threads", "1"]) == 0
    assert "held-out images after 3 passes" in capsys.readouterr().out
    assert cli.main([*project, "--out", str(run / "seen"), "--threads", "1"]) == 0
    told = json.loads((run / "seen" / "projection.json").read_text())
    latents = np.load(run / "seen" / "latents.npy")
    trained = read_run(directory)
    (folder,) = export_run(trained, run / "models", "tiny-faces")
    assert (folder / "encoder.onnx").is_file()
    options = EngineOptions(models=run / "models", providers=("cpu",), profile_s=0, poll_models_s=None)
    async with Engine(options) as engine:
        assert engine.refused == {}
        assert engine.model("tiny-faces").encoder.passes_most > 1
        picture = np.asarray(Image.open(run / "pictures" / "3.png"))
        found = await engine.project("tiny-faces", picture, passes=2)
        assert found.latents.shape == latents.shape == (1, trained.nets["generator"].style_layers, 8)
        space = space_of(trained.nets["generator"])
        encoder = read_encoder(directory, trained.digest, trained.recipe, space.layers)
        target = torch.from_numpy(picture[None].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = encode(space, encoder, target, 2).numpy()
        np.testing.assert_allclose(found.latents, expected, atol=0.02)  # between passes pictures are rounded to levels
        assert 0 < told["psnr_db"] <= 99
    assert read_encoder(directory, "another", trained.recipe, space.layers) is None


@pytest.mark.slow
def test_a_wrong_run_is_one_line(tmp_path, capsys):
    assert cli.main(["encoder", "--run", str(tmp_path)]) == 1
    assert cli.main(["project", "--run", str(tmp_path), "--image", "a.png", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("no run there") == 2
