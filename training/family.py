"""What a GAN family provides to the trainer and to the export. A family file ends with `FAMILY = Family(...)`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor, nn

from service.manifest import GenerateSpec, Task, TensorSpec, TranslateSpec, UpscaleSpec
from training.recipe import Recipe


@dataclass(frozen=True)
class Phase:
    """One optimiser's turn within an iteration.

    Args:
        name: passed to the family's `loss`.
        trains: names of the nets whose parameters it moves; all others are frozen meanwhile.
        every: iterations between turns.
        step: False leaves the gradients for the next phase that trains the same nets (lazy penalties).
        autocast: False keeps fp32 under a bf16 recipe (gradient penalties lose too much otherwise).
    """

    name: str
    trains: tuple[str, ...]
    every: int = 1
    step: bool = True
    autocast: bool = True


@dataclass(frozen=True)
class Batch:
    """What one phase sees: real images and fresh latents, row by row of the same class.

    Args:
        real: [N, C, H, W] float32 in [-1, 1]; the targets of an image-to-image family.
        z: [N, latent_dim] float32, standard normal; [N, 0] for an image-to-image family.
        labels: [N] int64, or None for an unconditional recipe.
        augment: differentiable augmentation of images [N, C, H, W] on their way into D.
        source: [N, C', h, w] float32 in [-1, 1], the inputs of an image-to-image family (a mask, 1 where pixels are
            missing, as fourth channel), else None.
    """

    real: Tensor
    z: Tensor
    labels: Tensor | None = None
    augment: Callable[[Tensor], Tensor] = lambda images: images
    source: Tensor | None = None

    @property
    def given(self) -> Tensor:
        """`source`, which is there in image-to-image families."""
        assert self.source is not None
        return self.source


@dataclass(frozen=True)
class Losses:
    """A phase's answer: `terms` are summed and backpropagated, `stats` are only logged (scalars, detached)."""

    terms: Mapping[str, Tensor]
    stats: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphExport:
    """One ONNX graph to be: the module takes `inputs` in order and returns `outputs` in order."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ExportSpec:
    """One model to be. `suffix` tells a family's models apart ("" for the only one)."""

    tasks: tuple[Task, ...]
    graphs: Mapping[str, GraphExport]
    suffix: str = ""
    generate: GenerateSpec | None = None
    translate: TranslateSpec | None = None
    upscale: UpscaleSpec | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A GAN method in code.

    Args:
        name: as typed on the command line.
        paper: `arXiv:...` and title.
        recipes: by name; `paper` and `modern` at least.
        nets: builds "generator", "discriminator", ... in training mode.
        phases: in the order of one iteration.
        loss: pure: phase name, nets, batch, recipe -> named scalars. The trainer owns backward, EMA and checkpoints.
        exports: what the (EMA) nets become; `classes` are the labels' names.
        conditional: True when the family needs labels.
        pairing: what it trains on: images alone, pairs of input and target, or two sets without counterparts. With the
            latter two `nets["generator"]` maps images to images.
        sheet: what a sample grid shows in a row beside input and target, from the generator, inputs and targets; None
            shows the output.
        grow: called before each iteration with the nets and the part of the run that is done, 0 to 1: for nets that
            change while they train. What it changes are whole-number buffers, which the moving average takes over.
    """

    name: str
    paper: str
    recipes: Mapping[str, Recipe]
    nets: Callable[[Recipe], nn.ModuleDict]
    phases: Callable[[Recipe], Sequence[Phase]]
    loss: Callable[[str, nn.ModuleDict, Batch, Recipe], Losses]
    exports: Callable[[nn.ModuleDict, Recipe, Sequence[str]], Sequence[ExportSpec]]
    conditional: bool = False
    pairing: Literal["none", "paired", "unpaired"] = "none"
    sheet: Callable[[nn.Module, Tensor, Tensor], Sequence[Tensor]] | None = None
    grow: Callable[[nn.ModuleDict, float, Recipe], None] | None = None
