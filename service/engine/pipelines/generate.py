"""Latent or class to image: `POST /generate`'s arguments to rows, and rows back to images."""

import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from service.engine.entries import USUAL, Answer
from service.engine.latents import (
    check_latents,
    check_seed,
    check_truncation,
    labels_from_seeds,
    latents_from_seeds,
    truncate,
)
from service.engine.pipelines import styles
from service.engine.repository import LoadedModel
from service.engine.session import Array
from service.errors import GraphMismatch, InvalidRequest, TooLarge
from service.manifest import GenerateSpec, Manifest, Task

Labels = Sequence[int | str] | int | str | None


@dataclass(frozen=True)
class Request:
    """What a caller asks for; at most one of seeds, count and latents. None of them draws one seed."""

    seeds: Sequence[int] | None = None
    count: int | None = None
    latents: npt.ArrayLike | None = None
    labels: Labels = None
    truncation: float = 1.0


@dataclass(frozen=True)
class Rows:
    """A request made ready to run. `key`: equal keys are equal pictures; None where chance or the caller drew z."""

    inputs: dict[str, Array]
    seeds: tuple[int | None, ...]
    labels: tuple[str | None, ...]
    truncation: float
    key: Hashable | None


@dataclass(frozen=True)
class Drawn:
    """[N, H, W, C] uint8, and the batcher's answer with its timings."""

    images: npt.NDArray[np.uint8]
    answer: Answer


@dataclass(frozen=True)
class _Wiring:
    """Which graph draws and the names of its tensors; `styled`: it is the mapping, and `styles` knows the rest."""

    graph: str
    latent: str
    label: str | None
    image: str
    styled: bool = False


def check(manifest: Manifest) -> None:
    """Hold a manifest against what this pipeline feeds: one graph, a latent and perhaps a label in, one image out; or
    two with a space of styles in between.

    Raises:
        GraphMismatch: another set of graphs or inputs.
    """
    if Task.GENERATE not in manifest.tasks:
        return
    if manifest.generate is not None and manifest.generate.style_layers is not None:
        styles.space_of(manifest)
        return
    graph = manifest.graphs[_graph(manifest)]
    kinds = sorted(tensor.kind for tensor in graph.inputs)
    if kinds not in (["latent"], ["label", "latent"]):
        raise GraphMismatch(
            f"{graph.file} takes {kinds}; generate feeds a latent and perhaps a label", model=manifest.ref
        )


def _graph(manifest: Manifest) -> str:
    """The graph that takes the whole latent and answers with the image; others may take part of it, or an image."""
    assert manifest.generate is not None  # the caller has looked at `tasks`
    latent = ("batch", manifest.generate.latent_dim)
    drawing = [
        name
        for name, graph in manifest.graphs.items()
        if any(tensor.kind == "image" for tensor in graph.outputs)
        and any(tensor.kind == "latent" and tensor.shape == latent for tensor in graph.inputs)
    ]
    if len(drawing) != 1:
        raise GraphMismatch(f"{len(drawing)} graphs answer with an image, generate needs one", model=manifest.ref)
    return drawing[0]


async def draw(
    model: LoadedModel, rows: Rows, priority: int = USUAL, deadline_s: float | None = None, *, lone: bool = False
) -> Drawn:
    """Draw the images of one request.

    Args:
        deadline_s: in the event loop's time.
        lone: see `Batcher.submit`.

    Raises:
        Overloaded, NotReady, DeadlineExceeded, RunFailed: see `Batcher.submit`.
    """
    wiring = _wiring(model)
    if wiring.styled:
        images, answer = await styles.draw(
            model, rows.inputs, rows.seeds, rows.truncation, priority=priority, deadline_s=deadline_s, lone=lone
        )
        return Drawn(images, answer)
    batcher = model.graphs[wiring.graph].batcher
    answer = await batcher.submit(rows.inputs, priority=priority, deadline_s=deadline_s, lone=lone)
    return Drawn(answer.outputs[wiring.image], answer)


def prepare(model: LoadedModel, request: Request, max_images: int) -> Rows:
    """Check a request against the manifest and turn it into the graph's inputs.

    Raises:
        InvalidRequest, TooLarge: names the argument that is wrong, in the words of the HTTP body.
    """
    manifest, wiring = model.manifest, _wiring(model)
    spec = manifest.generate
    assert spec is not None  # the caller has looked at `tasks`
    seeds, z = _seeds_and_latents(spec, request, max_images)
    truncation = check_truncation(request.truncation)
    if truncation != 1.0 and not spec.truncation:
        raise InvalidRequest(f"truncation: {manifest.ref} takes only 1", field="truncation", allowed=[1])
    classes = resolve_labels(spec, request.labels, seeds, len(z))
    # Where there are styles, they are truncated and not z.
    inputs: dict[str, Array] = {wiring.latent: z if wiring.styled else truncate(z, truncation)}
    names: tuple[str | None, ...] = (None,) * len(z)
    if classes is not None and spec.labels is not None:
        names = tuple(spec.labels[index] for index in classes)
        if wiring.label is not None:
            inputs[wiring.label] = classes
    asked = request.seeds is not None and seeds is not None
    key = (tuple(seeds or ()), None if classes is None else classes.tobytes(), truncation) if asked else None
    return Rows(inputs, tuple(seeds) if seeds is not None else (None,) * len(z), names, truncation, key)


_wirings: WeakKeyDictionary[LoadedModel, _Wiring] = WeakKeyDictionary()


def _wiring(model: LoadedModel) -> _Wiring:
    found = _wirings.get(model)
    if found is None and model.manifest.generate is not None and model.manifest.generate.style_layers is not None:
        space = styles.found(model)
        found = _wirings[model] = _Wiring(space.mapping, space.z, space.label, space.image, styled=True)
    if found is None:
        name = _graph(model.manifest)
        graph = model.manifest.graphs[name]
        of_kind = {tensor.kind: tensor.name for tensor in graph.inputs}
        image = next(tensor.name for tensor in graph.outputs if tensor.kind == "image")
        found = _wirings[model] = _Wiring(name, of_kind["latent"], of_kind.get("label"), image)
    return found


def _seeds_and_latents(
    spec: GenerateSpec, request: Request, max_images: int
) -> tuple[list[int] | None, npt.NDArray[np.float32]]:
    """The seeds (None where latents are given outright) and z, [N, D]."""
    given = [name for name in ("seeds", "count", "latents") if getattr(request, name) is not None]
    if len(given) > 1:
        raise InvalidRequest(
            f"{given[1]}: give one of seeds, count and latents, not {' and '.join(given)}", field=given[1]
        )
    if request.latents is not None:
        z = check_latents(request.latents, spec.latent_dim)
        _check_number(len(z), max_images, "latents")
        return None, z
    if request.seeds is not None:
        _check_number(len(request.seeds), max_images, "seeds")
        seeds = [check_seed(seed, field="seeds" if len(request.seeds) > 1 else "seed") for seed in request.seeds]
    else:
        count = 1 if request.count is None else request.count
        if isinstance(count, bool) or not isinstance(count, int):
            raise InvalidRequest(f"count: {count!r} is not a whole number", field="count")
        _check_number(count, max_images, "count")
        seeds = [secrets.randbits(32) for _ in range(count)]
    return seeds, latents_from_seeds(seeds, spec.latent_dim)


def _check_number(images: int, max_images: int, field: str) -> None:
    if images < 1:
        raise InvalidRequest(f"{field}: asks for {images} images, must be 1 to {max_images}", field=field)
    if images > max_images:
        raise TooLarge(f"{field}: asks for {images} images, at most {max_images} in one request", field=field)


def resolve_labels(
    spec: GenerateSpec, labels: Labels, seeds: Sequence[int] | None, images: int
) -> npt.NDArray[np.int64] | None:
    """The class index of every image, [N] int64; None for an unconditional model.

    A name is matched exactly, else ignoring case, else as a decimal index. One label serves all images. No label
    draws one from each image's seed, so that a seed alone still means one picture.

    Raises:
        InvalidRequest: field `label`; lists the model's labels.
    """
    if spec.labels is None:
        if labels is not None:
            raise InvalidRequest("label: this model has no classes", field="label")
        return None
    if labels is None:
        if seeds is None:
            raise InvalidRequest("label: needed where latents are given", field="label", allowed=spec.labels)
        return labels_from_seeds(seeds, len(spec.labels))
    listed = [labels] if isinstance(labels, (int, str, np.integer)) else list(labels)
    if len(listed) not in (1, images):
        raise InvalidRequest(f"label: {len(listed)} labels for {images} images, give 1 or {images}", field="label")
    indices = [_class(spec.labels, label) for label in listed]
    return np.array(indices * (images if len(indices) == 1 else 1), np.int64)


def _class(names: tuple[str, ...], label: object) -> int:
    if isinstance(label, str):
        text = label.strip()
        if text in names:
            return names.index(text)
        folded = [name.casefold() for name in names]
        if text.casefold() in folded:
            return folded.index(text.casefold())
        if text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) < len(names):
            return int(text)
    elif isinstance(label, (int, np.integer)) and not isinstance(label, bool) and 0 <= label < len(names):
        return int(label)
    raise InvalidRequest(
        f"label: {label!r} is unknown; a name, or an index from 0 to {len(names) - 1}", field="label", allowed=names
    )
