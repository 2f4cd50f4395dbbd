"""VAE: an encoder and a decoder that learn a likelihood's lower bound, for comparison with the GANs.

Kingma and Welling, "Auto-Encoding Variational Bayes", 2013, arXiv:1312.6114 (recipe `paper`: perceptrons, a Bernoulli
likelihood). Recipe `modern`: DCGAN's nets, its discriminator's body being the encoder; a Gaussian likelihood whose
deviation is the one that fits best (Rybkin et al., "Simple and Effective VAE Training with Calibrated Decoders", 2020,
arXiv:2006.13202), so that nothing has to be weighed by hand. `beta` weighs the divergence (beta-VAE, Higgins et al.
2017); with 0 it is the plain autoencoder: nothing is drawn, and latents are of no known distribution. Written from the
papers.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.manifest import GenerateSpec, Task, TensorSpec, TranslateSpec
from training.family import Batch, ExportSpec, Family, GraphExport, Losses, Phase
from training.layers import ConvDiscriminator, ConvGenerator, ToPixels, from_pixels, initialise, to_pixels
from training.recipe import Recipe, RecipeError

LEAST_ERROR = 1e-5
"""Squared error below which the fitted deviation does not fall: levels are 255 apart, so 8 bits say no more."""


class PerceptronDecoder(nn.Module):
    """z [N, latent_dim] to images [N, C, size, size] in [-1, 1], by one hidden layer."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.shape = (recipe.channels, recipe.size, recipe.size)
        pixels, width = math.prod(self.shape), recipe.generator_width
        self.body = nn.Sequential(nn.Linear(recipe.latent_dim, width), nn.Tanh(), nn.Linear(width, pixels))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        pixels: Tensor = self.body(z)
        return torch.tanh(pixels).view(-1, *self.shape)


class Encoder(nn.Module):
    """Images [N, C, size, size] in [-1, 1] to the posterior's mean and log variance, each [N, latent_dim].

    Without a `beta` there is no posterior: the mean is the code, and no variance is learnt.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        if recipe.architecture == "mlp":
            pixels, features = recipe.channels * recipe.size**2, recipe.discriminator_width
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, features), nn.Tanh())
        else:
            judge = ConvDiscriminator(recipe.replaced(minibatch_stddev=False))
            self.body = nn.Sequential(judge.body, judge.join, nn.Flatten())
            features = judge.to_logit.in_features
        self.to_mean = nn.Linear(features, recipe.latent_dim)
        self.to_log_variance = nn.Linear(features, recipe.latent_dim) if recipe.beta else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        x = self.body(images)
        # Within reason from the first step on: an exponential follows.
        spread = None if self.to_log_variance is None else self.to_log_variance(x).float().clamp(-12, 4)
        return self.to_mean(x).float(), spread


class Autoencoder(nn.Module):
    """Both nets as one, so that both are averaged; called, it decodes: z [N, latent_dim] to images [N, C, S, S]."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = Encoder(recipe)
        self.decoder = PerceptronDecoder(recipe) if recipe.architecture == "mlp" else ConvGenerator(recipe)
        initialise(self, recipe)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        images: Tensor = self.decoder(z)
        return images


def nets(recipe: Recipe) -> nn.ModuleDict:
    """The autoencoder in training mode."""
    recipe.one_architecture_of("conv", "mlp")
    if recipe.discriminator_norm == "batch":
        raise RecipeError("discriminator_norm is 'batch', but the encoder, which it is for, has none: use 'none'")
    return nn.ModuleDict({"generator": Autoencoder(recipe)})


def phases(recipe: Recipe) -> Sequence[Phase]:
    """Encoder and decoder at once."""
    if recipe.objective != "elbo":
        raise RecipeError(f"objective is {recipe.objective!r}, a VAE has 'elbo'")
    return [Phase("autoencode", ("generator",))]


def loss(phase: str, nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    """The negative lower bound in nats per pixel value; the batch's latents draw from the posterior."""
    generator = nets["generator"]
    assert isinstance(generator, Autoencoder)
    mean, log_variance = generator.encoder(batch.real)
    z = mean if log_variance is None else mean + (0.5 * log_variance).exp() * batch.z
    images = generator.decoder(z).float()
    error = F.mse_loss(images, batch.real)
    terms = {"reconstruction": _reconstruction(images, batch.real, error, recipe)}
    stats = {"psnr": 10 * (4 / error.detach().clamp(min=1e-9)).log10()}
    if log_variance is not None:
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        terms["divergence"] = recipe.beta * divergence / batch.real[0].numel()
        stats["divergence_nats"] = divergence.detach()
    return Losses(terms, stats)


def _reconstruction(images: Tensor, real: Tensor, error: Tensor, recipe: Recipe) -> Tensor:
    """-log p(real | images), a mean over all values."""
    if recipe.likelihood == "bernoulli":
        return F.binary_cross_entropy(((images + 1) / 2).clamp(1e-6, 1 - 1e-6), (real + 1) / 2)
    # With the deviation that fits best, sqrt(error), a Gaussian's log likelihood is log(error) / 2 and a constant.
    return 0.5 * (error + LEAST_ERROR).log()


class EncodePixels(nn.Module):
    """[N, H, W, C] uint8 to the posterior's mean [N, latent_dim]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        mean: Tensor = self.encoder(from_pixels(image))[0]
        return mean


class Reconstruct(nn.Module):
    """[N, H, W, C] uint8 to the same, through the latent."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.encode, self.decoder = EncodePixels(autoencoder.encoder), autoencoder.decoder

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        return to_pixels(self.decoder(self.encode(image)))


def exports(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """One model: `generate` decodes, `translate` reconstructs pictures brought to the model's size."""
    generator = nets["generator"]
    assert isinstance(generator, Autoencoder)
    shape = ("batch", recipe.size, recipe.size, recipe.channels)
    latent = TensorSpec(name="z", kind="latent", dtype="float32", shape=("batch", recipe.latent_dim))
    given, drawn, again = (
        TensorSpec(name=name, kind="image", dtype="uint8", shape=shape) for name in ("image", "image", "reconstruction")
    )
    graphs = {
        "encoder": GraphExport(EncodePixels(generator.encoder), (given,), (latent,)),
        "reconstructor": GraphExport(Reconstruct(generator), (given,), (again,)),
        "decoder": GraphExport(ToPixels(generator.decoder), (latent,), (drawn,)),
    }
    return [
        ExportSpec(
            (Task.GENERATE, Task.TRANSLATE), graphs, generate=GenerateSpec(latent_dim=recipe.latent_dim),
            translate=TranslateSpec(size=(recipe.size, recipe.size), alpha="composite"),
        )
    ]  # fmt: skip


RECIPES = {
    "paper": Recipe(
        name="paper", architecture="mlp", objective="elbo", likelihood="bernoulli", size=28, channels=1, latent_dim=20,
        generator_width=500, discriminator_width=500, generator_norm="none", weight_std=0.01, learning_rate=1e-3,
        beta1=0.9, beta2=0.999, decay_from=1.0, batch_size=100, total_kimg=6000, ema_kimg=0.0,
        notes={
            "optimiser": "Adam instead of Adagrad",
            "likelihood": "of grey levels, taken as probabilities",
            "output": "tanh, brought to [0, 1], instead of a sigmoid: the same function of half the input",
        },
    ),
    "modern": Recipe(
        objective="elbo", size=64, latent_dim=64, generator_width=24, discriminator_width=24, max_channels=192,
        residual_blocks=1, learning_rate=1e-3, beta1=0.9, beta2=0.99, decay_from=0.5, batch_size=32, total_kimg=600,
        ema_kimg=10.0, mirror=True, precision="bf16",
    ),
}  # fmt: skip

FAMILY = Family(
    name="vae",
    paper="arXiv:1312.6114 Auto-Encoding Variational Bayes",
    recipes=RECIPES,
    nets=nets,
    phases=phases,
    loss=loss,
    exports=exports,
)
