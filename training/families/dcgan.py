"""DCGAN: strided convolutions throughout.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", 2015, arXiv:1511.06434. Written from the paper; the authors' code is MIT.
"""

from torch import nn

from training.family import Family
from training.layers import ConvDiscriminator, ConvGenerator, latent_to_image
from training.losses import two_player_loss, two_player_phases
from training.projected import watching_features
from training.recipe import Recipe


def nets(recipe: Recipe) -> nn.ModuleDict:
    """Both players in training mode."""
    recipe.one_architecture_of("conv")
    return nn.ModuleDict(
        {"generator": ConvGenerator(recipe), "discriminator": watching_features(ConvDiscriminator(recipe), recipe)}
    )


RECIPES = {
    "paper": Recipe(
        name="paper",
        size=64,
        latent_dim=100,
        generator_width=64,
        discriminator_width=64,
        max_channels=1024,
        discriminator_norm="batch",
        minibatch_stddev=False,
        weight_std=0.02,
        objective="non_saturating",
        beta1=0.5,
        beta2=0.999,
        decay_from=1.0,
        batch_size=128,
        total_kimg=3000,
        ema_kimg=0.0,
        notes={"latent": "normal instead of uniform: the server's seed promise is for normal latents"},
    ),
    "modern": Recipe(
        size=32,
        latent_dim=64,
        # Small nets with many images seen beat large ones with few, at what two cores do in an hour or two.
        generator_width=32,
        discriminator_width=32,
        max_channels=256,
        residual_blocks=1,
        objective="relativistic",
        r1_gamma=0.1,
        r2_gamma=0.1,
        learning_rate=3e-4,
        # On a CPU an hour is only a few thousand batches of 64: four times as many steps are worth their lower rate.
        batch_size=16,
        total_kimg=1500,
        ema_kimg=20.0,
    ),
}

FAMILY = Family(
    name="dcgan",
    paper="arXiv:1511.06434 Unsupervised Representation Learning with Deep Convolutional GANs",
    recipes=RECIPES,
    nets=nets,
    phases=two_player_phases,
    loss=two_player_loss,
    exports=latent_to_image,
)
