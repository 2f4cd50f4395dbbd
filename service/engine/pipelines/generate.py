"""Latent or class to image: `POST /generate`'s arguments to rows, and rows back to images."""

import secrets
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.engine.entries import USUAL, Answer
from service.engine.fairness import Share
from service.engine.latents import (
    check_latents,
    check_seed,
    check_truncation,
    labels_from_seeds,
    latents_from_seeds,
    truncate,
)
from service.engine.loaded import LoadedModel
from service.engine.pipelines import styles
from service.engine.session import Array
from service.errors import GanymedeError, GraphMismatch, InvalidRequest, TooLarge
from service.manifest import GenerateSpec, Manifest, Task

Labels = Sequence[int | str] | int | str | None


class Rows(NamedTuple):
    """A request made ready to run. `key`: equal keys are equal pictures; None where chance or the caller drew z."""

    inputs: dict[str, Array]
    seeds: tuple[int | None, ...]
    labels: tuple[str | None, ...]
    truncation: float
    key: Hashable | None


class Drawn(NamedTuple):
    """[N, H, W, C] uint8, and the batcher's answer with its timings."""

    images: npt.NDArray[np.uint8]
    answer: Answer


@dataclass(frozen=True)
class _Wiring:
    """Which graph draws and the names of its tensors; `styled`: the space of styles, whose mapping that graph is."""

    graph: str
    latent: str
    label: str | None
    image: str
    styled: styles.Styles | None = None


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


def draw(
    model: LoadedModel,
    rows: Rows,
    done: Callable[[Drawn | Exception], None],
    priority: int = USUAL,
    deadline_s: float | None = None,
    lone: bool = False,
    share: Share | None = None,
) -> Callable[[], None]:
    """Begin to draw the images of one request.

    Args:
        done: told the images or what went wrong, once; see `Batcher.enqueue`.
        deadline_s: in the event loop's time.
        lone, share: see `Batcher.submit`.

    Returns:
        What to call when nobody waits any more.

    Raises:
        Overloaded, NotReady, DeadlineExceeded: see `Batcher.submit`.
    """
    wiring = _wiring(model)
    if wiring.styled is not None:
        return styles.draw(
            model, wiring.styled, rows.inputs, rows.seeds, rows.truncation, partial(_styled, done), priority=priority,
            deadline_s=deadline_s, lone=lone, share=share,
        )  # fmt: skip
    batcher = model.graphs[wiring.graph].batcher
    told = partial(_answered, wiring.image, done)
    entry = batcher.enqueue(rows.inputs, told, priority=priority, deadline_s=deadline_s, lone=lone, share=share)
    return partial(batcher.withdraw, entry)


def _answered(image: str, done: Callable[[Drawn | Exception], None], answer: Answer | GanymedeError) -> None:
    done(Drawn(answer.outputs[image], answer) if isinstance(answer, Answer) else answer)


def _styled(
    done: Callable[[Drawn | Exception], None], answer: tuple[npt.NDArray[np.uint8], Answer] | GanymedeError
) -> None:
    done(answer if isinstance(answer, GanymedeError) else Drawn(*answer))


def prepare(
    model: LoadedModel,
    seeds: Sequence[int] | None,
    count: int | None,
    latents: npt.ArrayLike | None,
    labels: Labels,
    truncation: float,
    max_images: int,
) -> Rows:
    """Check a request against the manifest and turn it into the graph's inputs.

    At most one of seeds, count and latents is given; none of them draws one seed.

    Raises:
        InvalidRequest, TooLarge: names the argument that is wrong, in the words of the HTTP body.
    """
    manifest, wiring = model.manifest, _wiring(model)
    spec = manifest.generate
    assert spec is not None  # the caller has looked at `tasks`
    drawn, z = _seeds_and_latents(spec, seeds, count, latents, max_images)
    truncation = check_truncation(truncation)
    if truncation != 1.0 and not spec.truncation:
        raise InvalidRequest(f"truncation: {model.ref} takes only 1", field="truncation", allowed=[1])
    classes = resolve_labels(spec, labels, drawn, len(z))
    # Where there are styles, they are truncated and not z.
    inputs: dict[str, Array] = {wiring.latent: z if wiring.styled is not None else truncate(z, truncation)}
    names: tuple[str | None, ...] = (None,) * len(z)
    if classes is not None and spec.labels is not None:
        names = tuple([spec.labels[index] for index in classes])
        if wiring.label is not None:
            inputs[wiring.label] = classes
    own = (None,) * len(z) if drawn is None else tuple(drawn)
    key = None if seeds is None else (own, None if classes is None else classes.tobytes(), truncation)
    return Rows(inputs, own, names, truncation, key)


def _wiring(model: LoadedModel) -> _Wiring:
    found: _Wiring | None = model.wiring
    if found is None and model.manifest.generate is not None and model.manifest.generate.style_layers is not None:
        styled = styles.styles_of(model)
        space = styled.space
        found = model.wiring = _Wiring(space.mapping, space.z, space.label, space.image, styled)
    if found is None:
        name = _graph(model.manifest)
        graph = model.manifest.graphs[name]
        of_kind = {tensor.kind: tensor.name for tensor in graph.inputs}
        image = next(tensor.name for tensor in graph.outputs if tensor.kind == "image")
        found = model.wiring = _Wiring(name, of_kind["latent"], of_kind.get("label"), image)
    return found


def _seeds_and_latents(
    spec: GenerateSpec,
    seeds: Sequence[int] | None,
    count: int | None,
    latents: npt.ArrayLike | None,
    max_images: int,
) -> tuple[list[int] | None, npt.NDArray[np.float32]]:
    """The seeds (None where latents are given outright) and z, [N, D]."""
    if (seeds is not None) + (count is not None) + (latents is not None) > 1:
        pairs = (("seeds", seeds), ("count", count), ("latents", latents))
        given = [name for name, value in pairs if value is not None]
        raise InvalidRequest(
            f"{given[1]}: give one of seeds, count and latents, not {' and '.join(given)}", field=given[1]
        )
    if latents is not None:
        z = check_latents(latents, spec.latent_dim)
        _check_number(len(z), max_images, "latents")
        return None, z
    if seeds is not None:
        _check_number(len(seeds), max_images, "seeds")
        field = "seeds" if len(seeds) > 1 else "seed"
        drawn = [check_seed(seed, field=field) for seed in seeds]
    else:
        number = 1 if count is None else count
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidRequest(f"count: {count!r} is not a whole number", field="count")
        _check_number(number, max_images, "count")
        drawn = [secrets.randbits(32) for _ in range(number)]
    return drawn, latents_from_seeds(drawn, spec.latent_dim)


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
