"""A smooth filling of holes inside a net: what an inpainting generator's coarse part is taken from.

A net fills a hole with texture, but far from anything known its colours go astray; a smooth filling has the colours
right and no texture. `settled` takes each from where it is good.

Normalised convolution (Knutsson and Westin, 1993): a mean of the known pixels near by, weighted by a Gaussian, and
taken from ever narrower Gaussians where those still reach something known; then a few passes of heat flow, which joins
it to the border. All of it is convolutions with fixed kernels: the same arithmetic at every place, so a server may cut
a picture into tiles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVIATIONS = (24.0, 16.0, 8.0, 4.0, 2.0, 1.0)
"""Of the Gaussians, px; three times the first is how far a hole's middle may lie from anything known."""
ENOUGH = 0.05
"""Share of a Gaussian's weight on known pixels from which on its mean counts alone; the widest one's always does."""
PASSES = 8
"""Of heat flow."""
COARSE = 1.5
"""Deviation of the Gaussian that parts coarse from fine in `settled`, px. Of 24 training photographs the answers of
photo-holes@1 came closest so (LPIPS-HED 0.0165; 3 px 0.0169, 6 px 0.0173; the net alone 0.0187, the filling 0.0181)."""


class SmoothFill(nn.Module):
    """Images [N, 3, H, W] and where they are missing [N, 1, H, W], 1 or 0, to images [N, 3, H, W] without holes."""

    def __init__(self) -> None:
        super().__init__()
        for index, deviation in enumerate(DEVIATIONS):
            self.register_buffer(f"taps_{index}", _gaussian(deviation), persistent=False)
        self.register_buffer("coarse", _gaussian(COARSE), persistent=False)
        self.register_buffer("box", torch.full((3, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, images: Tensor, missing: Tensor) -> Tensor:
        """See the class."""
        seen = 1 - missing
        known = images * seen
        both = torch.cat([known, seen], dim=1)
        image: Tensor | None = None
        for index in range(len(DEVIATIONS)):
            blurred = _along_both(both, self.get_buffer(f"taps_{index}"))
            weight = blurred[:, 3:]
            mean = blurred[:, :3] / (weight + 1e-6)
            image = mean if image is None else image + (weight / ENOUGH).clamp(max=1.0) * (mean - image)
        assert image is not None
        filled = known + image * missing
        box = self.get_buffer("box").to(images.dtype)
        for _ in range(PASSES):
            around = F.conv2d(F.pad(filled, (1, 1, 1, 1), mode="replicate"), box, groups=3)
            filled = known + around * missing
        return filled

    def settled(self, images: Tensor, filled: Tensor, missing: Tensor) -> Tensor:
        """Images [N, 3, H, W] filled in with detail, their coarse part under the mask as in `filled`, of that shape."""
        return images + missing * _along_both(filled - images, self.get_buffer("coarse"))


def _gaussian(deviation: float) -> Tensor:
    """[K], of sum 1, three deviations to either side."""
    reach = round(3 * deviation)
    taps = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * deviation**2))
    return (taps / taps.sum()).float()


def _along_both(x: Tensor, taps: Tensor) -> Tensor:
    """[N, C, H, W] convolved with [K] along rows and columns; nothing lies beyond the border."""
    channels, reach = x.shape[1], len(taps) // 2
    kernel = taps.to(x.dtype).repeat(channels, 1, 1, 1)
    x = F.conv2d(x, kernel, padding=(0, reach), groups=channels)
    return F.conv2d(x, kernel.transpose(2, 3), padding=(reach, 0), groups=channels)
