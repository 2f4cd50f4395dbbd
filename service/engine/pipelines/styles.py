"""Models with a space of styles: a graph from z to w, and one from w for each layer (and noise) to the image.

The constant noise is that of seed 0, so that a picture depends on its seed and on nothing else, and pictures of one
model differ by their styles alone. A seed's w is kept: it does not depend on the truncation.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.engine.batcher import Batcher
from service.engine.entries import Answer, Done, Entry
from service.engine.fairness import Share
from service.engine.latents import noise_from_seeds
from service.engine.loaded import LoadedModel
from service.engine.session import Array
from service.errors import GanymedeError, GraphMismatch
from service.manifest import GraphSpec, Manifest, TensorSpec

KEPT_STYLES = 4096
"""w of so many seeds is kept for each model: 1 MB at a length of 64, 8 MB at 512."""

Floats = npt.NDArray[np.float32]
Told = Callable[[tuple[npt.NDArray[np.uint8] | None, Answer | None, Floats] | GanymedeError], None]


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
class Styles:
    """A loaded model's space, its mean w [D], constant noise [1, K] and the w of seeds asked for lately, the last one
    last."""

    space: Space
    mean_w: Floats
    noise: Floats
    known: OrderedDict[Hashable, Floats] = field(default_factory=OrderedDict)


class Way(NamedTuple):
    """How the images of one request come about.

    Args:
        inputs: of the mapping graph: z [S, D] and perhaps labels [S] of the points that are needed; S may be 0.
        seeds: of these points, whose w is kept; None where z was given.
        assemble: from their w [S, D] to what is drawn, [N, layers, D].
        noise: [N, K]; None draws with the constant noise.
    """

    inputs: dict[str, Array]
    seeds: Sequence[int | None]
    assemble: Callable[[Floats], Floats]
    noise: Floats | None = None


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
    pictures = _of(graph.inputs, "image")  # else it is an encoder
    return not pictures and [tensor.shape for tensor in given] == [("batch", latent_dim)] and len(answers) == 1


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


def styles_of(model: LoadedModel) -> Styles:
    """What a loaded model's requests share."""
    space, spec = space_of(model.manifest), model.manifest.generate
    assert spec is not None
    noise = noise_from_seeds([0], spec.latent_dim, space.noise_dim)
    noise.setflags(write=False)  # shared by all requests
    return Styles(space, model.arrays["mean_w"].astype(np.float32), noise)


def draw(
    model: LoadedModel, styles: Styles, way: Way, done: Told, *, priority: int, deadline_s: float | None, lone: bool,
    drawn: bool = True, share: Share | None = None, key: Hashable | None = None,
) -> Callable[[], None]:  # fmt: skip
    """Begin to draw the images of one request: w of the seeds that are not known yet, then the images.

    Args:
        styles: the model's own, from `styles_of`.
        way: what to draw.
        done: told the images [N, H, W, C], the answer of the last graph with the time of both, and the styles that were
            drawn [N, layers, D]; or what went wrong.
        drawn: False stops at the styles: there are no images then, and no answer where nothing had to be mapped.

    Returns:
        What to call when nobody waits any more.

    Raises:
        Overloaded, NotReady, DeadlineExceeded: see `Batcher.enqueue`; `done` is not called.
    """
    enqueue = partial(Batcher.enqueue, priority=priority, deadline_s=deadline_s, lone=lone, share=share, key=key)
    drawing = _Drawing(model, styles, way, done, enqueue, drawn)
    drawing.begin()
    return drawing.withdraw


class _Drawing:
    """One request on its way through both graphs."""

    def __init__(
        self, model: LoadedModel, styles: Styles, way: Way, done: Told,
        enqueue: Callable[[Batcher, dict[str, Array], Done], Entry], drawn: bool,
    ) -> None:  # fmt: skip
        self._model, self._way, self._done, self._drawn = model, way, done, drawn
        self._enqueue, self._styles, self._space = enqueue, styles, styles.space
        self._keys = _keys(self._space, way.inputs, way.seeds)
        self._missing = [row for row, key in enumerate(self._keys) if key is None or key not in styles.known]
        self._w = np.empty((len(self._keys), styles.mean_w.shape[0]), np.float32)
        self._assembled: Floats
        self._mapped: Answer | None = None
        self._waits: tuple[Batcher, Entry] | None = None
        self._withdrawn = False

    def begin(self) -> None:
        """Take the w that are known, and ask for the others."""
        for row, key in enumerate(self._keys):
            if key is not None and key in self._styles.known:
                self._styles.known.move_to_end(key)
                self._w[row] = self._styles.known[key]
        if not self._missing:
            self._synthesise()
            return
        whole = len(self._missing) == len(self._keys)
        inputs = self._way.inputs
        asked = inputs if whole else {name: rows[self._missing] for name, rows in inputs.items()}
        batcher = self._model.graphs[self._space.mapping].batcher
        entry = self._enqueue(batcher, asked, self._take_styles)
        if self._waits is None:  # else a short run is over already, and its successor waits
            self._waits = (batcher, entry)

    def withdraw(self) -> None:
        """Nobody waits any more."""
        self._withdrawn = True
        if self._waits is not None:
            batcher, entry = self._waits
            batcher.withdraw(entry)

    def _take_styles(self, answer: Answer | GanymedeError) -> None:
        if not isinstance(answer, Answer):
            self._done(answer)
            return
        self._mapped, known = answer, self._styles.known
        self._w[self._missing] = answer.outputs[self._space.w]
        for row in self._missing:
            if self._keys[row] is not None:
                known[self._keys[row]] = self._w[row].copy()
        while len(known) > KEPT_STYLES:
            known.popitem(last=False)
        if self._withdrawn:
            return
        try:
            self._synthesise()
        except GanymedeError as error:  # refused only now: the second queue is another one
            self._done(error)

    def _synthesise(self) -> None:
        self._assembled = self._way.assemble(self._w)
        if not self._drawn:
            self._done((None, self._mapped, self._assembled))
            return
        fed = fed_of(self._styles, self._assembled, self._way.noise)
        batcher = self._model.graphs[self._space.synthesis].batcher
        self._waits = (batcher, self._enqueue(batcher, fed, self._finish))

    def _finish(self, answer: Answer | GanymedeError) -> None:
        if not isinstance(answer, Answer):
            self._done(answer)
            return
        both = [one for one in (self._mapped, answer) if one is not None]
        self._done((answer.outputs[self._space.image], _together(both), self._assembled))


def fed_of(shared: Styles, styles: Floats, noise: Floats | None) -> dict[str, Array]:
    """The inputs of the synthesis: styles [N, layers, D] and noise [N, K], the constant one where none is given."""
    fed: dict[str, Array] = {shared.space.styles: styles}
    if shared.space.noise is not None:
        fed[shared.space.noise] = np.repeat(shared.noise, len(styles), axis=0) if noise is None else noise
    return fed


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


def plainly(w: Floats, mean_w: Floats, truncation: float, layers: int) -> Floats:
    """The styles of w [N, D] truncated, the same in each layer: [N, layers, D]."""
    return spread(truncate_styles(w, mean_w, truncation), layers)


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
