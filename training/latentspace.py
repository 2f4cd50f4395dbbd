"""A trained generator's latent space, as evaluations and pictures walk through it: z, and w where there are styles."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from service.engine.latents import latents_from_seeds

Space = Literal["z", "w"]

BATCH = 64


class LatentSpace:
    """Points, ways between them and what they draw, in inference mode.

    Args:
        generator: in evaluation mode; maps (z [N, latent_dim], labels [N] or None) to images in [-1, 1]. One with
            `mapping`, `synthesis`, `style_layers` and `mean_w` (StyleGAN's) has w, too.
        latent_dim: D.
    """

    def __init__(self, generator: nn.Module, latent_dim: int) -> None:
        self._generator: Any = generator  # with parts that not every module has
        self._latent_dim = latent_dim
        self.spaces: tuple[Space, ...] = ("z", "w") if hasattr(generator, "mean_w") else ("z",)

    @torch.inference_mode()
    def points(self, seeds: Sequence[int], space: Space) -> Tensor:
        """What seeds mean, [N, D] float32: the server's z, mapped in w."""
        z = torch.from_numpy(latents_from_seeds(list(seeds), self._latent_dim))
        w: Tensor = self._generator.mapping(z) if space == "w" else z
        return w

    @torch.inference_mode()
    def draw(self, points: Tensor, space: Space, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] of points [N, D], truncated as a server does (z to 0, w to its mean)."""
        parts = []
        for start in range(0, len(points), BATCH):
            rows = slice(start, start + BATCH)
            parts.append(self._draw(points[rows], space, None if labels is None else labels[rows], truncation))
        return torch.cat(parts)

    def _draw(self, points: Tensor, space: Space, labels: Tensor | None, truncation: float) -> Tensor:
        generator = self._generator
        if self.spaces == ("z",):
            images: Tensor = generator(points * truncation, labels)
            return images
        w = generator.mapping(points) if space == "z" else points
        w = torch.lerp(generator.mean_w, w, truncation)
        images = generator.synthesis(w[:, None].expand(-1, generator.style_layers, -1))
        return images


def between(here: Tensor, there: Tensor, t: Tensor, space: Space) -> Tensor:
    """Points [N, D] at t [N] (0 to 1) of the ways from `here` to `there`, [N, D] each: arcs in z, lines in w.

    Arcs (Shoemake 1985) keep the length that normal latents have; w is made to be walked in straight lines.
    """
    part = t[:, None].to(here.dtype)
    if space == "w":
        return here + (there - here) * part
    lengths = here.norm(dim=1, keepdim=True), there.norm(dim=1, keepdim=True)
    one, two = here / lengths[0], there / lengths[1]
    angle = 2 * torch.atan2((one - two).norm(dim=1, keepdim=True), (one + two).norm(dim=1, keepdim=True))
    turned = (((1 - part) * angle).sin() * one + (part * angle).sin() * two) / angle.sin()
    points: Tensor = turned * torch.lerp(lengths[0], lengths[1], part)
    return points
