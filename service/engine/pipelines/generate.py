"""Latent or class to image: `POST /generate`'s arguments to rows, and rows back to images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.engine.entries import USUAL, Answer
from service.engine.fairness import Share
from service.engine.latents import truncate
from service.engine.loaded import LoadedModel
from service.engine.pipelines import styles
from service.engine.pipelines.rows import (
    Labels,
    Rows,
    check_truncated,
    drawing_graph,
    labels_as_fed,
    resolve_labels,
    seeds_and_latents,
    wiring_of,
)
from service.engine.pipelines.steered import check_reach, prepare_steered, settle
from service.engine.session import Array
from service.engine.steering import Steering
from service.engine.wire import base64_of
from service.errors import GanymedeError, GraphMismatch
from service.manifest import Manifest, Task

Floats = npt.NDArray[np.float32]

PLAIN = Steering()


class Drawn(NamedTuple):
    """[N, H, W, C] uint8, the batcher's answer with its timings, and what was drawn: z [N, D], or styles
    [N, layers, D]."""

    images: npt.NDArray[np.uint8]
    answer: Answer
    latents: Floats


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
    graph = manifest.graphs[drawing_graph(manifest)]
    kinds = sorted(tensor.kind for tensor in graph.inputs)
    if kinds not in (["latent"], ["label", "latent"]):
        raise GraphMismatch(
            f"{graph.file} takes {kinds}; generate feeds a latent and perhaps a label", model=manifest.ref
        )


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
    wiring = wiring_of(model)
    if wiring.styled is not None and rows.way is not None:
        return styles.draw(
            model, wiring.styled, rows.way, partial(_styled, done), priority=priority, deadline_s=deadline_s, lone=lone,
            share=share, key=rows.asked,
        )  # fmt: skip
    batcher = model.graphs[wiring.graph].batcher
    told = partial(_answered, wiring.image, rows.inputs[wiring.latent], done)
    entry = batcher.enqueue(
        rows.inputs, told, priority=priority, deadline_s=deadline_s, lone=lone, share=share, key=rows.asked
    )
    return partial(batcher.withdraw, entry)


def _answered(
    image: str, latents: Floats, done: Callable[[Drawn | Exception], None], answer: Answer | GanymedeError
) -> None:
    done(Drawn(answer.outputs[image], answer, latents) if isinstance(answer, Answer) else answer)


def _styled(
    done: Callable[[Drawn | Exception], None],
    answer: tuple[npt.NDArray[np.uint8] | None, Answer | None, Floats] | GanymedeError,
) -> None:
    if isinstance(answer, GanymedeError):
        done(answer)
        return
    images, last, latents = answer
    assert images is not None and last is not None  # drawing was asked for
    done(Drawn(images, last, latents))


def prepare(
    model: LoadedModel,
    seeds: Sequence[int] | None,
    count: int | None,
    latents: npt.ArrayLike | None,
    labels: Labels,
    truncation: float,
    max_images: int,
    steering: Steering | None = None,
) -> Rows:
    """Check a request against the manifest and turn it into the graph's inputs.

    At most one of seeds, count, latents and the steering's mixes is given; none of them draws one seed.

    Raises:
        InvalidRequest, TooLarge: names the argument that is wrong, in the words of the HTTP body.
    """
    manifest, wiring = model.manifest, wiring_of(model)
    spec = manifest.generate
    assert spec is not None  # the caller has looked at `tasks`
    if steering is not None and (steering := settle(model, wiring, steering)):
        return prepare_steered(model, wiring, seeds, count, latents, labels, truncation, max_images, steering)
    drawn, z = seeds_and_latents(spec, seeds, count, latents, max_images)
    truncation = check_truncated(model, truncation)
    classes = resolve_labels(spec, labels, drawn, len(z))
    inputs: dict[str, Array] = {}
    names: tuple[str | None, ...] = (None,) * len(z)
    if classes is not None and spec.labels is not None:
        names = tuple([spec.labels[index] for index in classes])
        if wiring.label is not None:
            inputs[wiring.label] = labels_as_fed(wiring, classes)
    own = (None,) * len(z) if drawn is None else tuple(drawn)
    recipes = None if latents is None else tuple({"latents": base64_of(row)} for row in z)
    asked = ("drawn", len(z)) if seeds is None and latents is None else None
    key = None if seeds is None else (own, None if classes is None else classes.tobytes(), truncation)
    if wiring.styled is None:
        drawn_z = truncate(z, truncation)
        if latents is not None and truncation > 1:
            check_reach(drawn_z, PLAIN, truncation)
        return Rows({wiring.latent: drawn_z, **inputs}, own, names, truncation, key, None, recipes, asked)
    styled = wiring.styled  # whose w is truncated, and not z
    to_styles = partial(styles.plainly, mean_w=styled.mean_w, truncation=truncation, layers=styled.space.layers)
    way = styles.Way({wiring.latent: z, **inputs}, own, to_styles)
    return Rows({}, own, names, truncation, key, way, recipes, asked)
