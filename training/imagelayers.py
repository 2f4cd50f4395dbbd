"""Building blocks of image-to-image nets, and their export."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from service.manifest import Task, TensorSpec, TranslateSpec, UpscaleSpec
from training.family import ExportSpec, GraphExport
from training.layers import from_pixels, initialise, to_pixels
from training.recipe import Recipe

Norm = Literal["batch", "instance", "none"]


def norm_of(kind: str, channels: int) -> nn.Module:
    """The normalisation of a recipe's `generator_norm` or `discriminator_norm`; none for `spectral`."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


class ResidualBlock(nn.Module):
    """x + norm(conv(act(norm(conv(x))))), [N, C, H, W] to the same.

    Without a norm the second convolution starts at a tenth of its usual size: deep nets then begin near the identity.
    """

    def __init__(self, channels: int, norm: str = "none", activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
        self.norms = nn.ModuleList(norm_of(norm, channels) for _ in range(2))
        self.activation = activation if activation is not None else nn.ReLU()
        if norm == "none":
            with torch.no_grad():
                self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.activation(self.norms[0](self.first(x)))
        result: Tensor = x + self.norms[1](self.second(y))
        return result


class Enlarge(nn.Module):
    """Images `scale` times larger by bicubic interpolation (Keys 1981, a = -0.5), [N, C, H, W] to [N, C, sH, sW].

    Written as a convolution with fixed kernels and a pixel shuffle: the same arithmetic at every place, so that a tile
    comes out as the same bits as the picture that it was cut from. Interpolation by coordinates does not promise that.
    """

    kernels: Tensor

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale
        offsets = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        taps = _keys((torch.arange(-2, 3, dtype=torch.float64) - offsets[:, None]).abs())  # [scale, 5]
        kernels = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale**2, 1, 5, 5)
        self.register_buffer("kernels", kernels.repeat(channels, 1, 1, 1).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
        phases = F.conv2d(padded, self.kernels.to(x.dtype), groups=self.channels)
        return F.pixel_shuffle(phases, self.scale)


def _keys(distance: Tensor) -> Tensor:
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


class PatchDiscriminator(nn.Module):
    """Judges patches, not images (Pix2Pix, arXiv:1611.07004): images [N, 3, H, W] to logits [N, 1, h, w].

    Args:
        recipe: `discriminator_width` channels at first, doubled by each halving up to `max_channels`.
        source_channels: channels of the input, which D then sees beside the image; 0 judges the image alone.
        halvings: strided convolutions; 3 see patches of 70 px, 2 of 34, 1 of 16.
    """

    def __init__(self, recipe: Recipe, source_channels: int = 0, halvings: int = 3) -> None:
        super().__init__()
        kind, self.conditional = recipe.discriminator_norm, source_channels > 0
        wrap = spectral_norm if kind == "spectral" else (lambda module: module)
        layers: list[nn.Module] = []
        channels = 3 + source_channels
        for level in range(halvings + 1):
            wider = min(recipe.discriminator_width * 2**level, recipe.max_channels)
            bias = level == 0 or kind in ("none", "spectral")
            stride = 2 if level < halvings else 1
            layers.append(wrap(nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=bias)))
            layers += [norm_of(kind, wider)] if level else []
            layers.append(nn.LeakyReLU(0.2))
            channels = wider
        layers.append(wrap(nn.Conv2d(channels, 1, 4, padding=1)))
        self.body = nn.Sequential(*layers)
        if kind != "spectral":
            initialise(self, recipe)

    def forward(self, images: Tensor, source: Tensor) -> Tensor:
        """See the class; `source` [N, C, H, W] is used where D is conditional."""
        logits: Tensor = self.body(torch.cat([images, source], dim=1) if self.conditional else images)
        return logits


class PixelsToPixels(nn.Module):
    """An image-to-image generator made ready for export: uint8 NHWC in (and a mask), uint8 NHWC out."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """image [N, H, W, 3] uint8, mask [N, H, W, 1] uint8 (128 and more: missing) -> [N, sH, sW, 3] uint8."""
        source = from_pixels(image)
        if mask is not None:
            missing = (mask.permute(0, 3, 1, 2) >= 128).to(source.dtype)
            # What the caller left under the mask must not matter: it is the same grey as in training.
            source = torch.cat([source * (1 - missing) + MISSING * missing, missing * 2 - 1], dim=1)
        return to_pixels(self.generator(source))


MISSING = 127 / 127.5 - 1
"""The value of a pixel that is not there: level 127, as the degradations write it."""


def export_upscale(generator: nn.Module, recipe: Recipe) -> ExportSpec:
    """One model of task `upscale`, any height and width."""
    image = TensorSpec(name="image", kind="image", dtype="uint8", shape=("batch", "height", "width", 3))
    sides = (f"{recipe.scale}*height", f"{recipe.scale}*width")
    upscaled = TensorSpec(name="upscaled", kind="image", dtype="uint8", shape=("batch", *sides, 3))
    graph = GraphExport(PixelsToPixels(generator), (image,), (upscaled,))
    return ExportSpec((Task.UPSCALE,), {"generator": graph}, upscale=UpscaleSpec(scale=recipe.scale, alpha="lanczos"))


def export_translate(generator: nn.Module, recipe: Recipe, *, mask: bool = False, suffix: str = "") -> ExportSpec:
    """One model of task `translate`, sides being multiples of 2 to the `recipe.downsamplings`; a mask is required."""
    image = TensorSpec(name="image", kind="image", dtype="uint8", shape=("batch", "height", "width", 3))
    hole = TensorSpec(name="mask", kind="mask", dtype="uint8", shape=("batch", "height", "width", 1))
    translated = TensorSpec(name="translated", kind="image", dtype="uint8", shape=("batch", "height", "width", 3))
    graph = GraphExport(PixelsToPixels(generator), (image, hole) if mask else (image,), (translated,))
    block = TranslateSpec(
        multiple=2**recipe.downsamplings, size=None, alpha="composite", mask="required" if mask else None
    )
    return ExportSpec((Task.TRANSLATE,), {"generator": graph}, translate=block, suffix=suffix)
