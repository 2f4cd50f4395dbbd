"""Weights back out of an exported model: to go on where the run is lost, or at twice the side.

An export folds batch norms into the convolutions before them. Going back, each norm is given the deviation and mean of
what the folded convolution makes of many latents, so that in training mode, too, it lets that pass as it is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from training.checkpoint import CheckpointError
from training.layers import ClassBatchNorm, ConvGenerator, from_pixels
from training.recipe import Recipe

CALIBRATED = 512
"""Latents that a norm's deviation and mean are taken over."""
IMITATION_STEPS, IMITATION_BATCH, _RATE = 400, 32, 2e-3
"""Of Adam on what a grown generator has beyond the exported one: a minute of one core at 64 px."""
_PREFIX, _FOLDED = "generator.", ".weight_bias"


def adopt(
    generator: nn.Module, family: str, recipe: Recipe, folder: Path, *, steps: int = IMITATION_STEPS, seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[str], int]:  # fmt: skip
    """Give a fresh generator the weights of an exported one of its kind, or of one that draws at half of its side.

    In the latter case what is new learns to draw the exported one's pictures enlarged, so that training begins from
    pictures that are soft instead of from noise.

    Args:
        generator: `ConvGenerator` without classes, just made.
        family: the run's.
        recipe: the run's. For twice the side: half of the exported one's `generator_width`, so that layers fit.
        folder: `models/<name>/<version>`.
        steps: of that learning.

    Returns:
        The names of the tensors that the exported model does not have, and the images that it had seen.

    Raises:
        CheckpointError: the folder is no such model, or nothing of it fits.
    """
    manifest = _manifest(folder, family)
    if not isinstance(generator, ConvGenerator) or recipe.classes:
        raise CheckpointError(f"{folder}: only generators of convolutions without classes can be begun from a model")
    file = folder / manifest["graphs"]["generator"]["file"]
    weights = _initializers(file)
    own = generator.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if "dense.weight" not in fitting:
        here, there = (list(one["dense.weight"].shape) if "dense.weight" in one else None for one in (own, weights))
        raise CheckpointError(
            f"{folder}: its first layer is {there}, that of this recipe {here}: set latent_dim, size and"
            " generator_width to the model's, or for twice its size generator_width to half of its"
        )
    generator.load_state_dict(fitting, strict=False)
    torch.manual_seed(seed)
    undone = _undo_norms(generator, weights, fitting, recipe)
    generator.load_state_dict(fitting, strict=False)  # the statistics that the passes above have moved
    fresh = [name for name in own if name not in fitting and name.rpartition(".")[0] not in undone]
    if [name for name in fresh if name in dict(generator.named_parameters())]:
        _imitate(generator, set(fresh), recipe, file, steps, say)
    return fresh, int(manifest["provenance"]["images_seen"])


def _manifest(folder: Path, family: str) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no exported model ({error})") from error
    if manifest["family"] != family:
        raise CheckpointError(f"{folder}: a model of family {manifest['family']!r}, not {family!r}")
    found: dict[str, Any] = manifest
    return found


def _initializers(file: Path) -> dict[str, Tensor]:
    """The generator's tensors by their names in the nets; biases of folded norms keep the export's name."""
    graph = onnx.load(file).graph
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
    generator: ConvGenerator, fresh: set[str], recipe: Recipe, file: Path, steps: int, say: Callable[[str], None]
) -> None:
    """Teach the new tensors, and only them, what the exported graph draws, enlarged to the recipe's side."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    learning = [tensor for name, tensor in generator.named_parameters() if name in fresh]
    optimiser = torch.optim.Adam(learning, lr=_RATE)
    generator.train().requires_grad_(False)
    for tensor in learning:
        tensor.requires_grad_(True)
    for step in range(1, steps + 1):
        z = torch.randn(IMITATION_BATCH, recipe.latent_dim)
        drawn = from_pixels(torch.from_numpy(np.asarray(session.run(None, {"z": z.numpy()})[0])))
        target = F.interpolate(drawn, size=(recipe.size, recipe.size), mode="bilinear", align_corners=False)
        loss = F.l1_loss(generator(z), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0 or step == steps:
            say(f"imitating {file.parent}: step {step} of {steps}, mean absolute difference {loss.item() * 127.5:.1f}")
    generator.requires_grad_(True)
