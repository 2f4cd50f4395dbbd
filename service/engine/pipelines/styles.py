"""Models with a space of styles: a graph from z to w, and one from w for each layer (and noise) to the image.

The constant noise is that of seed 0, so that a picture depends on its seed and on nothing else, and pictures of one
model differ by their styles alone. A seed's w is kept: it does not depend on the truncation.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from service.engine.entries import Answer
from service.engine.latents import noise_from_seeds
from service.engine.repository import LoadedModel
from service.engine.session import Array
from service.errors import GraphMismatch
from service.manifest import GraphSpec, Manifest, TensorSpec

KEPT_STYLES = 4096
"""w of so many seeds is kept for each model: 1 MB at a length of 64, 8 MB at 512."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Space:
    """What of a model lies where: its two graphs and the names of their tensors."""

    mapping: str
    z: str
    label: str | None
    w: str
    synthesis: str
    styles: str
    layers: int
    noise: str | None
    noise_dim: int
    image: str


@dataclass
class _Kept:
    """A loaded model's mean w [D], constant noise [1, K] and the w of seeds asked for lately, the last one last."""

    mean_w: Floats
    noise: Floats
    styles: OrderedDict[Hashable, Floats] = field(default_factory=OrderedDict)


_spaces: WeakKeyDictionary[LoadedModel, tuple[Space, _Kept]] = WeakKeyDictionary()


def space_of(manifest: Manifest) -> Space:
    """Find the two graphs.

    Raises:
        GraphMismatch: names what does not fit.
    """
    spec = manifest.generate
    assert spec is not None and spec.style_layers is not None  # the caller has looked
    mapping = _only(manifest, "map z to w", lambda graph: _maps(graph, spec.latent_dim))
    synthesis = _only(manifest, "draw styles", lambda graph: _draws(graph, spec.style_layers))
    one, two = manifest.graphs[mapping], manifest.graphs[synthesis]
    _check_kinds(manifest, one, ["latent"], ["label", "latent"])
    _check_kinds(manifest, two, ["latent"], ["latent", "noise"])
    w, styles = _first(one.outputs, "latent"), _first(two.inputs, "latent")
    if w.shape[1:] != styles.shape[2:]:
        detail = f"{two.file} takes styles of length {styles.shape[2]}, {one.file} gives w {list(w.shape)}"
        raise GraphMismatch(detail, model=manifest.ref)
    labels, noises = (_of(graph.inputs, kind) for graph, kind in ((one, "label"), (two, "noise")))
    noise_dim = 0
    for noise in noises:
        if len(noise.shape) != 2 or not isinstance(noise.shape[1], int):
            detail = f"{two.file} takes noise {list(noise.shape)}, must be [batch, numbers]"
            raise GraphMismatch(detail, model=manifest.ref)
        noise_dim = noise.shape[1]
    return Space(
        mapping=mapping,
        z=_first(one.inputs, "latent").name,
        label=labels[0].name if labels else None,
        w=w.name,
        synthesis=synthesis,
        styles=styles.name,
        layers=spec.style_layers,
        noise=noises[0].name if noises else None,
        noise_dim=noise_dim,
        image=_first(two.outputs, "image").name,
    )


def _maps(graph: GraphSpec, latent_dim: int) -> bool:
    given, answers = _of(graph.inputs, "latent"), _of(graph.outputs, "latent")
    return [tensor.shape for tensor in given] == [("batch", latent_dim)] and len(answers) == 1


def _draws(graph: GraphSpec, layers: int | None) -> bool:
    given, answers = _of(graph.inputs, "latent"), _of(graph.outputs, "image")
    return [tensor.shape[1:2] for tensor in given if len(tensor.shape) == 3] == [(layers,)] and len(answers) == 1


def _only(manifest: Manifest, do: str, fits: Callable[[GraphSpec], bool]) -> str:
    found = [name for name, graph in manifest.graphs.items() if fits(graph)]
    if len(found) != 1:
        raise GraphMismatch(f"{len(found)} graphs {do}, a model with style_layers needs one", model=manifest.ref)
    return found[0]


def _check_kinds(manifest: Manifest, graph: GraphSpec, *right: list[str]) -> None:
    kinds = sorted(tensor.kind for tensor in graph.inputs)
    if kinds not in right:
        wanted = " or ".join(str(one) for one in right)
        raise GraphMismatch(f"{graph.file} takes {kinds}; {wanted} is fed", model=manifest.ref)


def _of(tensors: Sequence[TensorSpec], kind: str) -> list[TensorSpec]:
    return [tensor for tensor in tensors if tensor.kind == kind]


def _first(tensors: Sequence[TensorSpec], kind: str) -> TensorSpec:
    return _of(tensors, kind)[0]


def found(model: LoadedModel) -> Space:
    """The space of a loaded model."""
    return _space_and_kept(model)[0]


def _space_and_kept(model: LoadedModel) -> tuple[Space, _Kept]:
    if (known := _spaces.get(model)) is None:
        space, spec = space_of(model.manifest), model.manifest.generate
        assert spec is not None
        noise = noise_from_seeds([0], spec.latent_dim, space.noise_dim)
        noise.setflags(write=False)  # shared by all requests
        known = _spaces[model] = (space, _Kept(model.arrays["mean_w"].astype(np.float32), noise))
    return known


async def draw(
    model: LoadedModel, inputs: dict[str, Array], seeds: Sequence[int | None], truncation: float, *,
    priority: int, deadline_s: float | None, lone: bool,
) -> tuple[npt.NDArray[np.uint8], Answer]:  # fmt: skip
    """Images [N, H, W, C], and the answer of the last graph with the time of both.

    Args:
        inputs: of the mapping graph: z [N, D] and perhaps labels [N].
        seeds: whose w is kept; None where z was given.
        truncation: w is pulled towards the mean: 1 leaves it, 0 gives the mean picture.

    Raises:
        Overloaded, NotReady, DeadlineExceeded, RunFailed: see `Batcher.submit`.
    """
    space, kept = _space_and_kept(model)
    mapped: list[Answer] = []
    keys = _keys(space, inputs, seeds)
    missing = [row for row, key in enumerate(keys) if key is None or key not in kept.styles]
    w = np.empty((len(keys), kept.mean_w.shape[0]), np.float32)
    for row, key in enumerate(keys):
        if key is not None and key in kept.styles:
            kept.styles.move_to_end(key)
            w[row] = kept.styles[key]
    if missing:
        asked = {name: rows if len(missing) == len(rows) else rows[missing] for name, rows in inputs.items()}
        batcher = model.graphs[space.mapping].batcher
        mapped.append(await batcher.submit(asked, priority=priority, deadline_s=deadline_s, lone=lone))
        w[missing] = mapped[0].outputs[space.w]
        for row in missing:
            if keys[row] is not None:
                kept.styles[keys[row]] = w[row].copy()
        while len(kept.styles) > KEPT_STYLES:
            kept.styles.popitem(last=False)
    fed: dict[str, Array] = {space.styles: spread(truncate_styles(w, kept.mean_w, truncation), space.layers)}
    if space.noise is not None:
        fed[space.noise] = np.repeat(kept.noise, len(w), axis=0)
    answer = await model.graphs[space.synthesis].batcher.submit(
        fed, priority=priority, deadline_s=deadline_s, lone=lone
    )
    return answer.outputs[space.image], _together([*mapped, answer])


def _keys(space: Space, inputs: dict[str, Array], seeds: Sequence[int | None]) -> list[Hashable]:
    """What each row's w depends on: its seed and its class; None where z was given."""
    labels = inputs[space.label].tolist() if space.label is not None else [None] * len(seeds)
    return [None if seed is None else (seed, label) for seed, label in zip(seeds, labels, strict=True)]


def truncate_styles(w: Floats, mean_w: Floats, truncation: float) -> Floats:
    """w [N, D] pulled towards the mean [D]: 1 leaves it as it is, 0 is the mean, bit for bit."""
    if truncation == 1.0:
        return w
    if truncation == 0.0:
        return np.repeat(mean_w[np.newaxis], len(w), axis=0)
    return mean_w + np.float32(truncation) * (w - mean_w)


def spread(w: Floats, layers: int) -> Floats:
    """w [N, D] for every layer: [N, layers, D]."""
    return np.repeat(w[:, np.newaxis], layers, axis=1)


def _together(answers: Sequence[Answer]) -> Answer:
    """The last answer, with the time and the runs of all."""
    last = answers[-1]
    return Answer(
        last.outputs, sum(one.queue_s for one in answers), sum(one.run_s for one in answers), last.batch_rows,
        sum(one.runs for one in answers),
    )  # fmt: skip
