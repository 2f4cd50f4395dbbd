"""The loop that image-to-image families with pairs share: pixel, perceptual and adversarial terms.

The generator maps sources to images; D is called as `discriminator(images, sources)` and answers logits of any shape.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import perceptual
from training.family import Batch, Losses, Phase
from training.losses import OBJECTIVES, r1_penalty
from training.recipe import Recipe, RecipeError


def refuse_penalties(recipe: Recipe, name: str, *known: str) -> None:
    """Refuse gradient penalties that a family does not compute, which would be missing in silence.

    Args:
        name: the family's.
        known: fields of those that it does compute.

    Raises:
        RecipeError: naming the field.
    """
    for field in ("r1_gamma", "r2_gamma", "gp_lambda"):
        if field not in known and getattr(recipe, field) and recipe.adversarial_weight:
            has = f"it has {' and '.join(known)}" if known else "it has none"
            raise RecipeError(
                f"{field} is {getattr(recipe, field)}, a penalty that {name} does not compute ({has}): train it with"
                f" another objective, or set {field}=0"
            )


def paired_phases(recipe: Recipe) -> Sequence[Phase]:
    """Penalty (lazily), discriminator, generator; the generator alone where nothing is adversarial."""
    if not recipe.adversarial_weight:
        return [Phase("generator", ("generator",))]
    phases = []
    if recipe.r1_gamma:
        phases.append(Phase("penalty", ("discriminator",), every=recipe.penalty_every, step=False, autocast=False))
    phases.append(Phase("discriminator", ("discriminator",)))
    phases.append(Phase("generator", ("generator",), every=recipe.discriminator_steps))
    return phases


def paired_loss(phase: str, nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    """The terms of each of `paired_phases`."""
    discriminator, objective = nets["discriminator"], OBJECTIVES[recipe.objective]
    if phase == "penalty":
        at = batch.real.detach().requires_grad_(True)
        penalty = r1_penalty(discriminator(at, batch.given), at)
        terms = {"r1": penalty * (recipe.r1_gamma / 2 * recipe.penalty_every)}
        return Losses(terms, {"r1_gradient": penalty.detach()})
    if phase == "discriminator":
        with torch.no_grad():
            images = nets["generator"](batch.given).float()
        real, fake = (discriminator(shown, batch.given).float() for shown in (batch.real, images))
        stats = {"real_logit": real.mean(), "fake_logit": fake.mean(), "pair_accuracy": (real > fake).float().mean()}
        return Losses(
            {"discriminator": objective.discriminator(real, fake)},
            {name: value.detach() for name, value in stats.items()},
        )
    images = nets["generator"](batch.given).float()
    terms = similarity(images, batch.real, recipe)
    if recipe.adversarial_weight:
        fake = discriminator(images, batch.given).float()
        real = fake.detach()
        if objective.pairs:
            with torch.no_grad():
                real = discriminator(batch.real, batch.given).float()
        terms["adversarial"] = recipe.adversarial_weight * objective.generator(real, fake)
    return Losses(terms, {"psnr": psnr(images.detach(), batch.real)})


def similarity(images: Tensor, targets: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """The weighted pixel and perceptual terms of images [N, 3, H, W] against targets, those with a weight."""
    terms = {}
    if recipe.pixel_weight:
        terms["pixel"] = recipe.pixel_weight * PIXEL_LOSSES[recipe.pixel_loss](images, targets)
    if recipe.perceptual_weight:
        # On half of the rows: the features cost more than the generator, and another half has its turn next time.
        rows = slice(0, -(-len(images) // 2))
        terms["perceptual"] = recipe.perceptual_weight * perceptual.loss(images[rows], targets[rows])
    return terms


def log_error(images: Tensor, targets: Tensor) -> Tensor:
    """Mean over images [N, C, H, W] in [-1, 1] of the logarithm of each one's mean squared difference, a scalar.

    The loss whose gradient is that of a mean PSNR: a clear sky, where errors are small, counts as much as a thicket.
    (Chen et al., "Simple Baselines for Image Restoration", 2022, arXiv:2204.04676, train by it.)
    """
    return (images - targets).square().mean(dim=(1, 2, 3)).add(LEAST_ERROR).log().mean()


LEAST_ERROR = (2 / 255) ** 2 / 12
"""Mean square of what rounding to 8 bits does: nobody sees errors below."""
PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "psnr": log_error}


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Of a batch in [-1, 1], dB, for the progress line: by the mean error of all pixels, clipped but not rounded."""
    error = (images.clamp(-1, 1) - targets).square().mean() / 4
    return -10 * torch.log10(error + 1e-12)
