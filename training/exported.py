"""A run that begins from an exported model: with its weights where they fit, else by imitating what it draws; and one
that has grown out of a run of half its side.

An export folds batch norms into the convolutions before them. Going back, each norm is given the deviation and mean of
what the folded convolution makes of many latents, so that in training mode, too, it lets that pass as it is.

Imitation is distillation of one generator into another (Hinton, Vinyals and Dean, arXiv:1503.02531, for classifiers):
the same latent, the same picture, by the mean absolute difference. What it leaves soft, the discriminator sharpens.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from service.errors import PackageError
from service.manifest import Manifest
from service.package import read_package
from training.attributes import Drawer
from training.checkpoint import CheckpointError
from training.layers import ClassBatchNorm, ConvGenerator, from_pixels
from training.recipe import Recipe
from training.translators import FILLING

CALIBRATED = 512
"""Latents that a norm's deviation and mean are taken over."""
GROWN_KIMG, GROWN_RATE = 12.0, 2e-3
"""Of what a grown generator has beyond the exported one: a minute of one core at 64 px."""
BATCH = 16
POOLED = 4
"""Differences count a second time as means of so many pixels squared, in which colours and shapes weigh more."""
SAID = 250
"""Steps from one line of progress to the next."""
_PREFIX, _FOLDED = "generator.", ".weight_bias"


def adopt(
    generator: nn.Module, family: str, recipe: Recipe, folder: Path, *, say: Callable[[str], None] = lambda line: None,
) -> tuple[list[str], int]:  # fmt: skip
    """Give a fresh generator the weights of an exported model, or teach it to draw the same.

    Between generators that turn images into images, of one family and without batch norm, weights go over by name; the
    last layer begins anew where the recipe's `output` is another. Between DCGANs, weights go over to one of the same
    side, and to one of twice the side, whose new octave is then taught to draw the model's pictures enlarged. Any other
    generator is taught so as a whole, for `imitation_kimg` of the recipe. Training begins from pictures that are soft
    instead of from noise.

    Args:
        generator: z [N, latent_dim] to images [N, C, size, size] in [-1, 1], just made. A method `plain`, of the same
            shapes, is what is taught where it has one: without the random parts of training.
        family: the run's.
        recipe: the run's. For twice the side: half of the exported one's `generator_width`, so that layers fit.
        folder: `models/<name>/<version>`, of a model that draws from latents, without classes, or of one that turns
            images into images.

    Returns:
        The names of the tensors that the exported model does not have, and the images that its weights, where they
        are taken over, had seen.

    Raises:
        CheckpointError: the folder is no such model, or does not fit.
    """
    manifest, seen = _manifest(folder, family, recipe), 0
    if manifest.generate is None:
        return _continue(generator, recipe, manifest, folder), manifest.provenance.images_seen
    fresh, kimg, rate = list(generator.state_dict()), recipe.imitation_kimg, recipe.learning_rate
    if isinstance(generator, ConvGenerator) and manifest.family == family:
        fresh = _take_over(generator, recipe, _initializers(folder, manifest), folder)
        seen, kimg, rate = manifest.provenance.images_seen, GROWN_KIMG, GROWN_RATE
    learning = [tensor for name, tensor in generator.named_parameters() if name in set(fresh)]
    if learning and kimg:
        drawer = Drawer(folder, manifest, threads=torch.get_num_threads())
        teacher = Teacher(
            drawer.name, lambda z: from_pixels(torch.from_numpy(drawer(drawer.mapped(z.numpy()), range(len(z)))))
        )
        _imitate(generator, learning, recipe, teacher, int(kimg * 1000 / BATCH), rate, say)
    return fresh, seen


def teach_grown(
    generator: nn.Module, small: nn.Module, fresh: Collection[str], recipe: Recipe, name: str, *,
    say: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Teach what a generator has beyond one of half its side to draw that one's pictures enlarged.

    Args:
        generator: as `adopt` has it, with the small one's weights where they fit.
        small: z [N, latent_dim] to images [N, C, size/2, size/2] in [-1, 1], in inference mode.
        fresh: the names of the tensors that the small one does not have; no other learns.
        recipe: of the generator.
        name: what the small one is called in the lines of progress.
    """
    learning = [tensor for key, tensor in generator.named_parameters() if key in fresh]
    if not learning:
        return
    # Equalised weights, of unit deviation, learn at their recipe's own rate.
    rate = GROWN_RATE if isinstance(generator, ConvGenerator) else recipe.learning_rate
    _imitate(generator, learning, recipe, Teacher(name, small), int(GROWN_KIMG * 1000 / BATCH), rate, say)


@dataclass(frozen=True)
class Teacher:
    """What is imitated: its name, and z [N, latent_dim] to images [N, C, H, W] in [-1, 1]."""

    name: str
    draws: Callable[[Tensor], Tensor]


def _take_over(generator: ConvGenerator, recipe: Recipe, weights: dict[str, Tensor], folder: Path) -> list[str]:
    """Give it the weights that fit; the names of the tensors that are new.

    Raises:
        CheckpointError: the first layer does not fit.
    """
    own = generator.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if "dense.weight" not in fitting:
        here, there = (_shape(one, "dense.weight") for one in (own, weights))
        raise CheckpointError(
            f"{folder}: its first layer is {there}, that of this recipe {here}: set size and generator_width to the"
            " model's, or for twice its size generator_width to half of its"
        )
    generator.load_state_dict(fitting, strict=False)
    undone = _undo_norms(generator, weights, fitting, recipe)
    generator.load_state_dict(fitting, strict=False)  # the statistics that the passes above have moved
    return [name for name in own if name not in fitting and name.rpartition(".")[0] not in undone]


def _manifest(folder: Path, family: str, recipe: Recipe) -> Manifest:
    try:
        manifest = read_package(folder)
    except PackageError as error:
        raise CheckpointError(f"{folder}: no exported model ({error})") from error
    told = manifest.generate
    if told is None:
        if manifest.family != family:
            raise CheckpointError(f"{folder}: a model of family {manifest.family!r}, not {family!r}")
        return manifest
    if told.labels or recipe.classes:
        raise CheckpointError(f"{folder}: only models that draw from latents alone can be begun from")
    if told.latent_dim != recipe.latent_dim:
        raise CheckpointError(f"{folder}: latent_dim is {told.latent_dim}, that of this recipe {recipe.latent_dim}")
    return manifest


def _continue(generator: nn.Module, recipe: Recipe, manifest: Manifest, folder: Path) -> list[str]:
    """Give a generator from images to images the weights of one like it; the names of the tensors that are new.

    Raises:
        CheckpointError: nets of other widths, or norms that the export has folded away.
    """
    own, weights = dict(generator.named_parameters()), _initializers(folder, manifest)
    kinds = {manifest.provenance.recipe.get("output"), recipe.output}
    afresh = len(kinds) > 1 and not kinds <= {*FILLING}
    last = {name for name in own if afresh and ".to_image." in f".{name}"}
    fitting = {
        name: weights[name]
        for name, tensor in own.items()
        if name not in last and name in weights and weights[name].shape == tensor.shape
    }
    new = [name for name in own if name not in fitting]
    misfits = [name for name in new if name not in last]
    if misfits:
        raise CheckpointError(
            f"{folder}: {misfits[0]} is {_shape(weights, misfits[0])}, that of this recipe"
            f" {_shape(own, misfits[0])}: set architecture, generator_width, residual_blocks and scale to the model's"
        )
    generator.load_state_dict(fitting, strict=False)
    return new


def _shape(tensors: Mapping[str, Tensor], name: str) -> list[int] | None:
    return list(tensors[name].shape) if name in tensors else None


def _initializers(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The generator's tensors by their names in the nets; biases of folded norms keep the export's name."""
    if "generator" not in manifest.graphs:
        raise CheckpointError(f"{folder}: only weights of one graph, named generator, can be taken over")
    graph = onnx.load(folder / manifest.graphs["generator"].file).graph
    found = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    tensors = {name.removeprefix(_PREFIX): value for name, value in found.items() if name.startswith(_PREFIX)}
    for node in graph.node:
        if node.op_type == "Expand" and node.input[0] in found:
            # A palette's colours for all pictures: what does not depend on z has lost its name by constant folding.
            tensors.setdefault("to_image.shared", found[node.input[0]])
    return tensors


def _undo_norms(
    generator: ConvGenerator, weights: dict[str, Tensor], fitting: dict[str, Tensor], recipe: Recipe
) -> set[str]:
    """Let every folded norm pass its convolution's output, shifted by the folded bias; the norms' names."""
    places = {f"ups.{k}": f"norms.{k + 1}" for k in range(len(generator.ups))}
    places |= {f"refines.{k}.conv": f"refines.{k}.norm" for k in range(len(generator.refines))}
    undone, hooks = set(), []
    for convolution, place in places.items():
        bias = weights.get(convolution + _FOLDED)
        if bias is None or f"{convolution}.weight" not in fitting:
            continue
        module = generator.get_submodule(place)
        assert isinstance(module, ClassBatchNorm)
        hooks.append(module.register_forward_pre_hook(_passing(module.norm, bias)))
        undone.add(f"{place}.norm")
    generator.train()
    with torch.no_grad():
        generator(torch.randn(CALIBRATED, recipe.latent_dim))
    for hook in hooks:
        hook.remove()
    return undone


def _passing(norm: nn.BatchNorm2d, bias: Tensor) -> Callable[[nn.Module, tuple[Tensor, Tensor | None]], None]:
    def measure(module: nn.Module, given: tuple[Tensor, Tensor | None]) -> None:
        mean, variance = given[0].mean(dim=(0, 2, 3)), given[0].var(dim=(0, 2, 3), unbiased=False)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean + bias)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    return measure


def _imitate(
    generator: nn.Module, learning: list[nn.Parameter], recipe: Recipe, teacher: Teacher, steps: int, rate: float,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Teach these parameters, and only them, what the teacher draws, enlarged to the recipe's side."""
    optimiser = torch.optim.Adam(learning, lr=rate, betas=(0.5, 0.99))
    draw, device = getattr(generator, "plain", generator), learning[0].device
    generator.train().requires_grad_(False)
    for tensor in learning:
        tensor.requires_grad_(True)
    differences: list[float] = []
    for step in range(1, steps + 1):
        scale = min(1.0, step / 100, 2 * (1 - step / (steps + 1)) + 0.02)  # up, on, and down over the second half
        for group in optimiser.param_groups:
            group["lr"] = rate * scale
        z = torch.randn(BATCH, recipe.latent_dim)
        with torch.no_grad():
            drawn = teacher.draws(z)
        target = F.interpolate(drawn.to(device), size=(recipe.size, recipe.size), mode="bilinear", align_corners=False)
        images = draw(z.to(device))
        difference = F.l1_loss(images, target)
        loss = difference + F.l1_loss(F.avg_pool2d(images, POOLED), F.avg_pool2d(target, POOLED))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        differences.append(difference.item() * 127.5)
        if step % SAID == 0 or step == steps:
            mean = sum(differences) / len(differences)
            say(f"imitating {teacher.name}: {step * BATCH / 1000:.0f} kimg, mean absolute difference {mean:.1f}")
            differences.clear()
    generator.requires_grad_(True)
