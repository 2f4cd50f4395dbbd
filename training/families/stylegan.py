"""StyleGAN: styles for every layer, from a learned mapping of the latent.

Karras, Laine and Aila, "A Style-Based Generator Architecture for Generative Adversarial Networks", 2018,
arXiv:1812.04948 (`architecture="adain"`): its five features are switches of the recipe, so that each can be measured:
`resample`, `mapping_layers` (mapping network and AdaIN styles), `constant_input`, `noise`, `style_mixing`. Karras et
al., "Analyzing and Improving the Image Quality of StyleGAN", 2019, arXiv:1912.04958 (`architecture="demod"`): styles
scale a convolution's inputs and its outputs are brought back to deviation 1 by what the weights say, not by what the
image holds; path-length regularisation. Directions: Shen and Zhou, "Closed-Form Factorization of Latent Semantics in
GANs", 2020, arXiv:2007.06600. Written from the papers; the authors' code may not be used commercially.

Exported as two graphs: `mapping` (z to w) and `synthesis` (w for each layer, and noise, to the image), so that a server
can work in z, w and w per layer, and decides on the noise.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.engine.latents import latents_from_seeds, noise_from_seeds
from service.manifest import GenerateSpec, Task, TensorSpec
from training.family import Batch, ExportSpec, Family, GraphExport, Losses, Phase
from training.layers import ConvDiscriminator, PaletteHead, channel_plan, octaves, to_pixels
from training.losses import two_player_loss, two_player_phases
from training.progressive import (
    EPSILON,
    GAIN,
    SLOPE,
    EqualConv2d,
    EqualLinear,
    LadderDiscriminator,
    PixelNorm,
    refuse_clipping,
)
from training.projected import watching_features
from training.recipe import Recipe, RecipeError

MEAN_W_KEEP = 0.995
"""How much of the tracked mean w an iteration keeps; the paper's."""
PATH_LENGTH_KEEP = 0.99
"""The same for the mean path length (StyleGAN2)."""
NOISE_RATE = 0.1
"""Of the noise's strength. Adam without momentum moves a number that has no clear gradient at random, by its rate: at
first that is grain and nothing else."""
COLOUR_GAIN = 0.25
"""Of colours: they begin within the range of images, not far beyond it, where D would have an easy game."""
PALETTE_RATE = 0.05
"""Of the palette head, whose weights are not equalised: 3e-4 of the modern recipe's 6e-3, as in a DCGAN."""
MEAN_W_SEEDS = range(2**31, 2**31 + 4096)
"""What the exported mean w is computed from: seeds that nobody asks for first."""
DIRECTIONS = 16
"""Directions that are stored, strongest first; later ones change what nobody sees."""


class Mapping(nn.Module):
    """z [N, D] to w [N, D]: z brought to mean square 1, then dense layers; without layers w is that z."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        layers: list[nn.Module] = [PixelNorm()]
        for _ in range(recipe.mapping_layers):
            dense = EqualLinear(recipe.latent_dim, recipe.latent_dim, gain=GAIN, rate=recipe.mapping_rate)
            layers += [dense, nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        w: Tensor = self.body(z)
        return w


class AdaptiveLayer(nn.Module):
    """StyleGAN's layer: convolution, noise, bias, activation, then AdaIN: each channel to deviation 1, then styled.

    x [N, i, H, W] and w [N, D] to [N, o, H, W], or [N, o, 2H, 2W] with `up`. Without styles PixelNorm stands for AdaIN.
    `inputs` 0 leaves the convolution out, for the layer that a constant feeds.
    """

    def __init__(self, recipe: Recipe, inputs: int, outputs: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = (
            EqualConv2d(inputs, outputs, 3, gain=GAIN, up=up, resample=recipe.resample, bias=False)
            if inputs else nn.Identity()
        )  # fmt: skip
        self.bias = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        self.strength = nn.Parameter(torch.zeros(1, outputs, 1, 1)) if recipe.noise else None
        self.style = EqualLinear(recipe.latent_dim, 2 * outputs) if recipe.mapping_layers else None
        self.norm = PixelNorm()

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """See the class; `noise` [N, 1, H', W'] at the output's size."""
        x = self.conv(x)
        if self.strength is not None and noise is not None:
            x = x + noise.to(x.dtype) * (NOISE_RATE * self.strength).to(x.dtype)
        x = F.leaky_relu(x + self.bias.to(x.dtype), SLOPE)
        if self.style is None:
            normed: Tensor = self.norm(x)
            return normed
        scale, shift = self.style(w).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        x = x - x.mean(dim=(2, 3), keepdim=True)
        deviation = (x.float().square().mean(dim=(2, 3), keepdim=True) + EPSILON).rsqrt().to(x.dtype)
        styled: Tensor = x * ((1 + scale) * deviation) + shift
        return styled


class DemodulatedLayer(nn.Module):
    """StyleGAN2's layer, its weight demodulation written as scaling of activations: no kernel depends on the image.

    x [N, i, H, W] and w [N, D] to [N, o, H, W], or [N, o, 2H, 2W] with `up`.
    """

    def __init__(self, recipe: Recipe, inputs: int, outputs: int, *, up: bool = False) -> None:
        super().__init__()
        self.style = EqualLinear(recipe.latent_dim, inputs, bias=1.0)
        self.conv = EqualConv2d(inputs, outputs, 3, up=up, resample=recipe.resample, bias=False)
        self.bias = nn.Parameter(torch.zeros(1, outputs, 1, 1))
        self.strength = nn.Parameter(torch.zeros(())) if recipe.noise else None

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """See the class; `noise` [N, 1, H', W'] at the output's size."""
        style = self.style(w).float()  # [N, i]
        x = self.conv(x * style.to(x.dtype)[:, :, None, None])
        power = (self.conv.weight * self.conv.scale).float().square().sum(dim=(2, 3))  # [o, i]
        # The activation's gain is taken here, where it costs nothing.
        demodulation = GAIN * (style.square() @ power.T + EPSILON).rsqrt()  # [N, o]
        x = torch.addcmul(self.bias.to(x.dtype), x, demodulation.to(x.dtype)[:, :, None, None])
        if self.strength is not None and noise is not None:
            x = x + noise.to(x.dtype) * (NOISE_RATE * self.strength).to(x.dtype)
        return F.leaky_relu(x, SLOPE)


class ToColours(nn.Module):
    """Features [N, i, H, W] to colours [N, C, H, W], styled by w [N, D] without demodulation."""

    def __init__(self, recipe: Recipe, inputs: int) -> None:
        super().__init__()
        self.style = EqualLinear(recipe.latent_dim, inputs, bias=1.0)
        self.conv = EqualConv2d(inputs, recipe.channels, 1, gain=COLOUR_GAIN)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """See the class."""
        colours: Tensor = self.conv(x * self.style(w).to(x.dtype)[:, :, None, None])
        return colours


class Synthesis(nn.Module):
    """w for each layer [N, layers, D] and noise [N, noise_dim] to images [N, C, size, size]; clipped to [-1, 1] in
    inference mode.

    `adain`: two layers an octave, colours at the end. `demod`: one layer at the lowest resolution and two an octave;
    colours are added up over the octaves, or mixed from a palette that the last layer's w draws.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.start, doublings = octaves(recipe.size)
        plan = channel_plan(recipe.generator_width, doublings + 1, recipe.max_channels)
        adain = recipe.architecture == "adain"
        kind = AdaptiveLayer if adain else DemodulatedLayer
        self.origin: nn.Parameter | EqualLinear
        if recipe.constant_input:
            # Not ones, as in the paper: AdaIN would blow the rounding errors of an even plane up.
            self.origin = nn.Parameter(torch.randn(1, plan[0], self.start, self.start))
        else:
            self.origin = EqualLinear(recipe.latent_dim, plan[0] * self.start**2, gain=GAIN / 4)
        layers = [kind(recipe, 0, plan[0])] if adain else []
        layers.append(kind(recipe, plan[0], plan[0]))
        for low, high in itertools.pairwise(plan):
            layers += [kind(recipe, low, high, up=True), kind(recipe, high, high)]
        self.layers = nn.ModuleList(layers)
        sides = [self.start * 2**octave for octave in range(doublings + 1) for _ in range(2)]
        self.sides = sides if adain else sides[1:]
        self.noise_dim = sum(side**2 for side in self.sides) if recipe.noise else 0
        self.palette = PaletteHead(plan[-1], recipe, PALETTE_RATE) if recipe.palette else None
        coloured = [] if recipe.palette else plan[-1:] if adain else plan
        self.to_colours = nn.ModuleList(
            EqualConv2d(wide, recipe.channels, 1, gain=COLOUR_GAIN) if adain else ToColours(recipe, wide)
            for wide in coloured
        )

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """See the class. Without `noise` it is drawn in training mode, and that of seed 0 in inference mode."""
        if self.noise_dim and noise is None:
            noise = self._noise(w)
        planes = [None] * len(self.sides) if noise is None else noise.split([side**2 for side in self.sides], dim=1)
        x, image = self._begin(w), None
        for index, (layer, side) in enumerate(zip(self.layers, self.sides, strict=True)):
            plane = planes[index]
            x = layer(x, w[:, index], None if plane is None else plane.view(-1, 1, side, side))
            last = index + 1 == len(self.sides) or self.sides[index + 1] > side
            if last and len(self.to_colours) > 1:
                colours = self.to_colours[index // 2](x, w[:, index])
                image = colours if image is None else colours + _twice(image)
        if self.palette is not None:
            image = self.palette(x, w[:, -1])
        elif len(self.to_colours) == 1:
            image = self.to_colours[0](x)
        assert image is not None  # there is at least one octave
        images: Tensor = image if self.training else image.clamp(-1, 1)
        return images

    def _begin(self, w: Tensor) -> Tensor:
        if isinstance(self.origin, nn.Parameter):
            x = self.origin.expand(len(w), -1, -1, -1)
        else:
            x = self.origin(w[:, 0]).unflatten(1, (-1, self.start, self.start))
        return x.contiguous(memory_format=torch.channels_last)  # several times as fast on CPUs

    def _noise(self, w: Tensor) -> Tensor:
        if self.training:
            return torch.randn(len(w), self.noise_dim, device=w.device)
        constant = noise_from_seeds([0], w.shape[2], self.noise_dim)
        return torch.from_numpy(constant).to(w.device).expand(len(w), -1)


def _twice(image: Tensor) -> Tensor:
    """Images [N, C, H, W] to [N, C, 2H, 2W]."""
    return F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """z [N, latent_dim] -> images [N, C, size, size]; in inference mode in [-1, 1] and with the noise of seed 0."""

    mean_w: Tensor
    mean_path_length: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.mapping, self.synthesis = Mapping(recipe), Synthesis(recipe)
        self.mixing = recipe.style_mixing
        self.register_buffer("mean_w", torch.zeros(recipe.latent_dim))
        self.register_buffer("mean_path_length", torch.zeros(()))

    @property
    def style_layers(self) -> int:
        """Layers that take w."""
        return len(self.synthesis.layers)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        images: Tensor = self.synthesis(self.styles(z))
        return images

    def plain(self, z: Tensor) -> Tensor:
        """See the class; in training mode, too, all layers of an image are styled by its own z."""
        images: Tensor = self.synthesis(self.mapping(z)[:, None].expand(-1, self.style_layers, -1))
        return images

    def styles(self, z: Tensor) -> Tensor:
        """w for each layer, [N, layers, D]: in training mode mixed, and w's mean is tracked."""
        w = self.mapping(z)
        styles: Tensor = w[:, None].expand(-1, self.style_layers, -1)
        if not self.training:
            return styles
        self.mean_w.lerp_(w.detach().float().mean(dim=0), 1 - MEAN_W_KEEP)
        if self.mixing:
            other = self.mapping(torch.randn_like(z))[:, None]
            cut = torch.randint(1, self.style_layers, (len(z), 1, 1), device=z.device)
            kept = torch.rand(len(z), 1, 1, device=z.device) >= self.mixing
            first = torch.arange(self.style_layers, device=z.device)[None, :, None] < cut
            styles = torch.where(first | kept, styles, other)
        return styles


def nets(recipe: Recipe) -> nn.ModuleDict:
    """Both players in training mode."""
    recipe.one_architecture_of("adain", "demod")
    refuse_clipping(recipe)
    if not recipe.mapping_layers:
        for name in ("constant_input", "style_mixing", "path_length_weight"):
            if getattr(recipe, name):
                raise RecipeError(
                    f"{name} is {getattr(recipe, name)}, but mapping_layers is 0: no styles to bring z in"
                )
        if recipe.architecture == "demod":
            raise RecipeError("mapping_layers is 0, which architecture 'demod' cannot do without: at least 1")
    if recipe.palette and recipe.architecture == "adain":
        raise RecipeError(f"palette is {recipe.palette}, which architecture 'adain' does not have: use 'demod'")
    judge: nn.Module = (
        LadderDiscriminator(recipe) if recipe.discriminator_kind == "ladder" else ConvDiscriminator(recipe)
    )
    return nn.ModuleDict({"generator": Generator(recipe), "discriminator": watching_features(judge, recipe)})


def phases(recipe: Recipe) -> Sequence[Phase]:
    """The two players' phases; path-length regularisation, lazily, adds its gradient to the generator's next step."""
    *before, generator = two_player_phases(recipe)
    if not recipe.path_length_weight:
        return [*before, generator]
    every = recipe.path_length_every
    return [*before, Phase("path_length", ("generator",), every=every, step=False, autocast=False), generator]


def loss(phase: str, nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    """The two players' objectives, and the path length's."""
    if phase != "path_length":
        return two_player_loss(phase, nets, batch, recipe)
    generator = nets["generator"]
    assert isinstance(generator, Generator)
    penalty, length = path_length_penalty(generator, batch.z[: max(len(batch.z) // 2, 1)])
    weight = recipe.path_length_weight * recipe.path_length_every
    return Losses({"path_length": weight * penalty}, {"path_length": length})


def path_length_penalty(generator: Generator, z: Tensor) -> tuple[Tensor, Tensor]:
    """StyleGAN2's (|J_w^T y| - a)^2, y a random image and `a` the tracked mean; and the mean length of this batch.

    The images' change with w then has one length everywhere and in every direction: a step in w looks like as large a
    step in the picture. z [N, D]; scalars.
    """
    styles = generator.styles(z)
    images = generator.synthesis(styles)
    # Divided by the side: lengths of different resolutions then compare.
    y = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * y).sum(), styles, create_graph=True)
    lengths = (gradient.square().sum(dim=2).mean(dim=1) + 1e-12).sqrt()
    mean = generator.mean_path_length
    mean.lerp_(lengths.detach().mean(), 1 - PATH_LENGTH_KEEP)
    return (lengths - mean).square().mean(), lengths.detach().mean()


class SynthesisGraph(nn.Module):
    """`Synthesis` made ready for export: w [N, layers, D] and noise [N, noise_dim] to [N, H, W, C] uint8."""

    def __init__(self, synthesis: Synthesis) -> None:
        super().__init__()
        self.synthesis = synthesis

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """See the class."""
        return to_pixels(self.synthesis(w, noise))


@torch.no_grad()
def directions(synthesis: Synthesis, count: int = DIRECTIONS) -> tuple[np.ndarray, np.ndarray]:
    """SeFa: directions in w that the style layers answer to most strongly, and how strongly.

    They are the eigenvectors of A^T A, A being all style weights [styles, D] one below the other.

    Returns:
        [count, D] float32 unit rows, strongest first, their largest component positive; [count] float32 eigenvalues.
    """
    weights = [
        module.style.weight * module.style.scale
        for module in synthesis.modules()
        if isinstance(module, AdaptiveLayer | DemodulatedLayer | ToColours) and module.style is not None
    ]
    if not weights:
        return np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
    stacked = torch.cat(weights).double().numpy()
    values, vectors = np.linalg.eigh(stacked.T @ stacked)
    found = vectors.T[::-1][:count]
    signs = np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])
    return (found * signs[:, None]).astype(np.float32), values[::-1][:count].astype(np.float32)


def exports(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """One model of task `generate` with two graphs, its mean w and its directions."""
    generator = nets["generator"]
    assert isinstance(generator, Generator)
    synthesis, wide = generator.synthesis, recipe.latent_dim

    def tensor(name: str, kind: str, dtype: str, *shape: int) -> TensorSpec:
        return TensorSpec.model_validate({"name": name, "kind": kind, "dtype": dtype, "shape": ("batch", *shape)})

    inputs = [tensor("styles", "latent", "float32", generator.style_layers, wide)]
    if synthesis.noise_dim:
        inputs.append(tensor("noise", "noise", "float32", synthesis.noise_dim))
    image = tensor("image", "image", "uint8", recipe.size, recipe.size, recipe.channels)
    z, w = (tensor(name, "latent", "float32", wide) for name in "zw")
    graphs = {
        "mapping": GraphExport(generator.mapping, (z,), (w,)),
        "synthesis": GraphExport(SynthesisGraph(synthesis), tuple(inputs), (image,)),
    }
    # Afresh rather than as tracked: exactly what the averaged weights make of latents.
    with torch.no_grad():
        mean = generator.mapping(torch.from_numpy(latents_from_seeds(MEAN_W_SEEDS, wide))).mean(dim=0)
    found, strengths = directions(synthesis)
    arrays = {"mean_w": mean.numpy()}
    if len(found):
        arrays |= {"directions": found, "direction_strengths": strengths}
    names = tuple(f"sefa_{number}" for number in range(1, len(found) + 1))
    generate = GenerateSpec(latent_dim=wide, labels=None, style_layers=generator.style_layers, directions=names)
    return [ExportSpec((Task.GENERATE,), graphs, generate=generate, arrays=arrays)]


_PAPER = Recipe(
    name="paper", architecture="adain", size=64, latent_dim=512, mapping_layers=8, constant_input=True, noise=True,
    style_mixing=0.9, resample="bilinear", discriminator_kind="ladder", generator_width=256, discriminator_width=256,
    max_channels=512, generator_norm="none", objective="non_saturating", r1_gamma=10.0, penalty_every=1,
    learning_rate=1e-3, decay_from=1.0, batch_size=64, total_kimg=25000, ema_kimg=10.0, ema_rampup=1.0, mirror=True,
    notes={
        "resolution": "64 px instead of 1024 px",
        "growing": "none: StyleGAN2 showed that it is not needed",
        "constant": "begins as random numbers instead of as ones, of which AdaIN makes nothing",
        "beginnings": "colours begin at a quarter of unit deviation, noise learns its strength at a tenth of the rate",
    },
)  # fmt: skip
_MODERN = Recipe(
    architecture="demod", size=64, latent_dim=64, mapping_layers=4, constant_input=True, noise=True, style_mixing=0.5,
    resample="bilinear", discriminator_kind="strided", generator_width=16, discriminator_width=32, max_channels=128,
    generator_norm="none", objective="relativistic", r1_gamma=0.5, r2_gamma=0.5, path_length_weight=1.0,
    # G's weights have deviation 1, D's about 0.05: at a sixth of this rate D had won within 3 kimg. The mapping, too,
    # has far fewer steps than in the paper.
    path_length_every=16, learning_rate=6e-3, mapping_rate=0.05, discriminator_learning_rate=2e-4, decay_from=0.5,
    batch_size=16, total_kimg=600, ema_kimg=10.0, mirror=True, precision="bf16",
)  # fmt: skip

RECIPES = {
    "paper": _PAPER,
    "paper2": replace(
        _PAPER, name="paper2", architecture="demod", path_length_weight=2.0, path_length_every=8, penalty_every=16,
        learning_rate=2e-3,
        notes={
            "resolution": "64 px instead of 1024 px",
            "discriminator": "StyleGAN's, without residual connections",
            "beginnings": _PAPER.notes["beginnings"],
        },
    ),
    "modern": _MODERN,
    # StyleGAN's first form with all five features, to switch them off one at a time.
    "features": replace(
        _MODERN, name="features", architecture="adain", discriminator_kind="ladder", size=32, discriminator_width=16,
        path_length_weight=0.0, style_mixing=0.9, learning_rate=4e-3, discriminator_learning_rate=4e-3,
    ),
}  # fmt: skip

FAMILY = Family(
    name="stylegan",
    paper="arXiv:1812.04948 A Style-Based Generator Architecture for Generative Adversarial Networks",
    recipes=RECIPES,
    nets=nets,
    phases=phases,
    loss=loss,
    exports=exports,
)
