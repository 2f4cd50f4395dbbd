"""LAPGAN: a Laplacian pyramid of conditional generators, each level trained on real images alone.

Denton, Chintala, Szlam and Fergus, "Deep Generative Image Models using a Laplacian Pyramid of Adversarial Networks",
2015, arXiv:1506.05751. The coarsest level draws a small image; every further one is given an image enlarged and adds
what is missing at twice the side. Each level has its own discriminator, which sees the enlarged image too, and learns
from real pyramids: no gradient passes between levels. Written from the paper.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.manifest import TensorSpec
from training.family import Batch, ExportSpec, Family, GraphExport, Losses
from training.layers import (
    MinibatchStddev,
    ToPixels,
    channel_plan,
    from_pixels,
    initialise,
    latent_to_image,
    octaves,
    to_pixels,
)
from training.losses import two_player_loss, two_player_phases
from training.recipe import Recipe, RecipeError

SLOPE = 0.2


def sides_of(size: int) -> list[int]:
    """Sides of the levels, coarsest first: 8, 16, 32, 64. The coarsest is 8 to 14 px, of images below 16 px 4 to 7."""
    start, doublings = octaves(size)
    first = 1 if doublings > 1 else 0
    return [start * 2**octave for octave in range(first, doublings + 1)]


def lower(images: Tensor) -> Tensor:
    """One level down, [N, C, 2H, 2W] to [N, C, H, W]: means of 2 x 2."""
    return F.avg_pool2d(images, 2)


def raised(images: Tensor) -> Tensor:
    """One level up, [N, C, H, W] to [N, C, 2H, 2W]: bilinear."""
    return F.interpolate(images, scale_factor=2.0, mode="bilinear", align_corners=False)


class Coarsest(nn.Module):
    """z [N, d] to images [N, C, side, side]."""

    def __init__(self, recipe: Recipe, latent_dim: int, side: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(latent_dim, width * side**2)
        self.side = side
        self.body = nn.Sequential(
            nn.LeakyReLU(SLOPE), nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(SLOPE), nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(SLOPE), nn.Conv2d(width, recipe.channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        x = self.dense(z).unflatten(1, (-1, self.side, self.side))
        return torch.tanh(self.body(x.contiguous(memory_format=torch.channels_last)))


class Finer(nn.Module):
    """z [N, d] and an enlarged image [N, C, side, side] to the finer image, its band being added.

    Works on squares of `fold` pixels laid into channels: as wide a view for a quarter of the places. z becomes one more
    plane of the input, as in the paper.
    """

    def __init__(self, recipe: Recipe, latent_dim: int, side: int, width: int, fold: int) -> None:
        super().__init__()
        self.fold, self.side = fold, side // fold
        self.to_plane = nn.Linear(latent_dim, self.side**2)
        layers: list[nn.Module] = []
        previous = recipe.channels * fold**2 + 1
        for _ in range(max(recipe.residual_blocks, 1)):
            layers += [nn.Conv2d(previous, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
            previous = width
        self.body = nn.Sequential(*layers, nn.Conv2d(width, recipe.channels * fold**2, 3, padding=1))

    def forward(self, z: Tensor, enlarged: Tensor) -> Tensor:
        """See the class."""
        plane = self.to_plane(z).view(-1, 1, self.side, self.side)
        folded = F.pixel_unshuffle(enlarged, self.fold)
        x = torch.cat([folded.to(plane.dtype), plane], dim=1).contiguous(memory_format=torch.channels_last)
        band: Tensor = F.pixel_shuffle(self.body(x), self.fold)
        return enlarged + band


class Generator(nn.Module):
    """z [N, latent_dim] -> images [N, C, size, size], level after level; in inference mode in [-1, 1].

    The coarsest level gets the first half of z, the others equal parts of the rest.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.sides = sides_of(recipe.size)
        finer = len(self.sides) - 1
        part = max(recipe.latent_dim // (2 * finer), 1)
        self.parts = [recipe.latent_dim - part * finer, *[part] * finer]
        if self.parts[0] < 1:
            raise RecipeError(f"latent_dim is {recipe.latent_dim}, must be more than {finer} for {finer + 1} levels")
        paper = recipe.architecture == "paper"
        plan = channel_plan(recipe.generator_width, len(self.sides), recipe.max_channels)
        fold = 1 if paper else 2
        self.levels = nn.ModuleList([Coarsest(recipe, self.parts[0], self.sides[0], plan[0])])
        for side, wide in zip(self.sides[1:], plan[1:], strict=True):
            self.levels.append(Finer(recipe, part, side, wide * fold, fold))
        initialise(self, recipe)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        first, *others = z.split(self.parts, dim=1)
        image: Tensor = self.levels[0](first)
        for level, part in zip(list(self.levels)[1:], others, strict=True):
            image = level(part, raised(image))
            image = image if self.training else image.clamp(-1, 1)
        return image


class LevelDiscriminator(nn.Module):
    """Images [N, C, side, side] to logits [N]; with `given`, [N, 2 C, side, side]: the image, then the enlarged one.

    Strided convolutions down to 4 to 7 px.
    """

    def __init__(self, recipe: Recipe, side: int, width: int, given: bool) -> None:
        super().__init__()
        inputs = recipe.channels * (2 if given else 1)
        layers: list[nn.Module] = []
        while side >= 8 and side % 2 == 0:
            layers += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            inputs, width, side = width, min(2 * width, recipe.max_channels), side // 2
        self.body = nn.Sequential(*layers)
        spread = bool(recipe.minibatch_stddev)
        self.spread = MinibatchStddev() if spread else nn.Identity()
        self.join = nn.Sequential(nn.Conv2d(inputs + spread, width, 3, padding=1), nn.LeakyReLU(SLOPE))
        self.dropout = nn.Dropout(recipe.dropout)
        self.to_logit = nn.Linear(width * side**2, 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        x = self.join(self.spread(self.body(images))).flatten(1)
        logits: Tensor = self.to_logit(self.dropout(x))
        return logits.squeeze(1)


class Discriminator(nn.Module):
    """One for each level; called, it judges whole images: [N, C, size, size] to the sum of its levels' logits, [N]."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        sides = sides_of(recipe.size)
        plan = channel_plan(recipe.discriminator_width, len(sides), recipe.max_channels)
        self.levels = nn.ModuleList(
            LevelDiscriminator(recipe, side, wide, given=index > 0)
            for index, (side, wide) in enumerate(zip(sides, plan, strict=True))
        )
        initialise(self, recipe)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        levels = pyramid(images, len(self.levels))
        logits: Tensor = self.levels[0](levels[0][0])
        for judge, (image, enlarged) in zip(list(self.levels)[1:], levels[1:], strict=True):
            logits = logits + judge(torch.cat([image, enlarged], dim=1))
        return logits


def pyramid(images: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """Images [N, C, S, S] at each level, coarsest first, beside the level below enlarged (the coarsest: itself)."""
    found = [images]
    for _ in range(levels - 1):
        found.insert(0, lower(found[0]))
    return [(image, raised(found[k - 1]) if k else image) for k, image in enumerate(found)]


class _Level(nn.Module):
    """A level's generator as the two players' loss calls it: z [N, latent_dim] to what the level's D sees."""

    def __init__(self, level: nn.Module, place: slice, enlarged: Tensor | None) -> None:
        super().__init__()
        self.level, self.place, self.enlarged = level, place, enlarged

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.enlarged is None:
            image: Tensor = self.level(z[:, self.place])
            return image
        image = self.level(z[:, self.place], self.enlarged)
        return torch.cat([image, self.enlarged.to(image.dtype)], dim=1)


def nets(recipe: Recipe) -> nn.ModuleDict:
    """All levels' players in training mode."""
    recipe.one_architecture_of("conv", "paper")
    if len(sides_of(recipe.size)) < 2:
        raise RecipeError(f"size is {recipe.size}, too small for a pyramid")
    if recipe.feature_weight:
        raise RecipeError(f"feature_weight is {recipe.feature_weight}, but levels judge bands, not pictures: use 0")
    return nn.ModuleDict({"generator": Generator(recipe), "discriminator": Discriminator(recipe)})


def loss(phase: str, nets: nn.ModuleDict, batch: Batch, recipe: Recipe) -> Losses:
    """The two players' objectives of every level, side by side: levels share no weight, so each learns by itself."""
    generator, judges = nets["generator"], nets["discriminator"]
    assert isinstance(generator, Generator) and isinstance(judges, Discriminator)
    terms: dict[str, Tensor] = {}
    stats: dict[str, Tensor] = {}
    summed: dict[str, list[Tensor]] = {"pair_accuracy": [], "certainty": []}
    starts = [sum(generator.parts[:k]) for k in range(len(generator.parts))]
    for k, (real, enlarged) in enumerate(pyramid(batch.real, len(generator.sides))):
        place = slice(starts[k], starts[k] + generator.parts[k])
        given = _roughened(enlarged, recipe.condition_noise) if k else None
        players = nn.ModuleDict(
            {"generator": _Level(generator.levels[k], place, given), "discriminator": judges.levels[k]}
        )
        seen = real if given is None else torch.cat([real, given], dim=1)
        found = two_player_loss(phase, players, replace(batch, real=seen), recipe)
        terms |= {f"{name}_{generator.sides[k]}": value for name, value in found.terms.items()}
        stats |= {f"{name}_{generator.sides[k]}": value for name, value in found.stats.items()}
        if k == 0 and "diversity" in found.stats:
            stats["diversity"] = found.stats["diversity"]  # finer levels vary as what they are given does
        for name in summed:
            if name in found.stats:
                summed[name].append(found.stats[name])
    return Losses(terms, {**stats, **{name: torch.stack(values).mean() for name, values in summed.items() if values}})


def _roughened(images: Tensor, strength: float) -> Tensor:
    """Images with noise of a deviation drawn for each between 0 and `strength`: generated ones are not as clean."""
    if not strength:
        return images
    return images + torch.randn_like(images) * (strength * torch.rand(len(images), 1, 1, 1, device=images.device))


class LevelPixels(nn.Module):
    """A finer level made ready for export: z [N, d] and an image [N, H, W, C] uint8 to [N, 2H, 2W, C] uint8."""

    def __init__(self, level: nn.Module) -> None:
        super().__init__()
        self.level = level

    def forward(self, z: Tensor, image: Tensor) -> Tensor:
        """See the class."""
        return to_pixels(self.level(z, raised(from_pixels(image))))


def exports(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """One model of task `generate`: graphs `level-8`, `level-16`, ... and all of them composed, `generator`."""
    generator = nets["generator"]
    assert isinstance(generator, Generator)

    def image(name: str, side: int) -> TensorSpec:
        return TensorSpec(name=name, kind="image", dtype="uint8", shape=("batch", side, side, recipe.channels))

    graphs = {}
    for k, (level, side, part) in enumerate(zip(generator.levels, generator.sides, generator.parts, strict=True)):
        z = TensorSpec(name="z", kind="latent", dtype="float32", shape=("batch", part))
        if k:
            module: nn.Module = LevelPixels(level)
            inputs: tuple[TensorSpec, ...] = (z, image("image", side // 2))
        else:
            module, inputs = ToPixels(level), (z,)
        graphs[f"level-{side}"] = GraphExport(module, inputs, (image("finer" if k else "image", side),))
    (whole,) = latent_to_image(nets, recipe, classes)
    return [replace(whole, graphs={**graphs, **whole.graphs})]


RECIPES = {
    "paper": Recipe(
        name="paper", architecture="paper", size=32, latent_dim=100, generator_width=64, discriminator_width=64,
        max_channels=128, residual_blocks=2, generator_norm="none", minibatch_stddev=False, dropout=0.5,
        weight_std=0.02, objective="non_saturating", optimiser="sgd", learning_rate=0.02, beta1=0.5, decay_from=0.0,
        decay_to=0.05, batch_size=16, total_kimg=6000, ema_kimg=0.0,
        notes={
            "latent": "z is normal and shared out among the levels, each making a plane of its part; the paper draws"
            " every pixel of that plane",
            "pyramid": "means of 2 x 2 and bilinear enlarging",
            "discriminator": "sees image and enlarged image side by side instead of their sum",
            "classes": "unconditional",
        },
    ),
    "modern": Recipe(
        size=64, latent_dim=96, generator_width=16, discriminator_width=24, max_channels=96, residual_blocks=3,
        generator_norm="none", objective="relativistic", r1_gamma=0.3, r2_gamma=0.3, condition_noise=0.1,
        learning_rate=5e-4, discriminator_learning_rate=3e-4, decay_from=0.7, batch_size=16, total_kimg=600,
        ema_kimg=10.0, mirror=True, precision="bf16",
    ),
}  # fmt: skip

FAMILY = Family(
    name="lapgan",
    paper="arXiv:1506.05751 Deep Generative Image Models using a Laplacian Pyramid of Adversarial Networks",
    recipes=RECIPES,
    nets=nets,
    phases=two_player_phases,
    loss=loss,
    exports=exports,
)
