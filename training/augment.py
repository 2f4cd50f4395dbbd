"""Differentiable augmentation for small data sets.

`color`, `translation` and `cutout` are DiffAugment's (Zhao et al. 2020, arXiv:2006.10738) and always happen; `ada` is
adaptive (Karras et al. 2020, arXiv:2006.06676) and happens as often as D's certainty asks for. The same random
transforms are applied to reals and fakes on their way into D, and G's gradient flows through them, so that D cannot
learn the training images by heart and G does not learn the transforms. Written from the papers.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipe import RecipeError


def color(x: Tensor) -> Tensor:
    """Brightness +-0.5, saturation 0 to 2, contrast 0.5 to 1.5 per image. x [N, C, H, W] in [-1, 1].

    Several images on top of each other, as a pyramid's discriminator sees them, have each its own grey.
    """
    n, channels = x.shape[:2]
    x = x + (torch.rand(n, 1, 1, 1, device=x.device) - 0.5)
    colours = 1 if channels % 3 else 3
    grey = x.unflatten(1, (-1, colours)).mean(dim=2).repeat_interleave(colours, dim=1)
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


TARGET, CAP = 0.6, 0.8
"""What D's certainty is held at, and the highest probability: beyond it, augmentations begin to show in samples."""
OBSERVED = 4
"""Iterations between two adjustments."""


class Adaptive:
    """Adaptive discriminator augmentation (ADA, Karras et al. 2020, arXiv:2006.06676), images [N, C, H, W] to the same.

    Each transform happens to each image with probability `p`, which rises while D is too certain of real images: flips,
    turns by right angles, whole shifts, scaling, any turn, stretching, shifts; brightness, contrast, inverted
    brightness, hue, saturation. What moves in from outside is mirrored. D never learns the transforms as part of what
    is real as long as some images come without them, which is what `CAP` is for.

    Args:
        kimg: thousand images in which p could go from 0 to 1.
        target: certainty that p steers for, the mean sign of D's logits of reals (of differences to fakes, where
            the objective compares pairs).
    """

    def __init__(self, kimg: float = 500.0, target: float = TARGET) -> None:
        self.kimg, self.target = kimg, target
        self.p = 0.0
        self._seen: list[float] = []

    def __call__(self, images: Tensor) -> Tensor:
        """See the class."""
        if not self.p:
            return images
        with torch.autocast(images.device.type, enabled=False):  # places must be exact
            return _recoloured(_moved(images, self.p), self.p)

    def observe(self, certainty: float, images: int) -> None:
        """Told D's certainty, -1 to 1, of one iteration's `images` reals; adjusts p every OBSERVED iterations."""
        self._seen.append(certainty)
        if len(self._seen) == OBSERVED:
            mean, self._seen = sum(self._seen) / OBSERVED, []
            step = OBSERVED * images / (self.kimg * 1000)
            self.p = min(max(self.p + (step if mean > self.target else -step), 0.0), CAP)

    def state(self) -> dict[str, float | list[float]]:
        """For a checkpoint: a resumed run must not begin at p = 0 again."""
        return {"p": self.p, "seen": list(self._seen)}

    def restore(self, state: dict[str, float | list[float]]) -> None:
        """Go on from `state`."""
        p, seen = state["p"], state["seen"]
        assert isinstance(p, float) and isinstance(seen, list)
        self.p, self._seen = p, list(seen)


def _moved(images: Tensor, p: float) -> Tensor:
    """The geometric transforms at probability p, as one resampling; where none happens the image is left as it is."""
    n, device = len(images), images.device

    def happens(probability: float = p) -> Tensor:
        return torch.rand(n, device=device) < probability

    def normal(deviation: float) -> Tensor:
        return torch.randn(n, device=device) * deviation

    zero, one = torch.zeros(n, device=device), torch.ones(n, device=device)
    flip = torch.where(happens() & (torch.rand(n, device=device) < 0.5), -one, one)
    matrix = _affine(flip, zero, zero, one)
    quarter = torch.where(happens(), torch.randint(0, 4, (n,), device=device).float(), zero)
    matrix = matrix @ _turn(quarter * (math.pi / 2))
    # Shifts in units of half a side. Whole pixels first: they are exact.
    side = images.shape[-1]
    whole = [((torch.rand(n, device=device) * 2 - 1) * side / 8).round() * (2 / side) for _ in range(2)]
    moved = happens()
    matrix = matrix @ _affine(
        one, zero, zero, one, torch.where(moved, whole[0], zero), torch.where(moved, whole[1], zero)
    )
    scale = torch.where(happens(), torch.exp2(normal(0.2)), one)
    matrix = matrix @ _affine(scale, zero, zero, scale)
    # Two turns, before and after the stretching, that together happen with probability p.
    turned = 1 - (1 - p) ** 0.5
    angles = [torch.where(happens(turned), (torch.rand(n, device=device) * 2 - 1) * math.pi, zero) for _ in range(2)]
    stretch = torch.where(happens(), torch.exp2(normal(0.2)), one)
    matrix = matrix @ _turn(angles[0]) @ _affine(stretch, zero, zero, 1 / stretch) @ _turn(angles[1])
    moved = happens()
    matrix = matrix @ _affine(
        one, zero, zero, one, torch.where(moved, normal(0.25), zero), torch.where(moved, normal(0.25), zero)
    )
    untouched = torch.isclose(matrix, torch.eye(3, device=device), atol=1e-6).all(dim=2).all(dim=1)
    grid = F.affine_grid(matrix[:, :2], list(images.shape), align_corners=False)
    resampled = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return torch.where(untouched[:, None, None, None], images, resampled.to(images.dtype))


def _affine(a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """Matrices [N, 3, 3] of ((a, b, x), (c, d, y), (0, 0, 1)), from [N] each."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    rows = [a, b, zero if x is None else x, c, d, zero if y is None else y, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _turn(angle: Tensor) -> Tensor:
    """Turns by [N] radians, as matrices [N, 3, 3]."""
    return _affine(angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _recoloured(images: Tensor, p: float) -> Tensor:
    """The colour transforms at probability p, as one affine map of RGB for each image; of grey ones the first three."""
    n, device = len(images), images.device
    colours = 3 if images.shape[1] % 3 == 0 else 1

    def pick(value: Tensor, otherwise: float) -> Tensor:
        return torch.where(torch.rand(n, device=device) < p, value, torch.full_like(value, otherwise))[:, None, None]

    grey = torch.full((3, 3), 1 / 3, device=device)  # onto the axis of greys
    eye = torch.eye(3, device=device)
    shift = pick(torch.randn(n, device=device) * 0.2, 0.0).expand(n, colours, 1)
    contrast = pick(torch.exp2(torch.randn(n, device=device) * 0.5), 1.0)
    # Mirrored at the plane of equal brightness: light becomes dark, colours stay.
    inverted = pick((torch.rand(n, device=device) < 0.5).float(), 0.0)
    if colours == 1:
        factor = contrast * (1 - 2 * inverted)
        return images * factor[..., None].to(images.dtype) + (shift * factor)[..., None].to(images.dtype)
    matrix = contrast * (eye - 2 * inverted * grey)
    angle = pick((torch.rand(n, device=device) * 2 - 1) * math.pi, 0.0)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / 3**0.5
    # Rodrigues: a turn about the axis of greys.
    matrix = matrix @ (grey + angle.cos() * (eye - grey) + angle.sin() * across)
    saturation = pick(torch.exp2(torch.randn(n, device=device)), 1.0)
    matrix = matrix @ (grey + saturation * (eye - grey))
    pixels = images.float().reshape(n, -1, 3, images.shape[2] * images.shape[3])
    pixels = matrix[:, None] @ (pixels + shift[:, None])
    return pixels.view_as(images).to(images.dtype)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}
ADAPTIVE = "ada"


class Augmentation:
    """A policy's transforms in turn, images [N, C, H, W] to the same. `adaptive`: the one that follows D, or None."""

    def __init__(self, steps: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.steps = list(steps)
        self.adaptive = next((step for step in steps if isinstance(step, Adaptive)), None)

    def __call__(self, images: Tensor) -> Tensor:
        """See the class."""
        for step in self.steps:
            images = step(images)
        return images


def augmentation(policy: str, kimg: float = 500.0, target: float = TARGET) -> Augmentation:
    """`"color,translation"` or `"ada"` as one function of images; "" is the identity.

    Args:
        policy: names of transforms, separated by commas.
        kimg, target: see `Adaptive`.

    Raises:
        RecipeError: an unknown transform.
    """
    names = [name.strip() for name in policy.split(",") if name.strip()]
    for name in names:
        if name not in POLICIES and name != ADAPTIVE:
            raise RecipeError(f"augment names {name!r}, must be of {', '.join([*POLICIES, ADAPTIVE])}")
    return Augmentation([Adaptive(kimg, target) if name == ADAPTIVE else POLICIES[name] for name in names])
