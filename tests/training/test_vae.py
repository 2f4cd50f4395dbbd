"""The VAE: its bound, what beta does, and that encoder, decoder and reconstruction belong together."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from tinytraining import shrunk, tiny_trainer

from service.engine.engine import Engine, EngineOptions
from service.manifest import Task
from service.package import read_package
from training.families import FAMILIES
from training.families.vae import Encoder
from training.family import Batch
from training.losses import OBJECTIVES, with_objective
from training.recipe import RecipeError

VAE = FAMILIES["vae"]


def losses(recipe, images, z=None, change=None):
    torch.manual_seed(0)
    nets = VAE.nets(recipe)
    if change is not None:
        change(nets["generator"])
    return VAE.loss("autoencode", nets, Batch(images, torch.zeros(len(images), 8) if z is None else z), recipe)


def fixed_posterior(mean, log_variance):
    def change(generator):
        for layer, value in ((generator.encoder.to_mean, mean), (generator.encoder.to_log_variance, log_variance)):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.constant_(layer.bias, value)

    return change


def test_divergence_from_the_prior_is_the_closed_form():
    recipe, images = shrunk("vae", beta=2.0), torch.rand(16, 3, 8, 8) * 2 - 1
    posterior = torch.distributions.Normal(0.7, float(np.exp(0.5 * -1.2)))
    expected = 8 * torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).item()
    found = losses(recipe, images, change=fixed_posterior(0.7, -1.2))
    assert found.stats["divergence_nats"].item() == pytest.approx(expected, rel=1e-4)
    assert found.terms["divergence"].item() == pytest.approx(2 * expected / (3 * 8 * 8), rel=1e-4)
    assert losses(recipe, images, change=fixed_posterior(0.0, 0.0)).terms["divergence"].item() == pytest.approx(0)


def test_the_gaussian_has_the_deviation_that_fits_best():
    """No other deviation gives a higher likelihood than the one implied."""
    images = torch.rand(64, 3, 8, 8) * 2 - 1
    found = losses(shrunk("vae", generator_norm="none"), images)
    error = 4 / 10 ** (found.stats["psnr"].item() / 10)
    implied = found.terms["reconstruction"].item() + 0.5 + 0.5 * np.log(2 * np.pi)
    others = [np.log(s) + 0.5 * error / s**2 + 0.5 * np.log(2 * np.pi) for s in np.linspace(0.05, 3, 2000)]
    assert implied == pytest.approx(min(others), abs=1e-3)


def test_bernoulli():
    images = torch.ones(4, 1, 8, 8)
    recipe = shrunk("vae", "paper")

    def certain(generator):
        torch.nn.init.constant_(generator.decoder.body[2].bias, 20.0)

    assert losses(recipe, images, change=certain).terms["reconstruction"].item() == pytest.approx(0, abs=1e-5)
    assert losses(recipe, -images, change=certain).terms["reconstruction"].item() > 10


def test_without_beta_it_is_an_autoencoder():
    recipe, images = shrunk("vae", beta=0.0), torch.rand(16, 3, 8, 8) * 2 - 1
    found = losses(recipe, images)
    assert set(found.terms) == {"reconstruction"}
    other = losses(recipe, images, z=torch.randn(16, 8))
    assert torch.equal(found.terms["reconstruction"], other.terms["reconstruction"])  # nothing is drawn
    drawn = losses(replace(recipe, beta=1.0), images, z=torch.randn(16, 8))
    assert not torch.equal(
        drawn.terms["reconstruction"], losses(replace(recipe, beta=1.0), images).terms["reconstruction"]
    )


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_it_learns_to_reconstruct(tmp_path, recipe):
    small = shrunk("vae", recipe, learning_rate=3e-3, decay_from=1.0, total_kimg=10.0, beta=0.1, latent_dim=16)
    trainer = tiny_trainer(tmp_path, "vae", small)
    rows = [trainer.step() for _ in range(80)]
    first, last = ([row["psnr"] for row in part] for part in (rows[:10], rows[-10:]))
    assert np.mean(last) > np.mean(first) + 0.2


def test_it_has_no_adversary():
    with pytest.raises(RecipeError, match="'elbo' for want of an adversary: 'hinge' would need one"):
        with_objective(shrunk("vae"), "hinge")
    with pytest.raises(RecipeError, match="a VAE has 'elbo'"):
        VAE.phases(replace(shrunk("vae"), objective="hinge"))
    with pytest.raises(RecipeError, match="objective is 'elbo', two players have"):
        FAMILIES["gan"].phases(replace(shrunk("gan"), objective="elbo"))
    assert "elbo" not in OBJECTIVES
    with pytest.raises(RecipeError, match="the encoder, which it is for, has none"):
        VAE.nets(replace(shrunk("vae"), discriminator_norm="batch"))


def test_the_variance_stays_within_reason():
    encoder = Encoder(shrunk("vae"))
    torch.nn.init.constant_(encoder.to_log_variance.bias, 1e6)
    assert encoder(torch.zeros(2, 3, 8, 8))[1].max() <= 4


@pytest.mark.slow
def test_reconstruction_is_decoding_what_was_encoded(exported):
    _, folder = exported("vae", "modern")
    manifest = read_package(folder)
    assert manifest.tasks == (Task.GENERATE, Task.TRANSLATE) and manifest.translate.size == (8, 8)

    def answer(graph, **feed):
        session = onnxruntime.InferenceSession(folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, feed)[0]

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    z = answer("encoder", image=images)
    assert z.shape == (5, 8)
    again = answer("reconstructor", image=images).astype(int)
    assert np.abs(again - answer("decoder", z=z).astype(int)).max() <= 1
    assert not (again[0] == again[1]).all()


@pytest.mark.slow
async def test_pictures_are_projected_by_the_encoder(exported):
    """A served VAE finds latents of pictures: its mean, decoded."""
    _, folder = exported("vae", "modern")
    models = folder.parent.parent
    picture = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    options = EngineOptions(models=models, providers=("cpu",), profile_s=0, poll_models_s=None)
    async with Engine(options) as engine:
        found = await engine.project(folder.parent.name, picture)
        drawn = await engine.generate(folder.parent.name, latents=found.latents)
        painted = await (await engine.translate(folder.parent.name, picture)).whole()
    assert (found.space, found.passes, found.latents.shape) == ("z", 1, (1, 8))
    np.testing.assert_array_equal(drawn.images[0], found.image)
    assert np.abs(found.image.astype(int) - painted).max() <= 1
