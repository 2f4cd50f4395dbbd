"""Directions that mean something: from attributes that are known of real images to steps in a generator's latents.

A ridge regression on features of real images learns to tell each attribute; it then judges what the generator draws for
seeds, and a second one, from latents to judgements, has the direction in which the attribute changes fastest: the
normal of the plane in Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing", 2019,
arXiv:1907.10786, with degrees in place of two sides. It works on exported models of any family, in w where they have
it, else in z.
"""

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.engine.latents import labels_from_seeds, latents_from_seeds, noise_from_seeds
from service.manifest import GraphSpec, Manifest, TensorSpec
from training.datasets.errors import DataError

FLOATS = NDArray[np.float32]
Features = Callable[[NDArray[np.uint8]], FLOATS]

SEEDS = range(2**31 + 2**20, 2**32)
"""Latents to learn from: seeds that nobody asks for first."""
HELD_OUT = 5
"""Every so many-th row is kept to judge a regression by."""
STRENGTH = 2.0
"""How far each direction is walked, both ways, to see what it does."""
WALKED = 200
BATCH = 64
RIDGES = (1e1, 1e2, 1e3, 1e4)
"""Weights of the squared coefficients, columns having deviation 1; the best on held-out rows is taken."""


class AttributesError(DataError):
    """An attribute cannot be read, or says nothing."""


@dataclass(frozen=True)
class Direction:
    """One attribute's unit vector in latent space, and how far it can be trusted.

    `told`: correlation of the judge with the attribute on held-out real images. `linear`: correlation of the linear
    guess from latents with the judge on held-out seeds. `less`, `more`: the judgement in the attribute's deviations
    after STRENGTH against the direction and along it, less that of the untouched picture; means over WALKED seeds.
    """

    name: str
    vector: FLOATS
    told: float
    linear: float
    less: float
    more: float


def attribute_values(lines: Sequence[Mapping[str, Any]], field: str) -> FLOATS:
    """Numbers [N] for a field of `attributes.jsonl`.

    Args:
        lines: one object for each image.
        field: its path, `hair.color`; and perhaps a pattern, `mouth.id=smile*`, for 1 where it matches. Without one,
            numbers are taken as they are, `#rrggbb` as lightness 0 to 1, other texts as 1 unless they are `none`.

    Raises:
        AttributesError: no such field, of a kind that cannot be read, or the same in every line.
    """
    path, _, pattern = field.partition("=")
    values = np.array([_value(line, path, pattern) for line in lines], np.float32)
    if values.size == 0 or np.ptp(values) == 0:
        raise AttributesError(f"attribute {field!r} is the same for all {len(lines)} images")
    return values


def _value(line: Mapping[str, Any], path: str, pattern: str) -> float:
    found: Any = line
    for step in path.split("."):
        if not isinstance(found, Mapping) or step not in found:
            known = ", ".join(sorted(found)) if isinstance(found, Mapping) else "nothing below it"
            raise AttributesError(f"attribute {path!r}: there is no {step!r}; there is {known}")
        found = found[step]
    if pattern:
        return float(fnmatch.fnmatchcase(str(found), pattern))
    if isinstance(found, int | float):
        return float(found)
    if isinstance(found, str) and len(found) == 7 and found.startswith("#"):
        red, green, blue = bytes.fromhex(found[1:])
        return (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    if isinstance(found, str):
        return float(found != "none")
    raise AttributesError(f"attribute {path!r} is {type(found).__name__}, must be a number, a text or a colour")


def read_attributes(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The lines of a prepared set's attributes.jsonl, in the order of its images.

    Raises:
        AttributesError: the set has none.
    """
    try:
        text = (folder / "attributes.jsonl").read_text()
    except OSError:
        raise AttributesError(f"{folder} has no attributes.jsonl: nothing is known of its images") from None
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["split"] == split]


def drawing_graphs(manifest: Manifest) -> tuple[GraphSpec, GraphSpec | None]:
    """What draws from latents, w for each layer where the model has styles and else z; and what maps z to w.

    Raises:
        AttributesError: the model does not generate, or not by just one graph.
    """
    spec = manifest.generate
    if spec is None:
        raise AttributesError(f"{manifest.ref} does not generate")
    graphs = list(manifest.graphs.values())
    styled = spec.style_layers is not None
    draws = [graph for graph in graphs if _drawn(graph) == {"image"} and _latent_rank(graph) == (3 if styled else 2)]
    if not styled:  # the levels of a pyramid take a part of z each
        draws = [graph for graph in draws if _latent(graph).shape[1] == spec.latent_dim]
    if len(draws) != 1:
        raise AttributesError(f"{manifest.ref}: {len(draws)} of its graphs draw from a latent, must be one")
    if not styled:
        return draws[0], None
    return draws[0], next(graph for graph in graphs if _drawn(graph) == {"latent"} and _latent_rank(graph) == 2)


class Drawer:
    """An exported generator: latents [N, D] (w where it has styles, else z) to images, with the noise of seed 0.

    Args:
        folder: of the model; manifest: its.
        threads: of each run; 0: one for each core.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 0) -> None:
        draws, maps = drawing_graphs(manifest)
        spec = manifest.generate
        assert spec is not None  # it draws
        self.name, self._spec = manifest.ref, spec
        self._draw = GraphSession(folder / draws.file, draws, spec.latent_dim, threads)
        self._map = None if maps is None else GraphSession(folder / maps.file, maps, spec.latent_dim, threads)

    def latents(self, seeds: Sequence[int]) -> FLOATS:
        """What the seeds mean where directions are: [N, D]."""
        z = latents_from_seeds(seeds, self._spec.latent_dim)
        return z if self._map is None else self._map(latent=z, label=self._labels(seeds))

    def mapped(self, z: FLOATS) -> FLOATS:
        """The latents that a model without classes draws from: z [N, D] itself, or its w."""
        return z if self._map is None else self._map(latent=z)

    def __call__(self, latents: FLOATS, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images uint8 [N, H, W, C]; the classes, where there are any, are those of the seeds."""
        if self._spec.style_layers:
            latents = np.repeat(latents[:, None], self._spec.style_layers, axis=1)
        images: NDArray[np.uint8] = self._draw(latent=latents, label=self._labels(seeds), noise=None)
        return images

    def _labels(self, seeds: Sequence[int]) -> NDArray[Any] | None:
        return labels_from_seeds(seeds, len(self._spec.labels)) if self._spec.labels else None


class GraphSession:
    """A graph on the CPU, fed by the kinds of its inputs, with the noise of seed 0.

    Args:
        model: its file, or what it holds.
        graph: its inputs and outputs.
        threads: of each run; 0: one for each core.
    """

    def __init__(self, model: Path | bytes, graph: GraphSpec, latent_dim: int, threads: int) -> None:
        self._graph, self._latent_dim = graph, latent_dim
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, **values: NDArray[Any] | None) -> Any:
        """The first output; `latent`, and `label` [N] int64 where it takes classes, one row for each answer."""
        rows = len(values["latent"])  # type: ignore[arg-type]
        feeds = {tensor.name: self._feed(tensor, values.get(tensor.kind), rows) for tensor in self._graph.inputs}
        parts = []
        for start in range(0, rows, BATCH):
            parts.append(self._session.run(None, {k: v[start : start + BATCH] for k, v in feeds.items()})[0])
        return np.concatenate(parts)

    def _feed(self, tensor: Any, value: NDArray[Any] | None, rows: int) -> NDArray[Any]:
        if tensor.kind == "noise":
            return np.repeat(noise_from_seeds([0], self._latent_dim, int(tensor.shape[1])), rows, axis=0)
        assert value is not None
        if tensor.kind == "label" and tensor.dtype == "float32":  # a weight for each class
            value = np.eye(int(tensor.shape[1]), dtype=np.float32)[value]
        return value


def _drawn(graph: GraphSpec) -> set[str]:
    return {tensor.kind for tensor in graph.outputs}


def _latent(graph: GraphSpec) -> TensorSpec:
    return next(tensor for tensor in graph.inputs if tensor.kind == "latent")


def _latent_rank(graph: GraphSpec) -> int:
    return len(_latent(graph).shape) if any(tensor.kind == "latent" for tensor in graph.inputs) else 0


def learn(
    drawer: Drawer, real: FLOATS, attributes: Mapping[str, FLOATS], features: Features, *, count: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[Direction]:  # fmt: skip
    """One direction for each attribute.

    Args:
        real: features [N, F] of real images.
        attributes: name -> its value for each of them, [N].
        features: of images, as `real`'s.
        count: seeds to learn from.
    """
    seeds = SEEDS[:count]
    latents = drawer.latents(seeds)
    drawn = features(drawer(latents, seeds))
    say(f"{count} seeds are drawn")
    walked, found = latents[:WALKED], []
    for name, values in attributes.items():
        scaled = (values - values.mean()) / values.std()
        judge, told = ridge(real, scaled)
        slope, linear = ridge(latents, judge(drawn))
        vector = (slope.weights / np.linalg.norm(slope.weights)).astype(np.float32)
        here = judge(drawn[:WALKED]).mean()
        less, more = (
            float(judge(features(drawer(walked + step * vector, seeds[:WALKED]))).mean() - here)
            for step in (-STRENGTH, STRENGTH)
        )
        found.append(Direction(name, vector, told, linear, less, more))
        say(f"{name}: told {told:.2f}, linear {linear:.2f}, {less:+.2f} to {more:+.2f} deviations")
    return found


@dataclass(frozen=True)
class Ridge:
    """y = (x - centre) weights + offset."""

    weights: NDArray[np.float64]
    centre: NDArray[np.float64]
    offset: float

    def __call__(self, x: FLOATS) -> NDArray[np.float64]:
        """x [N, F] to [N]."""
        y: NDArray[np.float64] = (x - self.centre) @ self.weights + self.offset
        return y


def ridge(x: FLOATS, y: NDArray[Any]) -> tuple[Ridge, float]:
    """Least squares with small coefficients, and its correlation with y on the rows that are kept to judge by."""
    held = np.arange(len(x)) % HELD_OUT == 0
    learnt, best, found = x[~held].astype(np.float64), -np.inf, None
    centre, deviation = learnt.mean(axis=0), learnt.std(axis=0) + 1e-6
    scaled, target = (learnt - centre) / deviation, y[~held].astype(np.float64)
    gram, right = scaled.T @ scaled, scaled.T @ (target - target.mean())
    for weight in RIDGES:
        weights = np.linalg.solve(gram + weight * np.eye(len(gram)), right) / deviation
        fitted = Ridge(weights, centre, float(target.mean()))
        score = float(np.corrcoef(fitted(x[held]), y[held])[0, 1])
        if score > best:
            best, found = score, fitted
    if found is None:
        raise AttributesError("what is to be learnt does not vary on the rows that are kept to judge by")
    return found, best
