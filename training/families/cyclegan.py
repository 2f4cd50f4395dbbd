"""CycleGAN: two sets of images without counterparts, and a net each way that undoes the other.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", 2017, arXiv:1703.10593
(recipe `paper`). Recipe `modern`: smaller nets without norm that begin as the identity, spectral norm in the
discriminators. Exports two models, `a2b` and `b2a`. Written from the paper.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import translators
from training.family import Batch, ExportSpec, Family, Losses, Phase
from training.imagelayers import PatchDiscriminator, export_translate
from training.losses import OBJECTIVES
from training.paired import refuse_penalties
from training.recipe import Recipe


class Generators(nn.Module):
    """Both directions; called, it goes from a to b: [N, 3, H, W] in [-1, 1] to the same."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.a2b, self.b2a = translators.Translator(recipe), translators.Translator(recipe)

    def forward(self, source: Tensor) -> Tensor:
        """See the class."""
        image: Tensor = self.a2b(source)
        return image


class ImagePool(nn.Module):
    """Earlier fakes, so that D does not forget them (arXiv:1612.07828): [N, 3, S, S] to the same.

    Until it is full it keeps what comes and returns it; then in half of the cases an image is exchanged for a kept one.
    It is a module because what it holds belongs into checkpoints.
    """

    images: Tensor
    count: Tensor

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, 3, side, side))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, fakes: Tensor) -> Tensor:
        """See the class."""
        size, known = len(self.images), int(self.count)
        if not size:
            return fakes
        # By whole batches and with random numbers from the processor: a question about each image would wait for a GPU.
        free = min(len(fakes), size - known)
        self.images[known : known + free] = fakes[:free]
        self.count += free
        swapped = free + (torch.rand(len(fakes) - free) < 0.5).nonzero().flatten()[:size]
        places = torch.randperm(size)[: len(swapped)]
        shown = fakes.clone()
        shown[swapped] = self.images[places]
        self.images[places] = fakes[swapped]
        return shown


class Discriminators(nn.Module):
    """One for each set, each with a pool of earlier fakes."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        halvings = 3 if recipe.size >= 128 else 2
        self.a, self.b = (PatchDiscriminator(recipe, halvings=halvings) for _ in range(2))
        self.pool_a, self.pool_b = (ImagePool(recipe.pool, recipe.size) for _ in range(2))


def nets(recipe: Recipe) -> nn.ModuleDict:
    """Both players, each for both directions, in training mode."""
    translators.check(recipe, "cyclegan")
    refuse_penalties(recipe, "cyclegan")
    return nn.ModuleDict({"generator": Generators(recipe), "discriminator": Discriminators(recipe)})


def phases(recipe: Recipe) -> Sequence[Phase]:
    """Discriminators, generators; the generators alone where nothing is adversarial."""
    judged = [Phase("discriminator", ("discriminator",))] if recipe.adversarial_weight else []
    return [*judged, Phase("generator", ("generator",), every=recipe.discriminator_steps)]


def loss(phase: str, nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    """Sources are images of a, `real` those of b."""
    objective, generator, judges = OBJECTIVES[recipe.objective], nets["generator"], nets["discriminator"]
    a, b = batch.given, batch.real
    if phase == "discriminator":
        with torch.no_grad():
            fake_b, fake_a = generator.a2b(a).float(), generator.b2a(b).float()  # type: ignore[operator]
        terms = {}
        for name, judge, pool, real, fake in (
            ("a", judges.a, judges.pool_a, a, fake_a),
            ("b", judges.b, judges.pool_b, b, fake_b),
        ):
            shown = pool(fake)  # type: ignore[operator]
            logits = [judge(images, images).float() for images in (real, shown)]  # type: ignore[operator]
            terms[f"discriminator_{name}"] = objective.discriminator(*logits)
        return Losses(terms)
    return _generator_loss(generator, judges, a, b, recipe)


def _generator_loss(generator: nn.Module, judges: nn.Module, a: Tensor, b: Tensor, recipe: Recipe) -> Losses:
    objective, terms, stats = OBJECTIVES[recipe.objective], {}, {}
    ways = (
        ("a2b", generator.a2b, generator.b2a, judges.b, a, b),
        ("b2a", generator.b2a, generator.a2b, judges.a, b, a),
    )
    for name, there, back, judge, source, target in ways:
        fake = there(source).float()  # type: ignore[operator]
        if recipe.adversarial_weight:
            logits = judge(fake, fake).float()  # type: ignore[operator]
            real = logits.detach()
            if objective.pairs:
                with torch.no_grad():
                    real = judge(target, target).float()  # type: ignore[operator]
            terms[f"adversarial_{name}"] = recipe.adversarial_weight * objective.generator(real, logits)
        # What a net hides for the other in the lowest digits drowns in noise (arXiv:1908.01517).
        given = fake + recipe.condition_noise * torch.randn_like(fake) if recipe.condition_noise else fake
        cycle = F.l1_loss(back(given).float(), source)  # type: ignore[operator]
        stats[f"cycle_error_{name}"] = cycle.detach()
        terms[f"cycle_{name}"] = recipe.cycle_weight * cycle
        if recipe.identity_weight:
            same = there(target).float()  # type: ignore[operator]
            terms[f"identity_{name}"] = recipe.identity_weight * F.l1_loss(same, target)
    return Losses(terms, stats)


def sheet(generator: nn.Module, a: Tensor, b: Tensor) -> Sequence[Tensor]:
    """a | a to b | and back | b | b to a | and back."""
    columns = []
    for source, there, back in ((a, generator.a2b, generator.b2a), (b, generator.b2a, generator.a2b)):
        fake = there(source)  # type: ignore[operator]
        columns += [source, fake, back(fake)]  # type: ignore[operator]
    return columns


def exports(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """Two models of task `translate`: a to b and b to a."""
    generator = nets["generator"]
    return [export_translate(getattr(generator, way), recipe, suffix=way) for way in ("a2b", "b2a")]


RECIPES = {
    "paper": Recipe(
        name="paper", architecture="resnet", size=128, load_size=143, generator_width=64, discriminator_width=64,
        max_channels=512, downsamplings=2, residual_blocks=6, generator_norm="instance",
        discriminator_norm="instance", weight_std=0.02, objective="least_squares", cycle_weight=10.0,
        # The paper halves the discriminator's squares alone; the objective halves both.
        adversarial_weight=2.0,
        identity_weight=5.0, pool=50, learning_rate=2e-4, beta1=0.5, beta2=0.999, decay_from=0.5, decay_to=0.0,
        batch_size=1, total_kimg=200, ema_kimg=0.0, mirror=True,
        notes={
            "padding": "zeros instead of reflection",
            "upsampling": "pixel shuffle instead of transposed convolution",
        },
    ),
    "modern": Recipe(
        architecture="resnet", size=64, generator_width=24, discriminator_width=32, max_channels=128,
        downsamplings=2, residual_blocks=5, generator_norm="none", discriminator_norm="spectral", output="residual",
        objective="least_squares", cycle_weight=10.0, identity_weight=1.0, pool=50, learning_rate=4e-4,
        discriminator_learning_rate=2e-4, beta1=0.5, beta2=0.99, decay_from=0.5, batch_size=8, total_kimg=100,
        ema_kimg=5.0, mirror=True, precision="bf16",
    ),
}  # fmt: skip

FAMILY = Family(
    name="cyclegan",
    paper="arXiv:1703.10593 Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks",
    recipes=RECIPES,
    nets=nets,
    phases=phases,
    loss=loss,
    exports=exports,
    pairing="unpaired",
    sheet=sheet,
)
