"""Parts of the line that began with ProGAN (arXiv:1710.10196): equalised layers, resampling, the discriminator."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.layers import MinibatchStddev, channel_plan, octaves
from training.recipe import Recipe, RecipeError

SLOPE = 0.2
"""Of every leaky ReLU here."""
GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""He's factor for that slope: layers scaled by it keep the variance of what passes (arXiv:1502.01852)."""
EPSILON = 1e-6
"""Keeps roots from zero. The ONNX exporter takes 1e-8 for zero and drops it: NaN where all is even."""
WHOLE = 1000
"""`level` buffers count octaves in thousandths: whole numbers follow into the moving average as they are."""


class EqualLinear(nn.Linear):
    """A linear layer, [N, i] to [N, o], with an equalised learning rate: weights from N(0, 1), scaled when used.

    Args:
        rate: what the layer learns at, as a multiple of the recipe's learning rate (StyleGAN's mapping: 0.01).
        bias: its first value.
        gain: factor on the output's deviation.
    """

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0, rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight, 0.0, 1 / rate)
        nn.init.constant_(self.bias, bias / rate)
        self.scale, self.rate = gain * rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps the sides, with an equalised learning rate, [N, i, H, W] to [N, o, H, W].

    With `up` it doubles the sides first, by `resample`: `nearest`, or `bilinear` (arXiv:1812.04948, section 2). The
    latter is a transposed convolution and a blur: two linear maps that commute, so the wide one runs at the low
    resolution and costs a quarter. Pixels land half an output pixel further up and left than in between; the
    convolutions learn around that.
    """

    def __init__(
        self, inputs: int, outputs: int, side: int, *, gain: float = 1.0, up: bool = False, resample: str = "nearest",
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, side, padding=side // 2, bias=bias)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.scale = gain / math.sqrt(inputs * side**2)
        self.up = up
        self.blur = Blur(outputs, gain=4.0) if up and resample == "bilinear" else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        weight = self.weight * self.scale
        if self.blur is not None:
            # Zeros between the pixels, then a kernel whose shares sum to 4: each pixel is spread over 2 x 2.
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2, padding=1, output_padding=1)
            x = self.blur(x)
            return x if self.bias is None else x + self.bias.view(1, -1, 1, 1).to(x.dtype)
        return F.conv2d(F.interpolate(x, scale_factor=2.0) if self.up else x, weight, self.bias, padding=self.padding)


class Blur(nn.Module):
    """[1, 2, 1] x [1, 2, 1] / 16 times `gain`, zeros outside; [N, C, H, W] to the same.

    After zeros were put between the pixels, with gain 4, it is bilinear interpolation.
    """

    kernel: Tensor

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (gain * taps[:, None] * taps).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.conv2d(x, self.kernel.to(x.dtype), padding=1, groups=len(self.kernel))


class Halve(nn.Module):
    """Half the sides: means of 2 x 2 (`nearest`), or of 4 x 4 weighted [1, 3, 3, 1] (`bilinear`); zeros outside."""

    kernel: Tensor

    def __init__(self, channels: int, resample: str) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8 if resample == "bilinear" else torch.tensor([0.5, 0.5])
        self.register_buffer("kernel", (taps[:, None] * taps).repeat(channels, 1, 1, 1), persistent=False)
        self.padding = len(taps) // 2 - 1

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.conv2d(x, self.kernel.to(x.dtype), stride=2, padding=self.padding, groups=len(self.kernel))


class PixelNorm(nn.Module):
    """Every place's features, or every row, to mean square 1 over the channels; [N, C, ...] to the same."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        mean: Tensor = x.float().square().mean(dim=1, keepdim=True)
        return x * (mean + EPSILON).rsqrt().to(x.dtype)


class LadderDiscriminator(nn.Module):
    """ProGAN's discriminator: two convolutions and a halving per octave; images [N, C, side, side] to logits [N].

    Args:
        recipe: `discriminator_width` channels at full size, doubled by each halving; `resample` says how to halve.
        growing: the ladder has a rung for every octave and `level` says which are in use: at 2.3 octaves above the
            start, images of 3 octaves come in, and those of 2 count for 0.7. Else images of full size come in.
    """

    level: Tensor

    def __init__(self, recipe: Recipe, growing: bool = False) -> None:
        super().__init__()
        self.start, self.octaves = octaves(recipe.size)
        plan = channel_plan(recipe.discriminator_width, self.octaves + 1, recipe.max_channels)
        self.rungs = nn.ModuleList(
            EqualConv2d(recipe.channels, wide, 1, gain=GAIN) for wide in (plan if growing else plan[-1:])
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                EqualConv2d(wide, wide, 3, gain=GAIN), nn.LeakyReLU(SLOPE),
                EqualConv2d(wide, low, 3, gain=GAIN), nn.LeakyReLU(SLOPE), Halve(low, recipe.resample),
            )
            for low, wide in itertools.pairwise(plan)
        )  # fmt: skip
        spread = bool(recipe.minibatch_stddev)
        self.spread = MinibatchStddev() if spread else nn.Identity()
        self.join = nn.Sequential(EqualConv2d(plan[0] + spread, plan[0], 3, gain=GAIN), nn.LeakyReLU(SLOPE))
        self.dense = nn.Sequential(EqualLinear(plan[0] * self.start**2, plan[0], gain=GAIN), nn.LeakyReLU(SLOPE))
        self.dropout = nn.Dropout(recipe.dropout)
        self.to_logit = EqualLinear(plan[0], 1)
        self.register_buffer("level", torch.tensor(self.octaves * WHOLE, device="cpu"))
        self.growing = growing

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        stage, share = split_level(self.level) if self.growing else (self.octaves, 1.0)
        x = F.leaky_relu(self.rungs[stage if self.growing else 0](images), SLOPE)
        for height in range(stage, 0, -1):
            x = self.blocks[height - 1](x)
            if height == stage and share < 1:
                low = F.leaky_relu(self.rungs[height - 1](F.avg_pool2d(images, 2)), SLOPE)
                x = torch.lerp(low.to(x.dtype), x, share)  # autocast may give the two different types
        x = self.dense(self.join(self.spread(x)).flatten(1))
        logits: Tensor = self.to_logit(self.dropout(x))
        return logits.squeeze(1)


def split_level(level: Tensor) -> tuple[int, float]:
    """A `level` buffer as the highest octave in use and its share: 2300 is (3, 0.3), 2000 is (2, 1.0)."""
    value = int(level)
    stage = -(-value // WHOLE)
    return stage, 1 - (stage * WHOLE - value) / WHOLE


def refuse_clipping(recipe: Recipe) -> None:
    """Refuse clipped weights: equalised ones have deviation 1, of which a clip to 0.01 leaves nothing.

    Raises:
        RecipeError: naming what to use instead.
    """
    if recipe.clip:
        raise RecipeError(f"clip is {recipe.clip}, which equalised weights do not bear: use objective wasserstein_gp")
