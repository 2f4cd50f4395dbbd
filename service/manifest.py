"""The contract between `training` and `service`: what a server must know to feed a model's weights.

A manifest holds nothing about one deployment. See docs/manifest.md for every field with an example.
"""

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA: Literal[1] = 1
"""Raised by any change beyond an optional field."""

MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
ARRAYS_FILE = "arrays.npz"
CARD_FILE = "CARD.md"
SAMPLES_FILE = "samples.png"

NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
_SYMBOL = re.compile(r"^(?:(?P<factor>[1-9][0-9]*)\*)?(?P<symbol>[a-z][a-z0-9_]*)$")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
"""A bare name inside the model's folder: no separators, so a manifest cannot point outside it."""
DirectionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Dimension = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=_SYMBOL.pattern)]
"""A fixed size, a symbol (`batch`, `height`) or a multiple of one (`4*height`)."""


class Task(StrEnum):
    """What a model can be asked for."""

    GENERATE = "generate"
    TRANSLATE = "translate"
    UPSCALE = "upscale"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Frozen):
    """One input or output of a graph. `shape[0]` is always `batch`: one row per sample.

    Images are uint8 NHWC on both sides; pre- and post-processing is in the graph. Labels are int64 [batch], or a weight
    for each class, float32 [batch, classes].
    """

    name: str = Field(min_length=1, max_length=128)
    kind: Literal["image", "mask", "latent", "noise", "label", "text"]
    dtype: Literal["uint8", "float32", "int64"]
    shape: tuple[Dimension, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shape[0] != "batch":
            raise ValueError(f"tensor {self.name!r}: the first dimension is {self.shape[0]!r}, must be 'batch'")
        if self.kind in ("image", "mask") and (self.dtype != "uint8" or len(self.shape) != 4):
            raise ValueError(f"tensor {self.name!r}: {self.kind}s are uint8 [batch, height, width, channels]")
        indices, weights = self.dtype == "int64", self.dtype == "float32" and len(self.shape) == 2
        if self.kind == "label" and not indices and not weights:
            raise ValueError(f"tensor {self.name!r}: labels are int64 [batch], or weights float32 [batch, classes]")
        if self.kind in ("latent", "noise", "text") and self.dtype != "float32":
            raise ValueError(f"tensor {self.name!r}: {self.kind} tensors are float32")
        return self


class GraphSpec(_Frozen):
    """One ONNX file and the tensors at its ends."""

    file: FileName
    sha256: Sha256
    opset: int = Field(ge=13)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for side in (self.inputs, self.outputs):
            names = [tensor.name for tensor in side]
            if len(set(names)) != len(names):
                raise ValueError(f"graph {self.file}: tensor names repeat: {names}")
        return self


class FileSpec(_Frozen):
    """A further file of the model's folder."""

    file: FileName
    sha256: Sha256


class GenerateSpec(_Frozen):
    """How `POST /generate` feeds the model.

    `labels` are the classes in index order, or null for an unconditional model. `style_layers` is null for a
    model without w space; there truncation multiplies z. With it, one graph maps z to w, another takes w for each layer
    (and perhaps noise), and `mean_w` is among the arrays. `directions` names the rows of the array of that name: steps
    in w, or in z for a model without w space, that requests may ask for.
    """

    latent: Literal["normal"] = "normal"
    latent_dim: int = Field(ge=1, le=65536)
    labels: tuple[str, ...] | None = None
    truncation: bool = True
    style_layers: int | None = Field(default=None, ge=1)
    directions: tuple[DirectionName, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.directions)) != len(self.directions):
            raise ValueError(f"generate.directions repeat: {list(self.directions)}")
        if self.labels is not None and (not self.labels or len(set(self.labels)) != len(self.labels)):
            raise ValueError("generate.labels must be distinct and not empty, or null")
        return self


class TranslateSpec(_Frozen):
    """How `POST /translate` feeds the model: sides padded to `multiple`, or resized to `size` (height, width)."""

    multiple: int = Field(default=1, ge=1)
    size: tuple[int, int] | None = None
    alpha: Literal["composite", "keep", "lanczos"] = "composite"
    mask: Literal["required", "optional"] | None = None
    max_pixels: int | None = Field(default=None, ge=1)


class UpscaleSpec(_Frozen):
    """How `POST /upscale` feeds the model."""

    scale: int = Field(ge=2, le=16)
    alpha: Literal["composite", "keep", "lanczos"] = "lanczos"
    max_pixels: int | None = Field(default=None, ge=1)


class Provenance(_Frozen):
    """Where the weights come from."""

    recipe: dict[str, object]
    dataset: str
    images_seen: int = Field(ge=0)
    commit: str
    seed: int


class Evaluation(_Frozen):
    """One figure on held-out images. `floor` is real against real, computed in the same run."""

    metric: str
    value: float
    samples: int = Field(ge=1)
    floor: float | None = None


class Manifest(_Frozen):
    """`manifest.json`. `name` and `version` equal the folders' names: `models/<name>/<version>/`."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    name: Name
    version: int = Field(ge=1)
    family: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    graphs: dict[Name, GraphSpec] = Field(min_length=1)
    arrays: FileSpec | None = None
    golden: FileSpec
    generate: GenerateSpec | None = None
    translate: TranslateSpec | None = None
    upscale: UpscaleSpec | None = None
    provenance: Provenance
    evaluation: tuple[Evaluation, ...] = ()
    license: str
    paper: str

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @property
    def ref(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        for task in Task:
            asked, given = task in self.tasks, getattr(self, task.value) is not None
            if asked != given:
                where = "is in tasks but has no block" if asked else "has a block but is not in tasks"
                raise ValueError(f"{task.value} {where}")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks repeat: {[task.value for task in self.tasks]}")
        return self

    @model_validator(mode="after")
    def _generate_fits(self) -> Self:
        """The block `generate` and the graphs say the same, so a wrong export fails while it is written."""
        if (spec := self.generate) is None:
            return self
        inputs = [tensor for graph in self.graphs.values() for tensor in graph.inputs]
        if not any(tensor.kind == "latent" and tensor.shape == ("batch", spec.latent_dim) for tensor in inputs):
            raise ValueError(f"generate.latent_dim is {spec.latent_dim}, but no graph takes a latent of that length")
        if (spec.labels is not None) != any(tensor.kind == "label" for tensor in inputs):
            raise ValueError("generate.labels are the classes of a graph's label input: both or neither")
        weighed = [tensor for tensor in inputs if tensor.kind == "label" and tensor.dtype == "float32"]
        if any(tensor.shape[1] != len(spec.labels or ()) for tensor in weighed):
            raise ValueError(f"a label input has {weighed[0].shape[1]} weights for {len(spec.labels or ())} classes")
        if spec.style_layers is not None and weighed:
            raise ValueError("a model with styles mixes classes in w: its label input must be int64")
        if spec.directions and self.arrays is None:
            raise ValueError("generate.directions are named, but arrays, which hold them, are missing")
        if not any(tensor.kind == "image" for graph in self.graphs.values() for tensor in graph.outputs):
            raise ValueError("generate is in tasks but no graph's output is an image")
        if spec.style_layers is None:
            return self
        if self.style_dim is None:
            raise ValueError(
                f"generate.style_layers is {spec.style_layers}, but no graph takes a latent for each layer"
            )
        if self.arrays is None:
            raise ValueError("generate.style_layers is set, but arrays, with mean_w, are missing")
        return self

    @property
    def style_dim(self) -> int | None:
        """Length of w: of the latent [batch, style_layers, length] that a graph takes; None without such."""
        layers = self.generate.style_layers if self.generate is not None else None
        for graph in self.graphs.values():
            for tensor in graph.inputs:
                if tensor.kind == "latent" and len(tensor.shape) == 3 and tensor.shape[1] == layers:
                    return tensor.shape[2] if isinstance(tensor.shape[2], int) else None
        return None


def resolve_dimension(dimension: int | str, symbols: dict[str, int]) -> int:
    """The size of one dimension, given the symbols' sizes: `"4*height"` with height 16 is 64.

    Raises:
        KeyError: the symbol has no size.
    """
    if isinstance(dimension, int):
        return dimension
    match = _SYMBOL.match(dimension)
    if match is None:
        raise ValueError(f"{dimension!r} is neither a size, a symbol nor a multiple of one")
    return int(match["factor"] or 1) * symbols[match["symbol"]]
