"""ProGAN: both players grow from 4 px on, each new octave being faded in.

Karras, Aila, Laine and Lehtinen, "Progressive Growing of GANs for Improved Quality, Stability, and Variation", 2017,
arXiv:1710.10196: growing, equalised learning rates, pixel norm, minibatch deviation; WGAN-GP with drift (recipe
`paper`), or the relativistic objective (`modern`). Written from the paper; the authors' code may not be used
commercially.

`level`, a buffer of both players, counts the octaves above the start: at 2.3, images of 3 octaves are drawn, of which
0.3 comes from the newest and 0.7 from the two below; real images are mixed likewise. `grow` moves it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.family import Batch, ExportSpec, Family, Losses
from training.layers import channel_plan, latent_to_image, octaves
from training.losses import two_player_loss, two_player_phases
from training.progressive import (
    GAIN,
    SLOPE,
    WHOLE,
    EqualConv2d,
    EqualLinear,
    LadderDiscriminator,
    PixelNorm,
    refuse_clipping,
    split_level,
)
from training.recipe import Recipe, RecipeError


class Block(nn.Module):
    """Two convolutions with leaky ReLU and pixel norm, [N, i, H, W] to [N, o, 2H, 2W]; `first`: one, same sides."""

    def __init__(self, inputs: int, outputs: int, recipe: Recipe, *, first: bool = False) -> None:
        super().__init__()
        convs = [EqualConv2d(outputs, outputs, 3, gain=GAIN)]
        if not first:
            convs.insert(0, EqualConv2d(inputs, outputs, 3, gain=GAIN, up=True, resample=recipe.resample))
        self.body = nn.Sequential(*(nn.Sequential(conv, nn.LeakyReLU(SLOPE), PixelNorm()) for conv in convs))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.body(x)
        return y


class Generator(nn.Module):
    """z [N, latent_dim] -> images [N, C, side, side], `level` saying the side; in inference mode [N, C, size, size] in
    [-1, 1], smaller ones being enlarged."""

    level: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.size = recipe.size
        self.start, self.octaves = octaves(recipe.size)
        plan = channel_plan(recipe.generator_width, self.octaves + 1, recipe.max_channels)
        self.norm = PixelNorm()
        self.dense = EqualLinear(recipe.latent_dim, plan[0] * self.start**2, gain=GAIN / 4)
        self.blocks = nn.ModuleList(
            Block(plan[max(i - 1, 0)], wide, recipe, first=i == 0) for i, wide in enumerate(plan)
        )
        self.to_colours = nn.ModuleList(EqualConv2d(wide, recipe.channels, 1, gain=0.25) for wide in plan)
        self.register_buffer("level", torch.tensor(self.octaves * WHOLE, device="cpu"))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        images = self.draw(z, *split_level(self.level))
        if self.training:
            return images
        return F.interpolate(images, size=(self.size, self.size)).clamp(-1, 1)

    def draw(self, z: Tensor, stage: int, share: float) -> Tensor:
        """Images [N, C, side, side] of `stage` octaves, the newest counting for `share`."""
        x = F.leaky_relu(self.dense(self.norm(z)), SLOPE).unflatten(1, (-1, self.start, self.start))
        x = self.norm(x.contiguous(memory_format=torch.channels_last))
        below = x
        for block in list(self.blocks)[: stage + 1]:
            below, x = x, block(x)
        images: Tensor = self.to_colours[stage](x)
        if share < 1:
            below = F.interpolate(self.to_colours[stage - 1](below), scale_factor=2.0)
            # Autocast keeps another set of operations in float32 on each kind of device.
            images = torch.lerp(below.float(), images.float(), share)
        return images


class Whole(nn.Module):
    """The last stage alone, the newest octave counting fully: z [N, latent_dim] to [N, C, size, size] in [-1, 1]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.generator.draw(z, self.generator.octaves, 1.0).clamp(-1, 1)


def nets(recipe: Recipe) -> nn.ModuleDict:
    """Both players in training mode, fully grown."""
    recipe.one_architecture_of("conv")
    refuse_clipping(recipe)
    if recipe.discriminator_kind != "ladder":
        raise RecipeError(f"discriminator_kind is {recipe.discriminator_kind!r}, progan grows a 'ladder'")
    if recipe.feature_weight:
        raise RecipeError(f"feature_weight is {recipe.feature_weight}, but VGG16 sees nothing in images of 4 px: use 0")
    return nn.ModuleDict({"generator": Generator(recipe), "discriminator": LadderDiscriminator(recipe, growing=True)})


def level_at(done: float, octaves: int, grow_until: float) -> float:
    """Octaves in use when the part `done` of the run is over, 0 to `octaves`; a fraction while one is faded in.

    Until `grow_until` there are turns of equal length: an octave stays, then the next one fades in. The last one stays
    for the rest of the run.
    """
    turns = 2 * octaves
    position = turns if done >= grow_until else done / grow_until * turns
    turn = min(int(position), turns)
    return turn / 2 if turn % 2 == 0 else turn // 2 + (position - turn)


def grow(nets: nn.ModuleDict, done: float, recipe: Recipe) -> None:
    """Bring both players to where they are when the part `done` of the run is over."""
    for net in nets.values():
        assert isinstance(net, Generator | LadderDiscriminator)
        net.level.fill_(round(level_at(done, net.octaves, recipe.grow_until) * WHOLE))


def as_shown(real: Tensor, halvings: int, share: float) -> Tensor:
    """Real images [N, C, S, S] at a stage: halved so often, the newest octave counting for `share`."""
    images = F.avg_pool2d(real, 2**halvings) if halvings else real
    if share < 1:
        images = torch.lerp(F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0), images, share)
    return images


def loss(phase: str, nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    """The two players' objectives at the stage that they are in."""
    generator = nets["generator"]
    assert isinstance(generator, Generator)
    stage, share = split_level(generator.level)
    real = as_shown(batch.real, generator.octaves - stage, share)
    losses = two_player_loss(phase, nets, replace(batch, real=real), recipe)
    return Losses(losses.terms, {**losses.stats, "level": generator.level / WHOLE})


def exports(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """One model of task `generate`: the last stage.

    Raises:
        RecipeError: the run has not grown so far.
    """
    generator = nets["generator"]
    assert isinstance(generator, Generator)
    stage, _ = split_level(generator.level)
    if stage < generator.octaves:
        side = generator.start * 2**stage
        raise RecipeError(f"the run has grown to {side} px of {recipe.size} px so far: go on with --resume first")
    return latent_to_image(nn.ModuleDict({"generator": Whole(generator)}), recipe, classes)


RECIPES = {
    "paper": Recipe(
        name="paper", size=64, latent_dim=512, generator_width=256, discriminator_width=256, max_channels=512,
        generator_norm="none", discriminator_kind="ladder", grow_until=0.6, objective="wasserstein_gp", gp_lambda=10.0,
        drift=1e-3, penalty_every=1, learning_rate=1e-3, decay_from=1.0, batch_size=16, total_kimg=12000,
        ema_kimg=11.0, ema_rampup=1.0, mirror=True,
        notes={
            "resolution": "64 px instead of 1024 px",
            "optimiser": "Adam goes on when an octave is added: its new weights have no history yet anyway",
            "batch": "of one size at all resolutions",
        },
    ),
    "modern": Recipe(
        size=64, latent_dim=64, generator_width=16, discriminator_width=16, max_channels=128, generator_norm="none",
        discriminator_kind="ladder", resample="bilinear", grow_until=0.5, objective="relativistic", r1_gamma=1.0,
        r2_gamma=1.0, learning_rate=4e-3, decay_from=0.6, batch_size=16, total_kimg=400, ema_kimg=10.0, mirror=True,
        precision="bf16",
    ),
}  # fmt: skip

FAMILY = Family(
    name="progan",
    paper="arXiv:1710.10196 Progressive Growing of GANs for Improved Quality, Stability, and Variation",
    recipes=RECIPES,
    nets=nets,
    phases=two_player_phases,
    loss=loss,
    exports=exports,
    grow=grow,
)
