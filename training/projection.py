"""From pictures back to latents: an encoder learnt beside a finished StyleGAN, and refinement by gradient.

The encoder looks in passes (ReStyle, arXiv:2104.02699): it sees the picture and what its last answer drew, and says how
the styles of each layer should change. It learns on pictures that the generator drew, whose styles are known, and on
real ones, of which only the pixels count. Refinement is Abdal et al., "Image2StyleGAN", 2019, arXiv:1904.03189, from
where the encoder ends, with a weight that keeps latents near those that the generator learnt.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.engine.latents import latents_from_seeds, noise_from_seeds
from service.manifest import TensorSpec
from training import checkpoint
from training.families.stylegan import MEAN_W_SEEDS, Generator
from training.family import GraphExport
from training.layers import ConvDiscriminator, from_pixels
from training.recipe import Recipe, RecipeError

ENCODER_FILE = "encoder.pt"
STEPS, BATCH = 1500, 16
PASSES = 3
"""Passes that are learnt; the server may ask for more, of which each corrects what the last one left."""
_RATE = 1e-3
_STYLE_WEIGHT = 0.05
"""Of the distance to known styles, in deviations of w, beside squared errors of pixels in [-1, 1]."""
_NEAR_WEIGHT = 1e-4
"""Of the distance from the mean, likewise: far from it pictures can be met whose latents cannot be steered."""
_POOL = 4

Say = Callable[[str], None]


class PassEncoder(nn.Module):
    """A picture, what the last pass drew, and its styles to better styles.

    Maps images [N, C, S, S] in [-1, 1], twice, and styles [N, layers, D] to [N, layers, D]; before it has learnt
    anything it answers with the styles that it was given.
    """

    spread: Tensor

    def __init__(self, recipe: Recipe, layers: int) -> None:
        super().__init__()
        # ONNX Runtime's WebGPU provider (1.27) gets convolutions wrong whose input channels are no multiple of four.
        self.empty = -2 * recipe.channels % 4
        twice = replace(
            recipe, channels=2 * recipe.channels + self.empty, minibatch_stddev=False, discriminator_norm="none",
            classes=0, class_weight=0.0, dropout=0.0,
        )  # fmt: skip
        judge = ConvDiscriminator(twice)
        self.body = nn.Sequential(judge.body, judge.join, nn.Flatten())
        self.head = nn.Linear(judge.to_logit.in_features, layers * recipe.latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.layers = layers
        self.register_buffer("spread", torch.ones(recipe.latent_dim))

    def forward(self, images: Tensor, drawn: Tensor, styles: Tensor) -> Tensor:
        """See the class."""
        both = F.pad(torch.cat([images, drawn], dim=1), (0, 0, 0, 0, 0, self.empty))
        step: Tensor = self.head(self.body(both)).unflatten(1, (self.layers, -1))
        return styles + self.spread * step


class EncoderGraph(nn.Module):
    """`PassEncoder` made ready for export: images are [N, H, W, C] uint8."""

    def __init__(self, encoder: PassEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, picture: Tensor, drawn: Tensor, before: Tensor) -> Tensor:
        """See the class."""
        styles: Tensor = self.encoder(from_pixels(picture), from_pixels(drawn), before)
        return styles


@dataclass(frozen=True)
class Space:
    """A finished generator as projection needs it.

    Args:
        mean: of w, [D], as it is exported; `spread` its deviation, [D].
        layers: that take w.
    """

    generator: Generator
    synthesis: nn.Module
    noise: Tensor | None
    mean: Tensor
    spread: Tensor
    layers: int

    def draw(self, styles: Tensor) -> Tensor:
        """Images [N, C, S, S] of styles [N, layers, D], with the noise of seed 0; beyond [-1, 1] where they go there,
        so that gradients go on."""
        noise = None if self.noise is None else self.noise.expand(len(styles), -1)
        images: Tensor = self.synthesis(styles, noise)
        return images

    def start(self, rows: int) -> Tensor:
        """The mean styles, [rows, layers, D]."""
        return self.mean.expand(rows, self.layers, -1).clone()

    def styles(self, rows: int, random: torch.Generator) -> Tensor:
        """Styles that the generator may meet, [rows, layers, D]: truncated here and there, half of them mixed."""
        wide = self.mean.shape[0]
        with torch.no_grad():
            w = self.generator.mapping(torch.randn(2 * rows, wide, generator=random))
        w = self.mean + (0.5 + 0.5 * torch.rand(2 * rows, 1, generator=random)) * (w - self.mean)
        one, two = (half[:, None].expand(-1, self.layers, -1) for half in w.chunk(2))
        cut = torch.randint(1, self.layers, (rows, 1, 1), generator=random)
        first = torch.arange(self.layers)[None, :, None] < cut
        whole = torch.rand(rows, 1, 1, generator=random) < 0.5
        return torch.where(first | whole, one, two)


def space_of(generator: nn.Module) -> Space:
    """See `Space`.

    Raises:
        RecipeError: the generator has no styles.
    """
    if not isinstance(generator, Generator) or not isinstance(generator.synthesis.layers, nn.ModuleList):
        raise RecipeError("projection is for StyleGAN's generators; a VAE has an encoder of its own")
    still = copy.deepcopy(generator).eval().requires_grad_(False)
    with torch.no_grad():
        w = still.mapping(torch.from_numpy(latents_from_seeds(MEAN_W_SEEDS, len(still.mean_w))))
    synthesis = copy.deepcopy(still.synthesis).train()  # in training mode its images are not clipped
    count = still.synthesis.noise_dim
    noise = torch.from_numpy(noise_from_seeds([0], len(still.mean_w), count)) if count else None
    return Space(still, synthesis, noise, w.mean(dim=0), w.std(dim=0), still.style_layers)


def train_encoder(
    generator: nn.Module, recipe: Recipe, images: np.ndarray, *, steps: int = STEPS, batch: int = BATCH, seed: int = 0,
    say: Say = lambda line: None,
) -> PassEncoder:  # fmt: skip
    """An encoder for a finished generator.

    Args:
        images: [N, H, W, C] uint8, training images.
        steps: of Adam, each on `batch` pictures, half of them drawn, and PASSES passes.

    Raises:
        RecipeError: the generator has no styles, or steps, batch or images are too few.
    """
    if steps < 1 or batch < 2 or len(images) < 1:
        raise RecipeError(f"steps is {steps}, batch {batch}, images are {len(images)}: at least 1, 2 and 1 are needed")
    space = space_of(generator)
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    encoder = PassEncoder(recipe, space.layers)
    encoder.spread.copy_(space.spread)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        known = space.styles(batch // 2, random)
        with torch.no_grad():
            made = space.draw(known).clamp(-1, 1)
        chosen = torch.randint(len(images), (batch - len(made),), generator=random).numpy()
        target = torch.cat([made, from_pixels(torch.from_numpy(images[chosen]))])
        loss, error = _step_loss(space, encoder, target, known)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            say(f"step {step} of {steps}: squared error after {PASSES} passes {error:.4f}")
    return encoder.eval().requires_grad_(False)


def _step_loss(space: Space, encoder: PassEncoder, target: Tensor, known: Tensor) -> tuple[Tensor, float]:
    """The passes' losses, summed, each seen from where the last one ended; and the last pass' error of pixels."""
    styles = space.start(len(target))
    with torch.no_grad():
        drawn = space.draw(styles).clamp(-1, 1)
    total, error = torch.zeros(()), 0.0
    for _ in range(PASSES):
        styles = encoder(target, drawn, styles.detach())
        images = space.draw(styles)
        pixels = picture_loss(images, target)
        nearness = ((styles - space.mean) / space.spread).square().mean()
        apart = ((styles[: len(known)] - known) / space.spread).square().mean()
        total = total + pixels + _STYLE_WEIGHT * apart + _NEAR_WEIGHT * nearness
        drawn = images.detach().clamp(-1, 1)
        error = float(F.mse_loss(drawn, target))
    return total, error


def picture_loss(images: Tensor, target: Tensor) -> Tensor:
    """Squared error of images [N, C, S, S], and of what is left of them at a quarter of the size; a scalar."""
    coarse = F.mse_loss(F.avg_pool2d(images, _POOL), F.avg_pool2d(target, _POOL))
    return F.mse_loss(images, target) + coarse


@torch.no_grad()
def encode(space: Space, encoder: PassEncoder, target: Tensor, passes: int = PASSES) -> Tensor:
    """Styles [N, layers, D] of images [N, C, S, S] in [-1, 1], as the server's passes find them."""
    styles = space.start(len(target))
    for _ in range(passes):
        styles = encoder(target, space.draw(styles).clamp(-1, 1), styles)
    return styles


def refine(
    space: Space, target: Tensor, start: Tensor, *, steps: int = 300, rate: float = 0.05, say: Say = lambda line: None
) -> Tensor:
    """Styles [N, layers, D] that draw images [N, C, S, S] more nearly, by gradient; the best met on the way.

    Args:
        start: styles to begin with.
        rate: of Adam, in deviations of w; it falls to 0.
    """
    offset = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([offset], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    best, least = start.clone(), torch.full((len(start),), float("inf"))
    for step in range(steps + 1):
        styles = start + space.spread * offset
        images = space.draw(styles)
        with torch.no_grad():
            errors = (images.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3))
            better = errors < least
            least = torch.where(better, errors, least)
            best[better] = styles[better]
        if step % 100 == 0 or step == steps:
            say(f"step {step} of {steps}: {float(psnr_db(least).mean()):.2f} dB")
        if step == steps:
            break
        nearness = ((styles - space.mean) / space.spread).square().mean()
        optimiser.zero_grad()
        (picture_loss(images, target) + _NEAR_WEIGHT * nearness).backward()
        optimiser.step()
        schedule.step()
    return best.detach()


def psnr_db(errors: Tensor) -> Tensor:
    """Of squared errors of pixels in [-1, 1]."""
    return 10 * (4 / errors.clamp(min=1e-9)).log10()


def save_encoder(directory: Path, encoder: PassEncoder, digest: str, facts: dict[str, float]) -> None:
    """Beside the run's checkpoint, whose digest says for which weights it was learnt."""
    checkpoint.save(directory / ENCODER_FILE, {"encoder": encoder.state_dict(), "generator": digest, "facts": facts})


def read_encoder(directory: Path, digest: str, recipe: Recipe, layers: int) -> PassEncoder | None:
    """The run's encoder; None where there is none, or one for other weights.

    Raises:
        checkpoint.CheckpointError: it cannot be read.
    """
    path = directory / ENCODER_FILE
    if not path.is_file():
        return None
    state = checkpoint.load(path)
    if state["generator"] != digest:
        return None
    encoder = PassEncoder(recipe, layers)
    encoder.load_state_dict(state["encoder"])
    return encoder.eval().requires_grad_(False)


def encoder_graph(encoder: PassEncoder, recipe: Recipe) -> GraphExport:
    """The graph that `/project` asks: the picture, what was drawn, its styles; and better ones out."""
    shape, wide = ("batch", recipe.size, recipe.size, recipe.channels), ("batch", encoder.layers, recipe.latent_dim)
    pictures = [TensorSpec(name=name, kind="image", dtype="uint8", shape=shape) for name in ("picture", "drawn")]
    before, styles = (
        TensorSpec(name=name, kind="latent", dtype="float32", shape=wide) for name in ("before", "styles")
    )
    return GraphExport(EncoderGraph(encoder), (*pictures, before), (styles,))
