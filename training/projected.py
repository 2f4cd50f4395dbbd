"""Discriminators that look at frozen pretrained features instead of pixels (Projected GAN, arXiv:2111.01007).

A discriminator of pixels must first learn what edges and shapes are. VGG16 knows (training/perceptual.py: the network
behind the perceptual losses, and not the one that FD-lite0 and KID-lite0 are measured in, so no metric is trained on).
Small heads on its blocks 2 to 4 tell reals from fakes after a few thousand images. They stand beside the family's own
discriminator, which sees what features are blind to. Heads have spectral norm and the hinge loss, as the paper's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from training import perceptual
from training.layers import MinibatchStddev
from training.recipe import Recipe

READ = (1, 2, 3)
"""VGG blocks that have a head, from 0: the first one's features are edges, which a discriminator of pixels sees too."""
_WIDTH = 64


class FeatureHeads(nn.Module):
    """images [N, 1 or 3, H, W] in [-1, 1], H and W at least 16 -> logits [N, places], all heads' side by side.

    The pretrained network is no part of this module: it is neither trained nor saved.

    Raises (at the first call):
        FeaturesUnavailable: the pretrained weights are not prepared here.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [perceptual.WIDTHS[block] for block in READ]
        for index, width in enumerate(widths):
            # The paper's cross-channel mixing: fixed random projections keep a head from a few telling channels.
            self.register_buffer(f"mixing{index}", torch.randn(_WIDTH, width, 1, 1) / width**0.5)
        self.heads = nn.ModuleList(_head() for _ in widths)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        colour = images.expand(-1, 3, -1, -1)
        found = perceptual.load_vgg(READ[-1] + 1).to(colour.device)(colour, activated=False)
        logits = []
        for index, (block, head) in enumerate(zip(READ, self.heads, strict=True)):
            x = F.conv2d(_unit(found[block]), self.get_buffer(f"mixing{index}"))
            logits.append(head(x).flatten(1))
        return torch.cat(logits, dim=1)


def _head() -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)),
        nn.LeakyReLU(0.2),
        MinibatchStddev(),
        spectral_norm(nn.Conv2d(_WIDTH + 1, _WIDTH, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(_WIDTH, 1, 1)),
    )


def _unit(x: Tensor) -> Tensor:
    """[N, C, h, w] with a mean square of 1 over channels at each place: blocks differ in size a hundredfold."""
    return x / (x.float().square().mean(dim=1, keepdim=True).sqrt() + 1e-6)


def watching_features(discriminator: nn.Module, recipe: Recipe) -> nn.Module:
    """The discriminator, with heads on pretrained features as its `heads` where the recipe gives them a weight."""
    if recipe.feature_weight:
        discriminator.heads = FeatureHeads()
    return discriminator
