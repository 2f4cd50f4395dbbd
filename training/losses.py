"""Adversarial objectives and gradient penalties, and the two-player loop's phases that the plain GAN families share.

Every objective is written for raw logits [N] and returns a scalar to be minimised.

| name | paper |
|---|---|
| minimax | Goodfellow et al. 2014, arXiv:1406.2661, eq. 1: saturates when D wins |
| non_saturating | the same paper, section 3: G maximises log D(G(z)) instead |
| least_squares | Mao et al. 2016, arXiv:1611.04076 |
| hinge | Lim and Ye 2017, arXiv:1705.02894 |
| wasserstein | Arjovsky et al. 2017, arXiv:1701.07875: critic with clipped weights |
| wasserstein_gp | Gulrajani et al. 2017, arXiv:1704.00028: gradient penalty instead of clipping |
| relativistic | each fake paired with a real, arXiv:1807.00734; with R1 and R2 it is R3GAN's, arXiv:2501.05441 |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.family import Batch, Losses, Phase
from training.recipe import Recipe, RecipeError

Pair = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AdversarialObjective:
    """Losses of both players from the logits of reals and fakes, each [N].

    Args:
        discriminator: minimised by D.
        generator: minimised by G; reads the reals' logits only when `pairs`.
        pairs: G's loss compares fakes with reals.
        changes: recipe fields that this objective needs to work at all, applied when a user asks for it by name.
    """

    discriminator: Pair
    generator: Pair
    pairs: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


def _wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _wasserstein_generator(real: Tensor, fake: Tensor) -> Tensor:
    return -fake.mean()


_UNPENALISED: Mapping[str, Any] = {"r1_gamma": 0.0, "r2_gamma": 0.0, "gp_lambda": 0.0, "clip": 0.0}

OBJECTIVES: Mapping[str, AdversarialObjective] = {
    "minimax": AdversarialObjective(
        discriminator=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        generator=lambda real, fake: -F.softplus(fake).mean(),
    ),
    "non_saturating": AdversarialObjective(
        discriminator=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        generator=lambda real, fake: F.softplus(-fake).mean(),
    ),
    "least_squares": AdversarialObjective(
        discriminator=lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        generator=lambda real, fake: 0.5 * (fake - 1).square().mean(),
    ),
    "hinge": AdversarialObjective(
        discriminator=lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        generator=_wasserstein_generator,
    ),
    "wasserstein": AdversarialObjective(
        discriminator=_wasserstein_critic,
        generator=_wasserstein_generator,
        # The paper's settings: momentum made its critic unstable, so RMSProp.
        changes={**_UNPENALISED, "clip": 0.01, "discriminator_steps": 5, "optimiser": "rmsprop", "learning_rate": 5e-5,
                 "discriminator_learning_rate": 0.0},
    ),
    "wasserstein_gp": AdversarialObjective(
        discriminator=_wasserstein_critic,
        generator=_wasserstein_generator,
        # Two critic steps rather than the paper's five: on CPU the generator's turns are the cheap ones.
        changes={**_UNPENALISED, "gp_lambda": 10.0, "discriminator_steps": 2, "discriminator_norm": "none",
                 "minibatch_stddev": False, "optimiser": "adam", "learning_rate": 1e-4,
                 "discriminator_learning_rate": 0.0, "beta1": 0.0, "beta2": 0.9},
    ),
    "relativistic": AdversarialObjective(
        discriminator=lambda real, fake: F.softplus(fake - real).mean(),
        generator=lambda real, fake: F.softplus(real - fake).mean(),
        pairs=True,
        # Without both penalties this objective does not converge (R3GAN, table 1).
        changes={**_UNPENALISED, "r1_gamma": 0.2, "r2_gamma": 0.2, "discriminator_norm": "none"},
    ),
}  # fmt: skip


def with_objective(recipe: Recipe, name: str) -> Recipe:
    """The recipe under another objective, with the settings that the objective cannot do without.

    Raises:
        RecipeError: unknown objective, or a recipe without an adversary.
    """
    if recipe.objective not in OBJECTIVES:
        raise RecipeError(f"objective is {recipe.objective!r} for want of an adversary: {name!r} would need one")
    if name == recipe.objective:
        return recipe
    changes = dict(OBJECTIVES[name].changes) if name in OBJECTIVES else {}
    return recipe.replaced(objective=name, **changes)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean squared gradient norm of D at `images` (arXiv:1801.04406), a scalar; weight it by gamma / 2.

    Args:
        logits: [N], computed from `images`, each row from its own image alone.
        images: [N, C, H, W] with `requires_grad`.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """WGAN-GP's mean (|gradient| - 1)^2 on random points between reals and fakes, each [N, C, H, W]; a scalar."""
    t = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = torch.lerp(real, fake, t).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # The root has no gradient at 0: keep it away from there.
    norm = (gradient.square().sum(dim=(1, 2, 3)) + 1e-12).sqrt()
    return (norm - 1).square().mean()


def two_player_phases(recipe: Recipe) -> Sequence[Phase]:
    """Penalties (lazily, their gradient added to D's next step), discriminator, generator.

    Raises:
        RecipeError: the objective is no adversarial one.
    """
    if recipe.objective not in OBJECTIVES:
        raise RecipeError(f"objective is {recipe.objective!r}, two players have {', '.join(OBJECTIVES)}")
    phases = []
    if recipe.r1_gamma or recipe.r2_gamma or recipe.gp_lambda:
        phases.append(Phase("penalty", ("discriminator",), every=recipe.penalty_every, step=False, autocast=False))
    phases.append(Phase("discriminator", ("discriminator",)))
    phases.append(Phase("generator", ("generator",), every=recipe.discriminator_steps))
    return phases


def two_player_loss(phase: str, nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    """The objective of each of `two_player_phases`. Nets: generator(z, labels), discriminator(images, labels)."""
    if phase == "penalty":
        return _penalties(nets, batch, recipe)
    objective = OBJECTIVES[recipe.objective]
    discriminator = nets["discriminator"]
    if phase == "discriminator":
        with torch.no_grad():
            images = nets["generator"](batch.z, batch.labels)
        real = discriminator(batch.augment(batch.real), batch.labels).float()
        fake = discriminator(batch.augment(images), batch.labels).float()
        loss = objective.discriminator(real, fake)
        if recipe.label_smoothing:
            # softplus(r) - softplus(-r) = r: moves the real target from 1 to 1 - smoothing.
            loss = loss + recipe.label_smoothing * real.mean()
        terms = {"discriminator": loss, **_classified(nets, batch.augment(batch.real), batch, recipe)}
        if recipe.feature_weight:
            # Summed, not weighted: the heads are nets of their own, and Adam does not see a factor.
            real_logits, fake_logits = (_heads(nets)(batch.augment(x)).float() for x in (batch.real, images))
            terms["features"] = OBJECTIVES["hinge"].discriminator(real_logits, fake_logits)
        # What ADA steers by. A relativistic D knows differences only.
        certainty = (real - fake if objective.pairs else real).detach().sign().mean()
        if recipe.drift:
            terms["drift"] = recipe.drift * real.square().mean()
        return Losses(terms, {**_logit_stats(real.detach(), fake.detach()), "certainty": certainty})
    images = nets["generator"](batch.z, batch.labels)
    fake = discriminator(batch.augment(images), batch.labels).float()
    real = fake.detach()
    if objective.pairs:
        with torch.no_grad():
            real = discriminator(batch.augment(batch.real), batch.labels).float()
    terms = {"generator": objective.generator(real, fake), **_classified(nets, batch.augment(images), batch, recipe)}
    if recipe.feature_weight:
        terms["features"] = -recipe.feature_weight * _heads(nets)(batch.augment(images)).float().mean()
    stats = {"saturation": fake.detach().sigmoid().mean()}
    if len(images) > 1:  # one alone does not vary
        stats["diversity"] = _diversity(images.detach(), batch.real)
    return Losses(terms, stats)


def _diversity(images: Tensor, real: Tensor) -> Tensor:
    """How much generated pixels vary within the batch, over how much real ones do; 0 where all images are the same."""
    spreads = [part.float().std(dim=0, correction=0).mean() for part in (images, real)]
    return spreads[0] / spreads[1].clamp(min=1e-6)


def _heads(nets: nn.ModuleDict) -> Callable[[Tensor], Tensor]:
    """The discriminator's heads on pretrained features (training/projected.py)."""
    heads: Callable[[Tensor], Tensor] = nets["discriminator"].heads  # type: ignore[assignment]
    return heads


def _classified(nets: nn.ModuleDict, images: Tensor, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """AC-GAN's term: how badly D's classifier reads the asked classes from `images`; nothing without a weight.

    D learns it from reals alone: classes of fakes would teach it the generator's mistakes.
    """
    if not recipe.class_weight or batch.labels is None:
        return {}
    classify: Callable[[Tensor], Tensor] = nets["discriminator"].classify  # type: ignore[assignment]
    return {"class": recipe.class_weight * F.cross_entropy(classify(images).float(), batch.labels)}


def _penalties(nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    discriminator, terms, stats = nets["discriminator"], {}, {}
    fake = None
    if recipe.r2_gamma or recipe.gp_lambda:
        with torch.no_grad():
            fake = nets["generator"](batch.z, batch.labels).float()
    points = {"r1": (recipe.r1_gamma, batch.real), "r2": (recipe.r2_gamma, fake)}
    for name, (gamma, images) in points.items():
        if gamma and images is not None:
            at = batch.augment(images).detach().requires_grad_(True)
            penalty = r1_penalty(discriminator(at, batch.labels), at)
            terms[name] = penalty * (gamma / 2 * recipe.penalty_every)
            stats[f"{name}_gradient"] = penalty.detach()
    if recipe.gp_lambda and fake is not None:
        penalty = gradient_penalty(lambda x: discriminator(x, batch.labels), batch.real, fake)
        terms["gp"] = penalty * (recipe.gp_lambda * recipe.penalty_every)
        stats["gp"] = penalty.detach()
    return Losses(terms, stats)


def _logit_stats(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    return {
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
        "accuracy": ((real > 0).float().mean() + (fake < 0).float().mean()) / 2,
        "pair_accuracy": (real > fake).float().mean(),
    }
