"""What a request for images is made of: which graph takes what, the rows it is fed, seeds, latents and classes."""

import functools
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.engine.latents import (
    check_latents,
    check_seed,
    check_truncation,
    labels_from_seeds,
    latents_of,
)
from service.engine.loaded import LoadedModel
from service.engine.pipelines import styles
from service.engine.session import Array
from service.errors import GraphMismatch, InvalidRequest, TooLarge
from service.manifest import GenerateSpec, Manifest

Label = int | str
Labels = Sequence[Label] | Label | None


class Rows(NamedTuple):
    """A request made ready to run.

    Args:
        inputs: of the graph that draws; of the mapping graph where there are styles.
        seeds: one for each image; None where latents or a mix were given.
        labels: one for each image; None for an unconditional model and where classes are mixed.
        key: equal keys are equal pictures; None where chance or the caller drew z.
        way: of a model with styles, in place of `inputs`.
        recipes: for each image what it takes beyond seed, label and truncation to ask for it again, in the words of the
            HTTP body; None for plain requests.
    """

    inputs: dict[str, Array]
    seeds: tuple[int | None, ...]
    labels: tuple[str | None, ...]
    truncation: float
    key: Hashable | None
    way: styles.Way | None = None
    recipes: tuple[Mapping[str, object], ...] | None = None
    asked: Hashable | None = None
    """What was asked for, where chance drew z: who comes back is drawn another."""


@dataclass(frozen=True)
class Wiring:
    """Which graph draws and the names of its tensors.

    Args:
        classes: where the label is a weight for each class, their number; None where it is an index.
        styled: the space of styles, whose mapping that graph is.
    """

    graph: str
    latent: str
    label: str | None
    image: str
    classes: int | None = None
    styled: styles.Styles | None = None


def drawing_graph(manifest: Manifest) -> str:
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


def wiring_of(model: LoadedModel) -> Wiring:
    """Of a loaded model; worked out once."""
    found: Wiring | None = model.wiring
    if found is None and model.manifest.generate is not None and model.manifest.generate.style_layers is not None:
        styled = styles.styles_of(model)
        space = styled.space
        found = model.wiring = Wiring(space.mapping, space.z, space.label, space.image, styled=styled)
    if found is None:
        name = drawing_graph(model.manifest)
        graph = model.manifest.graphs[name]
        of_kind = {tensor.kind: tensor for tensor in graph.inputs}
        image = next(tensor.name for tensor in graph.outputs if tensor.kind == "image")
        label = of_kind.get("label")
        weighed = None if label is None or label.dtype == "int64" else label.shape[1]
        assert weighed is None or isinstance(weighed, int)  # the manifest has been checked
        named = None if label is None else label.name
        found = model.wiring = Wiring(name, of_kind["latent"].name, named, image, weighed)
    return found


def labels_as_fed(wiring: Wiring, classes: npt.NDArray[np.int64]) -> Array:
    """Classes [N] as the graph takes them: indices, or one weight of 1 for each row, [N, classes] float32."""
    if wiring.classes is None:
        return classes
    return _rows_of_one(wiring.classes)[classes]


@functools.cache
def _rows_of_one(classes: int) -> Array:
    """A weight of 1 for each class alone, [classes, classes]: the same for every request."""
    return np.eye(classes, dtype=np.float32)


def seeds_and_latents(
    spec: GenerateSpec,
    seeds: Sequence[int] | None,
    count: int | None,
    latents: npt.ArrayLike | None,
    max_images: int,
) -> tuple[list[int] | None, npt.NDArray[np.float32]]:
    """The seeds (None where latents are given outright) and z, [N, D]."""
    if count is not None or latents is not None:
        check_alone(seeds=seeds, count=count, latents=latents)
    if latents is not None:
        z = check_latents(latents, spec.latent_dim)
        check_number(len(z), max_images, "latents")
        return None, z
    drawn = drawn_seeds(seeds, count, max_images)
    return drawn, latents_of(drawn, spec.latent_dim)


def check_alone(**arguments: object) -> None:
    """Of what says which images, at most one may be given.

    Raises:
        InvalidRequest: names the second.
    """
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) > 1:
        *others, last = arguments
        raise InvalidRequest(
            f"{given[1]}: give one of {', '.join(others)} and {last}, not {' and '.join(given)}", field=given[1]
        )


def drawn_seeds(seeds: Sequence[int] | None, count: int | None, max_images: int) -> list[int]:
    """The seeds that are given, checked; or so many by chance, one where nobody says."""
    if seeds is not None:
        check_number(len(seeds), max_images, "seeds")
        field = "seeds" if len(seeds) > 1 else "seed"
        return [check_seed(seed, field=field) for seed in seeds]
    number = 1 if count is None else count
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidRequest(f"count: {count!r} is not a whole number", field="count")
    check_number(number, max_images, "count")
    return [secrets.randbits(32) for _ in range(number)]


def check_truncated(model: LoadedModel, truncation: float) -> float:
    """The truncation, if the model takes it.

    Raises:
        InvalidRequest: field `truncation`.
    """
    truncation, spec = check_truncation(truncation), model.manifest.generate
    if truncation != 1.0 and spec is not None and not spec.truncation:
        raise InvalidRequest(f"truncation: {model.ref} takes only 1", field="truncation", allowed=[1])
    return truncation


def check_number(images: int, max_images: int, field: str) -> None:
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
    indices = [class_of(spec.labels, label) for label in listed]
    return np.array(indices * (images if len(indices) == 1 else 1), np.int64)


def class_of(names: tuple[str, ...], label: object) -> int:
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
