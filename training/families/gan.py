"""The vanilla GAN: two multilayer perceptrons.

Goodfellow et al., "Generative Adversarial Nets", 2014, arXiv:1406.2661. Written from the paper; the authors' code is
BSD-3-Clause.
"""

import torch
from torch import Tensor, nn

from training.family import Family
from training.layers import Maxout, MinibatchStddev, initialise, latent_to_image
from training.losses import two_player_loss, two_player_phases
from training.projected import watching_features
from training.recipe import Recipe


class Generator(nn.Module):
    """z [N, latent_dim] -> images [N, C, size, size] in [-1, 1].

    `mlp`: three hidden layers that double in width, batch norm, leaky ReLU. `paper`: two wide ReLU layers.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.shape = (recipe.channels, recipe.size, recipe.size)
        pixels = recipe.channels * recipe.size**2
        width = recipe.generator_width
        layers: list[nn.Module] = []
        if recipe.architecture == "paper":
            layers += [nn.Linear(recipe.latent_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
            previous = width
        else:
            previous = recipe.latent_dim
            for units in (width, 2 * width, 4 * width):
                normed = recipe.generator_norm == "batch"
                # Batch norm takes the mean away, and with it whatever a bias would add.
                layers.append(nn.Linear(previous, units, bias=not normed))
                layers += [nn.BatchNorm1d(units)] if normed else []
                layers.append(nn.LeakyReLU(0.2))
                previous = units
        self.body = nn.Sequential(*layers, nn.Linear(previous, pixels))
        initialise(self, recipe)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        pixels: Tensor = self.body(z)
        return torch.tanh(pixels).view(-1, *self.shape)


class Discriminator(nn.Module):
    """images [N, C, size, size] -> logits [N]. `paper`: two maxout layers of five pieces."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        pixels, width = recipe.channels * recipe.size**2, recipe.discriminator_width
        spread = bool(recipe.minibatch_stddev)
        if recipe.architecture == "paper":
            hidden: list[nn.Module] = [Maxout(pixels, width, 5), nn.Dropout(recipe.dropout), Maxout(width, width, 5)]
            previous = width
        else:
            hidden = [nn.Linear(pixels, 2 * width), nn.LeakyReLU(0.2), nn.Dropout(recipe.dropout)]
            hidden += [nn.Linear(2 * width, width), nn.LeakyReLU(0.2)]
            previous = width
        hidden += [nn.Dropout(recipe.dropout)] + ([MinibatchStddev()] if spread else [])
        self.body = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(previous + spread, 1))
        initialise(self, recipe)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        logits: Tensor = self.body(images)
        return logits.squeeze(1)


def nets(recipe: Recipe) -> nn.ModuleDict:
    """Both players in training mode."""
    recipe.one_architecture_of("mlp", "paper")
    return nn.ModuleDict(
        {"generator": Generator(recipe), "discriminator": watching_features(Discriminator(recipe), recipe)}
    )


RECIPES = {
    "paper": Recipe(
        name="paper",
        architecture="paper",
        size=28,
        channels=1,
        latent_dim=100,
        generator_width=1200,
        discriminator_width=240,
        generator_norm="none",
        minibatch_stddev=False,
        dropout=0.5,
        weight_std=0.05,
        objective="non_saturating",
        optimiser="sgd",
        learning_rate=0.1,
        beta1=0.5,
        batch_size=100,
        total_kimg=3000,
        ema_kimg=0.0,
        notes={
            "latent": "normal instead of uniform: the server's seed promise is for normal latents",
            "output": "tanh on [-1, 1] instead of a sigmoid on [0, 1]",
        },
    ),
    "modern": Recipe(
        architecture="mlp",
        size=28,
        channels=1,
        latent_dim=64,
        generator_width=256,
        discriminator_width=256,
        objective="non_saturating",
        # An MLP discriminator of this size overfits pixels quickly: a firm penalty keeps its slope usable.
        r1_gamma=0.3,
        learning_rate=4e-4,
        batch_size=64,
        total_kimg=4000,
        ema_kimg=20.0,
    ),
}

FAMILY = Family(
    name="gan",
    paper="arXiv:1406.2661 Generative Adversarial Nets",
    recipes=RECIPES,
    nets=nets,
    phases=two_player_phases,
    loss=two_player_loss,
    exports=latent_to_image,
)
