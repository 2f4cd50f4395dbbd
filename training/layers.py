"""Building blocks with two or more users among the families."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.manifest import GenerateSpec, Task, TensorSpec
from training.family import ExportSpec, GraphExport
from training.recipe import Recipe, RecipeError


class MinibatchStddev(nn.Module):
    """Append one channel: how much the batch varies, averaged over channels and places (arXiv:1710.10196).

    Maps [N, C, ...] to [N, C + 1, ...], of images' features or a perceptron's. Groups of at most `group` rows share a
    statistic; a batch that the group does not divide is one group.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        n = len(x)
        group = self.group if n % self.group == 0 else n
        # Strided groups (row i with i + n/group, ...) so that neighbours of one class do not form a group.
        grouped = x.reshape(group, n // group, -1)
        deviation = (grouped.float().var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=1)
        channel = deviation.repeat(group).reshape(n, *[1] * (x.dim() - 1)).expand(n, 1, *x.shape[2:])
        return torch.cat([x, channel.to(x.dtype)], dim=1)


class ClassTable(nn.Embedding):
    """A row for each class: labels [N] int64 to [N, D]; weights of classes [N, classes] float to the rows' mixtures.

    A weight of 1 beside noughts gives the class's row bit for bit.
    """

    def forward(self, labels: Tensor) -> Tensor:
        """See the class."""
        return labels @ self.weight if labels.is_floating_point() else super().forward(labels)


class ClassBatchNorm(nn.Module):
    """Batch norm whose scale and shift are looked up by class (arXiv:1610.07629); plain when `classes` is 0.

    Maps [N, C, H, W] to the same shape.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=classes == 0)
        self.scale = ClassTable(classes, channels) if classes else None
        self.shift = ClassTable(classes, channels) if classes else None
        if self.scale is not None and self.shift is not None:
            nn.init.ones_(self.scale.weight)
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """See the class; `labels` as ClassTable takes them."""
        normed: Tensor = self.norm(x)
        if self.scale is None or self.shift is None:
            return normed
        scaled: Tensor = normed * self.scale(labels)[:, :, None, None] + self.shift(labels)[:, :, None, None]
        return scaled


class Maxout(nn.Module):
    """A linear layer with `pieces` values per unit, of which the largest counts (arXiv:1302.4389): [N, i] to [N, o]."""

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs * pieces)
        self.units, self.pieces = outputs, pieces

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        values: Tensor = self.linear(x)
        return values.view(-1, self.units, self.pieces).amax(dim=2)


class ToPixels(nn.Module):
    """A generator made ready for export: images in [-1, 1], NCHW, become uint8 NHWC inside the graph.

    The server's hot path then neither scales, clips nor transposes.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z [N, latent_dim] float32, label [N, classes] float32 (weights) or None -> [N, H, W, C] uint8."""
        images = self.generator(z, label) if label is not None else self.generator(z)
        return to_pixels(images)


def latent_to_image(nets: nn.ModuleDict, recipe: Recipe, classes: Sequence[str]) -> list[ExportSpec]:
    """The export of every family whose generator maps z (and a label) to an image: one model with one graph.

    Labels go in as a weight for each class, so that a server can mix classes.
    """
    inputs = [TensorSpec(name="z", kind="latent", dtype="float32", shape=("batch", recipe.latent_dim))]
    if recipe.classes:
        inputs.append(TensorSpec(name="label", kind="label", dtype="float32", shape=("batch", recipe.classes)))
    shape = ("batch", recipe.size, recipe.size, recipe.channels)
    image = TensorSpec(name="image", kind="image", dtype="uint8", shape=shape)
    graph = GraphExport(module=ToPixels(nets["generator"]), inputs=tuple(inputs), outputs=(image,))
    labels = tuple(classes) if recipe.classes else None
    generate = GenerateSpec(latent_dim=recipe.latent_dim, labels=labels)
    return [ExportSpec(tasks=(Task.GENERATE,), graphs={"generator": graph}, generate=generate)]


def to_pixels(images: Tensor) -> Tensor:
    """[N, C, H, W] in [-1, 1] -> [N, H, W, C] uint8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def from_pixels(images: Tensor) -> Tensor:
    """[N, H, W, C] uint8 -> [N, C, H, W] float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def octaves(size: int) -> tuple[int, int]:
    """`size` as (start, doublings) with 4 <= start <= 7: 28 is (7, 2), 32 and 64 are (4, 3) and (4, 4).

    Raises:
        RecipeError: no such split exists.
    """
    start, doublings = size, 0
    while start >= 8 and start % 2 == 0:
        start, doublings = start // 2, doublings + 1
    if not 4 <= start <= 7 or doublings < 1:
        raise RecipeError(f"size is {size}, must be 4 to 7 px doubled at least once: 28, 32, 48, 64, 96, 128, ...")
    return start, doublings


def channel_plan(width: int, doublings: int, max_channels: int) -> list[int]:
    """Channels from the lowest resolution to the highest: `width` last, doubling downwards, at most `max_channels`."""
    return [min(width * 2**level, max_channels) for level in reversed(range(doublings))]


def initialise(nets: nn.Module, recipe: Recipe) -> None:
    """Draw weights from N(0, weight_std) and batch norm scales around 1, where the recipe says so."""
    if not recipe.weight_std:
        return
    for module in nets.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, recipe.weight_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, recipe.weight_std)


class ConvGenerator(nn.Module):
    """DCGAN's generator: a dense layer, then an octave of transposed convolutions after the other.

    z [N, latent_dim] (and labels [N] with `recipe.classes`) -> images [N, C, size, size] in [-1, 1].
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        if recipe.generator_norm == "instance":
            raise RecipeError(
                "generator_norm is 'instance', which families that draw from latents do not have: batch or none"
            )
        self.start, doublings = octaves(recipe.size)
        channels = channel_plan(recipe.generator_width, doublings + 1, recipe.max_channels)
        bias = recipe.generator_norm == "none"
        self.dense = nn.Linear(recipe.latent_dim, channels[0] * self.start**2, bias=bias)
        self.ups = nn.ModuleList(
            # Kernel 4 with stride 2: every output pixel has the same number of inputs, so no checkerboard by geometry.
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=bias)
            for a, b in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(
            ClassBatchNorm(c, recipe.classes) if recipe.generator_norm == "batch" else _NoNorm() for c in channels
        )
        self.refines = nn.ModuleList(_Refine(c, recipe) for c in channels[1:] for _ in range(recipe.residual_blocks))
        self.to_image = PaletteHead(channels[-1], recipe) if recipe.palette else _ColourHead(channels[-1], recipe)
        initialise(self, recipe)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        x = self.dense(z).unflatten(1, (-1, self.start, self.start))
        x = F.relu(self.norms[0](x, labels))
        each = len(self.refines) // len(self.ups)
        for level, (up, norm) in enumerate(zip(self.ups, list(self.norms)[1:], strict=True)):
            x = F.relu(norm(up(x), labels))
            for refine in list(self.refines)[level * each : (level + 1) * each]:
                x = refine(x, labels)
        image: Tensor = self.to_image(x, z)
        return image


class _ColourHead(nn.Conv2d):
    """Features [N, F, H, W] to free colours [N, C, H, W] in [-1, 1]."""

    def __init__(self, features: int, recipe: Recipe) -> None:
        super().__init__(features, recipe.channels, 3, padding=1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return torch.tanh(super().forward(x))


LEARNT_SHARPNESS, DRAWN_SHARPNESS = 16.0, 28.0
"""Factors on a palette head's logits. At the first, training settles on mixtures that are softer than drawings are."""


class PaletteHead(nn.Module):
    """Features [N, F, H, W] to mixtures of a few colours, [N, C, H, W] in [-1, 1].

    Shares below 0.8 of an even mixture's are cut to zero, so that areas of one colour come out exactly flat and edges
    are mixtures of two or three, as in a drawing. A free colour head leaves a few levels of noise there, which is far
    from invisible on flat areas, and so does a plain softmax, whose shares never end at zero.

    Args:
        features: F.
        recipe: its palette, channels and latent_dim.
        rate: what the head learns at, as a multiple of the recipe's learning rate. It has plain weights: beside
            equalised ones, which want twenty times the rate of plain ones, all pictures become one colour each.
    """

    def __init__(self, features: int, recipe: Recipe, rate: float = 1.0) -> None:
        super().__init__()
        # Paper, ink and the like are the same in every drawing: a quarter of the colours do not depend on z.
        shared = recipe.palette // 4
        self.shape = (recipe.palette - shared, recipe.channels)
        self.shared = nn.Parameter(torch.randn(shared, recipe.channels))
        self.mix = nn.Conv2d(features, recipe.palette, 3, padding=1)
        self.colours = nn.Sequential(
            nn.Linear(recipe.latent_dim, 128), nn.ReLU(), nn.Linear(128, self.shape[0] * self.shape[1])
        )
        # Colours that differ from the start: alike ones would be told apart by nothing.
        nn.init.normal_(self.colours[2].bias)  # type: ignore[arg-type]
        self.rate = rate
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.div_(rate)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        # Learning needs soft mixtures, for a saturated one has no gradient; drawing is done with sharper ones.
        sharpness = LEARNT_SHARPNESS if self.training else DRAWN_SHARPNESS
        weights = ((sharpness * self.rate) * self.mix(x)).softmax(dim=1)
        # The largest share is at least an even one's: the sum below is never zero.
        weights = F.relu(weights - 0.8 / weights.shape[1])
        weights = weights / weights.sum(dim=1, keepdim=True)
        image: Tensor = self.palette(z).transpose(1, 2) @ weights.flatten(2)
        return image.view(-1, self.shape[1], *x.shape[2:])

    def palette(self, z: Tensor) -> Tensor:
        """z [N, latent_dim] -> colours [N, palette, C] in [-1, 1], the shared ones first."""
        first, last = self.colours[0], self.colours[2]
        own: Tensor = self.rate * last(F.relu(self.rate * first(z)))
        shared = (self.rate * self.shared).expand(len(z), -1, -1)
        return torch.tanh(torch.cat([shared, own.view(-1, *self.shape)], dim=1))


class _Refine(nn.Module):
    """ReLU(x + gain * norm(conv3x3(x))), [N, C, H, W] to the same.

    Nearly the identity at first (gain 0.1), so that a trained net can be grown without starting over.
    """

    def __init__(self, channels: int, recipe: Recipe) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=recipe.generator_norm == "none")
        self.norm = ClassBatchNorm(channels, recipe.classes) if recipe.generator_norm == "batch" else _NoNorm()
        self.gain = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return F.relu(x + self.gain * self.norm(self.conv(x), labels))


class _NoNorm(nn.Module):
    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return x


class ConvDiscriminator(nn.Module):
    """DCGAN's discriminator, with a projection head for classes (arXiv:1802.05637).

    images [N, C, size, size] in [-1, 1] (and labels [N]) -> logits [N].
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        start, doublings = octaves(recipe.size)
        plan = channel_plan(recipe.discriminator_width, doublings, recipe.max_channels)[::-1]
        layers: list[nn.Module] = []
        previous = recipe.channels
        for index, channels in enumerate(plan):
            normed = recipe.discriminator_norm == "batch" and index > 0
            layers += [nn.Conv2d(previous, channels, 4, stride=2, padding=1, bias=not normed)]
            layers += [nn.BatchNorm2d(channels)] if normed else []
            layers += [nn.LeakyReLU(0.2)]
            previous = channels
        self.body = nn.Sequential(*layers)
        self.spread = MinibatchStddev() if recipe.minibatch_stddev else nn.Identity()
        features = min(previous * 2, recipe.max_channels)
        self.join = nn.Sequential(
            nn.Conv2d(previous + bool(recipe.minibatch_stddev), features, 3, padding=1), nn.LeakyReLU(0.2)
        )
        self.dropout = nn.Dropout(recipe.dropout)
        self.to_logit = nn.Linear(features * start**2, 1)
        self.classes = nn.Embedding(recipe.classes, features) if recipe.classes else None
        if recipe.class_weight and not recipe.classes:
            raise RecipeError(f"class_weight is {recipe.class_weight}, but there are no classes to weigh: use 0")
        self.to_class = nn.Linear(features, recipe.classes) if recipe.classes and recipe.class_weight else None
        initialise(self, recipe)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        x = self.join(self.spread(self.body(images)))
        logit: Tensor = self.to_logit(self.dropout(x.flatten(1))).squeeze(1)
        if self.classes is not None:
            logit = logit + (self.classes(labels) * x.mean(dim=(2, 3))).sum(dim=1)
        return logit

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [N, classes] of images [N, C, size, size]; only with `recipe.class_weight`.

        Raises:
            RuntimeError: the recipe has no classes or no class weight.
        """
        if self.to_class is None:
            raise RuntimeError("this discriminator has no classifier: the recipe's class_weight is 0")
        logits: Tensor = self.to_class(self.join(self.spread(self.body(images))).mean(dim=(2, 3)))
        return logits
