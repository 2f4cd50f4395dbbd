"""Generators that map images to images of the same size: U-Net and ResNet, and what their last layer can mean.

Both take sides that are multiples of 2 to the `downsamplings`, and without instance norm nothing in them depends on the
picture as a whole: a server may cut it into tiles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.imagelayers import ResidualBlock, norm_of
from training.layers import initialise
from training.recipe import Recipe, RecipeError
from training.smooth_fill import SmoothFill

FILLING = ("fill", "inpaint")
"""Kinds of `output` whose input carries a mask."""
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Translator(nn.Module):
    """Sources [N, 3, H, W] in [-1, 1] (with `output` `fill` or `inpaint` [N, 4, H, W], the last 1 where pixels are
    missing, else -1) to images [N, 3, H, W].

    `architecture` is `unet` or `resnet`; `output` says what the body's answer is, see Recipe.
    """

    blur: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.output = recipe.output
        self.body = (UNet if recipe.architecture == "unet" else ResNet)(
            recipe, source_channels(recipe), 2 if recipe.output == "chroma" else 3
        )
        self.smooth = SmoothFill() if recipe.output == "inpaint" else None
        initialise(self, recipe)
        if recipe.output == "shade":
            # Binomial: of a pattern that comes again after four pixels, the coarsest that pixel shuffles make, a
            # sixteenth is left, and of finer ones nothing.
            taps = torch.tensor([1.0, 8.0, 28.0, 56.0, 70.0, 56.0, 28.0, 8.0, 1.0]) / 256
            self.register_buffer("blur", torch.outer(taps, taps).expand(3, 1, 9, 9).clone())
        if recipe.output in ("residual", "shade"):
            with torch.no_grad():  # begins near the identity
                for parameter in self.body.to_image.parameters():
                    parameter.mul_(0.1)

    def forward(self, source: Tensor) -> Tensor:
        """See the class."""
        answer: Tensor = self.body(source)
        if self.output == "image":
            return torch.tanh(answer)
        if self.output == "residual":
            return source + answer
        if self.output == "shade":
            return source + F.conv2d(answer, self.blur.to(answer.dtype), padding=4, groups=3)
        if self.output == "chroma":
            return coloured(source, torch.tanh(answer))
        missing = (source[:, 3:] + 1) / 2
        image = source[:, :3] * (1 - missing) + torch.tanh(answer) * missing
        if self.smooth is None:
            return image
        return self.smooth.settled(image, self.smooth(source[:, :3], missing), missing)


def source_channels(recipe: Recipe) -> int:
    """Channels of the input: RGB, and a mask where there is something to fill."""
    return 4 if recipe.output in FILLING else 3


def coloured(source: Tensor, chroma: Tensor) -> Tensor:
    """The luminance of `source` [N, 3, H, W] with blue and red differences `chroma` [N, 2, H, W], all in [-1, 1]."""
    red, green, blue = LUMA
    luma = red * source[:, :1] + green * source[:, 1:2] + blue * source[:, 2:3]
    cb, cr = chroma[:, :1] * (2 - 2 * blue), chroma[:, 1:] * (2 - 2 * red)
    return torch.cat([luma + cr, luma - (blue * cb + red * cr) / green, luma + cb], dim=1)


class UNet(nn.Module):
    """Halvings and doublings with a bypass at each resolution (arXiv:1505.04597, in Pix2Pix's form).

    `residual_blocks` blocks stand at the lowest resolution.
    """

    def __init__(self, recipe: Recipe, inputs: int, outputs: int) -> None:
        super().__init__()
        levels, norm = recipe.downsamplings, recipe.generator_norm
        if levels < 1:
            raise RecipeError("downsamplings is 0, a U-Net needs at least 1")
        widths = [min(recipe.generator_width * 2**i, recipe.max_channels) for i in range(levels + 1)]
        self.head = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1) for i in range(levels))
        # The lowest resolution may be a single pixel, which has no statistics.
        self.down_norms = nn.ModuleList(
            norm_of(norm if i < levels - 1 else "none", widths[i + 1]) for i in range(levels)
        )
        self.middle = nn.Sequential(*(ResidualBlock(widths[-1]) for _ in range(recipe.residual_blocks)))
        # Single-pixel kernels: the convolution that joins the bypass mixes neighbours, at a ninth of the price.
        self.ups = nn.ModuleList(nn.Conv2d(widths[i + 1], 4 * widths[i], 1) for i in reversed(range(levels)))
        self.joins = nn.ModuleList(nn.Conv2d(2 * widths[i], widths[i], 3, padding=1) for i in reversed(range(levels)))
        self.join_norms = nn.ModuleList(norm_of(norm, widths[i]) for i in reversed(range(levels)))
        self.dropouts = nn.ModuleList(nn.Dropout2d(recipe.dropout if i < 3 else 0.0) for i in range(levels))
        self.to_image = nn.Conv2d(widths[0], outputs, 3, padding=1)

    def forward(self, source: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W], without bounds."""
        x = F.leaky_relu(self.head(source), 0.2)
        seen = []
        for down, norm in zip(self.downs, self.down_norms, strict=True):
            seen.append(x)
            x = F.leaky_relu(norm(down(x)), 0.2)
        x = self.middle(x)
        for up, join, norm, dropout in zip(self.ups, self.joins, self.join_norms, self.dropouts, strict=True):
            x = F.relu(F.pixel_shuffle(up(x), 2))
            x = F.relu(dropout(norm(join(torch.cat([x, seen.pop()], dim=1)))))
        image: Tensor = self.to_image(x)
        return image


class ResNet(nn.Module):
    """Halvings, residual blocks, doublings (Johnson et al., arXiv:1603.08155, as in CycleGAN)."""

    def __init__(self, recipe: Recipe, inputs: int, outputs: int) -> None:
        super().__init__()
        levels, norm = recipe.downsamplings, recipe.generator_norm
        widths = [min(recipe.generator_width * 2**i, recipe.max_channels) for i in range(levels + 1)]
        self.head = nn.Conv2d(inputs, widths[0], 7, padding=3)
        self.head_norm = norm_of(norm, widths[0])
        self.downs = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1) for i in range(levels))
        self.down_norms = nn.ModuleList(norm_of(norm, widths[i + 1]) for i in range(levels))
        self.middle = nn.Sequential(*(ResidualBlock(widths[-1], norm) for _ in range(recipe.residual_blocks)))
        # A pixel shuffle has no checkerboard of its own, unlike the transposed convolution of the paper.
        self.ups = nn.ModuleList(nn.Conv2d(widths[i + 1], 4 * widths[i], 3, padding=1) for i in reversed(range(levels)))
        self.up_norms = nn.ModuleList(norm_of(norm, widths[i]) for i in reversed(range(levels)))
        self.to_image = nn.Conv2d(widths[0], outputs, 7, padding=3)

    def forward(self, source: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W], without bounds."""
        x = F.relu(self.head_norm(self.head(source)))
        for down, norm in zip(self.downs, self.down_norms, strict=True):
            x = F.relu(norm(down(x)))
        x = self.middle(x)
        for up, norm in zip(self.ups, self.up_norms, strict=True):
            x = F.relu(norm(F.pixel_shuffle(up(x), 2)))
        image: Tensor = self.to_image(x)
        return image


def check(recipe: Recipe, name: str) -> None:
    """Refuse what a family of translators cannot build.

    Raises:
        RecipeError: naming the field and what would be right.
    """
    recipe.one_architecture_of("unet", "resnet")
    if recipe.channels != 3:
        raise RecipeError(f"channels is {recipe.channels}, {name} takes RGB: 3")
    if recipe.scale != 1:
        raise RecipeError(f"scale is {recipe.scale}, {name} keeps sizes: 1; srgan enlarges")
    if recipe.size % 2**recipe.downsamplings:
        raise RecipeError(f"size is {recipe.size}, must be a multiple of {2**recipe.downsamplings} (downsamplings)")
    if recipe.degradation.startswith("holes") != (recipe.output in FILLING):
        raise RecipeError(
            f"output is {recipe.output!r} with degradation {recipe.degradation!r}: holes go with 'fill' or 'inpaint'"
        )
