"""Pix2Pix: an image for an image, learnt from pairs.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2016, arXiv:1611.07004 (recipe
`paper`). Recipe `modern`: a small U-Net without norm, so that every size and every tile comes out the same; a
discriminator with spectral norm and the hinge loss; and a perceptual term beside L1. The other recipes are `modern` for
one job each, with the damage made on line: `sketch` (drawing to colour), `grey` (colourization), `holes` (inpainting),
`weather` (rain and snow), `old` (scratches and fading), `night` (day to night). Written from the paper.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from training import translators
from training.family import ExportSpec, Family
from training.imagelayers import PatchDiscriminator, export_translate
from training.paired import paired_loss, paired_phases, refuse_penalties
from training.recipe import Recipe


def nets(recipe: Recipe) -> nn.ModuleDict:
    """Generator and discriminator in training mode."""
    translators.check(recipe, "pix2pix")
    refuse_penalties(recipe, "pix2pix", "r1_gamma")
    # Patches of 70 px as published, or of 34 px where images are small.
    halvings = 3 if recipe.size >= 128 else 2
    judge = PatchDiscriminator(recipe, translators.source_channels(recipe), halvings)
    return nn.ModuleDict({"generator": translators.Translator(recipe), "discriminator": judge})


def exports(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """One model of task `translate`, any size; with a mask where it fills holes."""
    return [export_translate(nets["generator"], recipe, mask=recipe.output in translators.FILLING)]


_MODERN = Recipe(
    architecture="unet",
    size=96,
    generator_width=24,
    discriminator_width=32,
    max_channels=96,
    downsamplings=3,
    residual_blocks=3,
    generator_norm="none",
    discriminator_norm="spectral",
    objective="hinge",
    pixel_weight=10.0,
    perceptual_weight=2.0,
    adversarial_weight=0.1,
    learning_rate=4e-4,
    discriminator_learning_rate=2e-4,
    beta1=0.5,
    beta2=0.99,
    decay_from=0.5,
    batch_size=16,
    total_kimg=150,
    ema_kimg=5.0,
    mirror=True,
    precision="bf16",
)

RECIPES = {
    "paper": Recipe(
        name="paper", architecture="unet", size=256, load_size=286, generator_width=64, discriminator_width=64,
        max_channels=512, downsamplings=8, residual_blocks=0, generator_norm="batch", discriminator_norm="batch",
        dropout=0.5, weight_std=0.02, objective="non_saturating", pixel_weight=100.0, learning_rate=2e-4, beta1=0.5,
        beta2=0.999, decay_from=0.5, batch_size=1, total_kimg=80, ema_kimg=0.0, mirror=True,
        notes={
            "noise": "the paper keeps dropout and batch statistics at test time; here a model is a function",
            "upsampling": "pixel shuffle instead of transposed convolution",
        },
    ),
    "modern": _MODERN,
    # Faces are 64 px; lines say little of the colours, so D's word counts for more.
    "sketch": replace(_MODERN, name="sketch", degradation="sketch", size=64, adversarial_weight=0.2, total_kimg=250),
    "grey": replace(_MODERN, name="grey", degradation="grey", output="chroma", shrink=2.5, adversarial_weight=0.2),
    "holes": replace(_MODERN, name="holes", degradation="holes", output="inpaint", shrink=2.0, adversarial_weight=0.2),
    "weather": replace(_MODERN, name="weather", degradation="weather", output="residual", shrink=2.0),
    "old": replace(_MODERN, name="old", degradation="old", output="residual", shrink=2.0),
    "night": replace(
        _MODERN, name="night", degradation="night", output="residual", shrink=2.0, total_kimg=40,
        notes={"data": "nights are made by a rule from days: no photographs of places by day and night were to be had"},
    ),
}  # fmt: skip

FAMILY = Family(
    name="pix2pix",
    paper="arXiv:1611.07004 Image-to-Image Translation with Conditional Adversarial Networks",
    recipes=RECIPES,
    nets=nets,
    phases=paired_phases,
    loss=paired_loss,
    exports=exports,
    pairing="paired",
)
