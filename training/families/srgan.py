"""SRGAN: super-resolution by a residual net, first for PSNR, then with perceptual and adversarial losses.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network", 2016,
arXiv:1609.04802 (recipes `paper-psnr` and then `paper`). Recipes `modern` (L1 stage) and then `sharp` (perceptual and
adversarial stage, started from the first one's weights by `--start-from`): no batch norm, all work at low resolution
with one pixel shuffle at the end (ESPCN, arXiv:1609.05158), and bicubic interpolation as a bypass, so that the net
learns what interpolation lacks. Recipe `esrgan`: residual-in-residual dense blocks and a relativistic
discriminator (Wang et al., arXiv:1809.00219) on realistically degraded inputs (arXiv:2107.10833). `scale` is 2 or 4.
Written from the papers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from training.family import ExportSpec, Family
from training.imagelayers import Enlarge, PatchDiscriminator, ResidualBlock, export_upscale, norm_of
from training.layers import initialise
from training.paired import paired_loss, paired_phases, refuse_penalties
from training.recipe import Recipe, RecipeError


class DenseBlock(nn.Module):
    """Three dense blocks in a residual one (RRDB), [N, C, H, W] to the same; each of four 3x3 convolutions here."""

    def __init__(self, channels: int, growth: int, convolutions: int = 4) -> None:
        super().__init__()
        self.chains = nn.ModuleList()
        for _ in range(3):
            widths = [channels + growth * i for i in range(convolutions)]
            outs = [growth] * (convolutions - 1) + [channels]
            chain = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, outs, strict=True))
            with torch.no_grad():
                for parameter in chain.parameters():
                    parameter.mul_(0.1)
            self.chains.append(chain)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = x
        for chain in self.chains:
            seen = [y]
            *convs, last = chain.children()
            for conv in convs:
                seen.append(self.activation(conv(torch.cat(seen, dim=1))))
            y = y + 0.2 * last(torch.cat(seen, dim=1))
        return x + 0.2 * y


class Generator(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] to [N, 3, sH, sW], about in [-1, 1].

    `architecture` is `residual` (blocks of two convolutions), `rrdb`, or `paper` (batch norm, PReLU, 9x9 convolutions
    at both ends, a pixel shuffle per octave).
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width, paper = recipe.generator_width, recipe.architecture == "paper"
        edge = 9 if paper else 3
        self.head = nn.Conv2d(3, width, edge, padding=edge // 2)
        self.activation = nn.PReLU() if paper else nn.LeakyReLU(0.1)
        self.body = nn.Sequential(*(_block(recipe) for _ in range(recipe.residual_blocks)))
        self.fuse = nn.Conv2d(width, width, 3, padding=1)
        self.fuse_norm = norm_of(recipe.generator_norm, width)
        self.bypass = Enlarge(3, recipe.scale) if recipe.output == "residual" else None
        if paper:
            octaves = recipe.scale.bit_length() - 1
            ups = [
                nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
                for _ in range(octaves)
            ]
            self.to_image = nn.Sequential(*ups, nn.Conv2d(width, 3, edge, padding=edge // 2), nn.Tanh())
        else:
            last = nn.Conv2d(width, 3 * recipe.scale**2, 3, padding=1)
            with torch.no_grad():  # begins as the bypass alone, near enough
                last.weight.mul_(0.1)
                nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            self.to_image = nn.Sequential(last, nn.PixelShuffle(recipe.scale))
        initialise(self, recipe)

    def forward(self, source: Tensor) -> Tensor:
        """See the class."""
        x = self.activation(self.head(source))
        image: Tensor = self.to_image(x + self.fuse_norm(self.fuse(self.body(x))))
        return image if self.bypass is None else image + self.bypass(source)


def _block(recipe: Recipe) -> nn.Module:
    if recipe.architecture == "rrdb":
        return DenseBlock(recipe.generator_width, max(recipe.generator_width // 2, 1))
    activation = nn.PReLU() if recipe.architecture == "paper" else nn.LeakyReLU(0.1)
    return ResidualBlock(recipe.generator_width, recipe.generator_norm, activation)


class Discriminator(nn.Module):
    """The paper's: 3x3 convolutions, every second one strided, then two dense layers; [N, 3, size, size] to [N]."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        widths = [min(recipe.discriminator_width * 2**i, recipe.max_channels) for i in range(4)]
        plan = [(3, widths[0], 1), (widths[0], widths[0], 2)]
        for a, b in itertools.pairwise(widths):
            plan += [(a, b, 1), (b, b, 2)]
        layers: list[nn.Module] = []
        for index, (a, b, stride) in enumerate(plan):
            layers.append(nn.Conv2d(a, b, 3, stride=stride, padding=1))
            layers += [norm_of(recipe.discriminator_norm, b)] if index else []
            layers.append(nn.LeakyReLU(0.2))
        side = -(-recipe.size // 16)
        hidden = 16 * recipe.discriminator_width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side**2, hidden), nn.LeakyReLU(0.2))
        self.to_logit = nn.Linear(hidden, 1)
        initialise(self, recipe)

    def forward(self, images: Tensor, source: Tensor) -> Tensor:
        """See the class; the source is not looked at."""
        logits: Tensor = self.to_logit(self.body(images))
        return logits.squeeze(1)


def nets(recipe: Recipe) -> nn.ModuleDict:
    """Generator and discriminator in training mode; the PSNR stage does not use the latter."""
    recipe.one_architecture_of("residual", "rrdb", "paper")
    if recipe.scale not in (2, 4):
        raise RecipeError(f"scale is {recipe.scale}, srgan has 2 and 4")
    if recipe.channels != 3:
        raise RecipeError(f"channels is {recipe.channels}, srgan takes RGB: 3")
    refuse_penalties(recipe, "srgan", "r1_gamma")
    judge = Discriminator(recipe) if recipe.architecture == "paper" else PatchDiscriminator(recipe, halvings=2)
    return nn.ModuleDict({"generator": Generator(recipe), "discriminator": judge})


def exports(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """One model of task `upscale`, any size."""
    return [export_upscale(nets["generator"], recipe)]


_MODERN = Recipe(
    architecture="residual",
    size=96,
    scale=4,
    degradation="bicubic",
    downsamplings=0,
    shrink=2.0,
    mirror=True,
    output="residual",
    generator_width=32,
    residual_blocks=8,
    generator_norm="none",
    pixel_weight=1.0,
    adversarial_weight=0.0,
    # Larger than for adversarial training: a plain regression bears it, and the hour is short.
    learning_rate=1e-3,
    beta1=0.9,
    beta2=0.99,
    decay_from=0.3,
    decay_to=0.02,
    batch_size=16,
    total_kimg=300,
    ema_kimg=5.0,
    precision="bf16",
    objective="relativistic",
    discriminator_width=32,
    discriminator_norm="spectral",
    notes={"stage": "pixel loss alone; `sharp` goes on from its weights"},
)
_PAPER = Recipe(
    name="paper-psnr",
    architecture="paper",
    size=96,
    scale=4,
    degradation="bicubic",
    downsamplings=0,
    generator_width=64,
    residual_blocks=16,
    generator_norm="batch",
    pixel_loss="l2",
    pixel_weight=1.0,
    adversarial_weight=0.0,
    learning_rate=1e-4,
    beta1=0.9,
    beta2=0.999,
    decay_from=1.0,
    batch_size=16,
    total_kimg=16000,
    ema_kimg=0.0,
    objective="non_saturating",
    discriminator_width=64,
    max_channels=512,
    discriminator_norm="batch",
    notes={"features": "VGG16 fine-tuned for edges, blocks 1 to 3: no package with VGG19 was found"},
)

RECIPES = {
    "paper-psnr": _PAPER,
    "paper": replace(
        _PAPER, name="paper", total_kimg=3200, perceptual_weight=1.0, pixel_weight=0.0, adversarial_weight=1e-3,
        decay_from=0.5, decay_to=0.1,
    ),
    "modern": _MODERN,
    "sharp": replace(
        _MODERN, name="sharp", pixel_weight=0.5, perceptual_weight=0.5, adversarial_weight=0.01, learning_rate=2e-4,
        beta1=0.5, total_kimg=60, decay_from=0.5, decay_to=0.05,
        notes={"stage": "perceptual and adversarial, started from the weights of `modern`"},
    ),
    "esrgan": replace(
        _MODERN, name="esrgan", architecture="rrdb", residual_blocks=3, degradation="realistic", pixel_weight=0.5,
        perceptual_weight=0.5, adversarial_weight=0.01, learning_rate=2e-4, beta1=0.5, total_kimg=100,
        notes={
            "objective": "each fake is paired with its own real, not with the mean of all (arXiv:1807.00734)",
            "degradation": "one pass of blur, resizing, noise and JPEG, not two",
        },
    ),
}  # fmt: skip

FAMILY = Family(
    name="srgan",
    paper="arXiv:1609.04802 Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network",
    recipes=RECIPES,
    nets=nets,
    phases=paired_phases,
    loss=paired_loss,
    exports=exports,
    pairing="paired",
)
