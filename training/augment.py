"""Differentiable augmentation for small data sets (DiffAugment, Zhao et al. 2020, arXiv:2006.10738).

The same random transforms are applied to reals and fakes on their way into D, and G's gradient flows through them, so
D cannot learn the training images by heart and G does not learn the transforms.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipe import RecipeError


def color(x: Tensor) -> Tensor:
    """Brightness +-0.5, saturation 0 to 2, contrast 0.5 to 1.5 per image. x [N, C, H, W] in [-1, 1]."""
    n = len(x)
    x = x + (torch.rand(n, 1, 1, 1, device=x.device) - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (torch.rand(n, 1, 1, 1, device=x.device) * 2)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (torch.rand(n, 1, 1, 1, device=x.device) + 0.5)


def translation(x: Tensor, ratio: float = 0.125) -> Tensor:
    """Shift each image by up to `ratio` of its side, zeros moving in."""
    n, _, h, w = x.shape
    dy, dx = int(h * ratio + 0.5), int(w * ratio + 0.5)
    ty = torch.randint(-dy, dy + 1, (n, 1, 1), device=x.device)
    tx = torch.randint(-dx, dx + 1, (n, 1, 1), device=x.device)
    rows = (torch.arange(h, device=x.device).view(1, h, 1) + ty + 1).clamp(0, h + 1)
    columns = (torch.arange(w, device=x.device).view(1, 1, w) + tx + 1).clamp(0, w + 1)
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    picked = padded[torch.arange(n, device=x.device).view(n, 1, 1), rows, columns]
    return picked.permute(0, 3, 1, 2)


def cutout(x: Tensor, ratio: float = 0.5) -> Tensor:
    """Zero a square of `ratio` times the side at a random place of each image."""
    n, _, h, w = x.shape
    cut_h, cut_w = int(h * ratio + 0.5), int(w * ratio + 0.5)
    cy = torch.randint(0, h + (1 - cut_h % 2), (n, 1, 1), device=x.device)
    cx = torch.randint(0, w + (1 - cut_w % 2), (n, 1, 1), device=x.device)
    ys = torch.arange(h, device=x.device).view(1, h, 1)
    xs = torch.arange(w, device=x.device).view(1, 1, w)
    inside = (ys >= cy - cut_h // 2) & (ys < cy - cut_h // 2 + cut_h) & (xs >= cx - cut_w // 2)
    inside = inside & (xs < cx - cut_w // 2 + cut_w)
    return x * (~inside).unsqueeze(1).to(x.dtype)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}


def augmentation(policy: str) -> Callable[[Tensor], Tensor]:
    """`"color,translation"` as one function of images [N, C, H, W]; "" is the identity.

    Raises:
        RecipeError: an unknown transform.
    """
    names = [name.strip() for name in policy.split(",") if name.strip()]
    for name in names:
        if name not in POLICIES:
            raise RecipeError(f"augment names {name!r}, must be of {', '.join(POLICIES)}")
    steps = [POLICIES[name] for name in names]

    def augment(images: Tensor) -> Tensor:
        for step in steps:
            images = step(images)
        return images

    return augment
