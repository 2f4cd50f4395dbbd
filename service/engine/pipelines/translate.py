"""Picture to picture of the same size: `POST /translate`'s arguments to tiles, and tiles back to a picture."""

import asyncio
from dataclasses import dataclass

import numpy as np

from service.engine.loaded import LoadedModel
from service.engine.pipelines.painting import (
    Bounds,
    Painting,
    Pixels,
    Schedule,
    Source,
    Tally,
    channels_of,
    check_whole,
    geometry_of,
    lay_out,
    paint,
    picture_graph,
    tensor_of,
)
from service.engine.resample import bleed, on_white, resize
from service.engine.tiling import Span
from service.errors import GraphMismatch, InvalidRequest
from service.manifest import GraphSpec, Manifest, Task, TranslateSpec


@dataclass(frozen=True)
class Picture:
    """What a caller brings.

    Args:
        rgb: uint8 [H, W, 3].
        alpha: uint8 [H, W], or None where all is opaque.
        mask: uint8 [H, W], 128 and above where a repair model shall fill in; None takes the transparent places.
    """

    rgb: Pixels
    alpha: Pixels | None = None
    mask: Pixels | None = None


def check(manifest: Manifest) -> None:
    """Hold a manifest against what this pipeline feeds: a picture, perhaps a mask; a picture of the same size.

    Raises:
        GraphMismatch: names what does not fit.
    """
    spec = manifest.translate
    if Task.TRANSLATE not in manifest.tasks or spec is None:
        return
    _, graph = picture_graph(manifest, Task.TRANSLATE)
    kinds = sorted(tensor.kind for tensor in graph.inputs)
    if kinds != (["image", "mask"] if spec.mask else ["image"]):
        wanted = "a picture and a mask" if spec.mask else "a picture alone"
        raise GraphMismatch(f"{graph.file} takes {kinds}; translate feeds {wanted}", model=manifest.ref)
    check_ends(manifest, 1, spec.size)


def check_ends(manifest: Manifest, scale: int, size: tuple[int, int] | None) -> None:
    """Sizes and channels of the picture graph's inputs and of its picture output."""
    _, graph = picture_graph(manifest, "the task")
    given = next(tensor.shape for tensor in graph.inputs if tensor.kind == "image")
    answer = next(tensor.shape for tensor in graph.outputs if tensor.kind == "image")
    if given[3] not in (1, 3) or answer[3] not in (1, 3, 4):
        detail = f"{graph.file} takes {given[3]} channels and gives {answer[3]}; 1 or 3 are fed, 1, 3 or 4 can be sent"
        raise GraphMismatch(detail, model=manifest.ref)
    if size is not None:
        if any(isinstance(one, int) and one != wanted for one, wanted in zip(given[1:3], size, strict=True)):
            raise GraphMismatch(f"{graph.file} takes {given[1:3]}, the manifest's size is {size}", model=manifest.ref)
        return
    right = tuple(one if scale == 1 else f"{scale}*{one}" for one in given[1:3])
    if any(isinstance(one, int) for one in given[1:3]) or answer[1:3] != right:
        detail = f"{graph.file} goes from {given[1:3]} to {answer[1:3]}; open sizes, and {scale} times them, are needed"
        raise GraphMismatch(detail, model=manifest.ref)


async def translate(model: LoadedModel, picture: Picture, bounds: Bounds, schedule: Schedule) -> Painting:
    """Make a translation ready; its bands run it.

    Raises:
        InvalidRequest: names the argument that is wrong.
        ImageTooLarge: more pixels than the model takes at once.
    """
    spec = model.manifest.translate
    assert spec is not None  # the engine has looked at `tasks`
    check_picture(picture.rgb, picture.alpha, picture.mask)
    name, graph = picture_graph(model.manifest, Task.TRANSLATE)
    reach = geometry_of(model, name)
    if spec.size is None:
        high, wide, _ = picture.rgb.shape
        check_whole(model, reach, high, wide, bounds.max_whole_pixels)
    source, alpha = await asyncio.to_thread(_ready, spec, graph, picture)
    height, width = source.height, source.width
    output = tensor_of(graph.outputs, "image")
    if spec.size is None:
        rows = lay_out(height, bounds.tile_side, spec.multiple, reach.height, reach)
        columns = lay_out(width, bounds.tile_side, spec.multiple, reach.width, reach)
    else:
        rows, columns = one_tile(height), one_tile(width)
    tally = Tally()

    def finish(band: Pixels, top: int) -> Pixels:
        return with_alpha(band, None if alpha is None else alpha[top : top + len(band)])

    bands = paint(model.graphs[name].batcher, source, (rows, columns), output, 1, schedule, tally, finish)
    channels = channels_of(output, alpha)
    return Painting(model.ref, height, width, channels, len(rows) * len(columns), spec.size, bands, tally)


def one_tile(length: int) -> list[Span]:
    """An axis that is not cut."""
    return [Span(0, length, 0, length)]


def check_picture(rgb: Pixels, alpha: Pixels | None, mask: Pixels | None = None) -> None:
    """Types and shapes.

    Raises:
        InvalidRequest: names the argument.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        detail = f"image: must be uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}"
        raise InvalidRequest(detail, field="image")
    for field, plane in (("alpha", alpha), ("mask", mask)):
        if plane is None:
            continue
        if plane.ndim == 2 and plane.shape != rgb.shape[:2]:
            high, wide = plane.shape
            detail = f"{field}: is {wide}x{high} pixels, the image {rgb.shape[1]}x{rgb.shape[0]}; they must be equal"
            raise InvalidRequest(detail, field=field)
        if plane.dtype != np.uint8 or plane.ndim != 2:
            raise InvalidRequest(f"{field}: must be uint8 [height, width]", field=field)


def as_channels(rgb: Pixels, channels: int | str) -> Pixels:
    """RGB as it is, or its luma (BT.601, as JPEG has it) for a model of one channel."""
    if channels == 3:
        return rgb
    luma = rgb[:, :, 0] * np.float32(0.299) + rgb[:, :, 1] * np.float32(0.587) + rgb[:, :, 2] * np.float32(0.114)
    return np.asarray(np.rint(luma), np.uint8)[:, :, None]


def with_alpha(band: Pixels, alpha: Pixels | None) -> Pixels:
    """A band with its transparency; a model's own fourth channel goes before it."""
    if alpha is None or band.shape[2] == 4:
        return np.ascontiguousarray(band)
    colours = np.broadcast_to(band, (*band.shape[:2], 3))
    return np.concatenate([colours, alpha[:, :, None]], axis=2)


def _ready(spec: TranslateSpec, graph: GraphSpec, picture: Picture) -> tuple[Source, Pixels | None]:
    """What the graph is fed, and the transparency of its answer. Runs in a thread: whole pictures are touched."""
    hole = _hole(spec, picture)
    rgb, alpha = picture.rgb, picture.alpha
    if alpha is not None and spec.mask is not None and picture.mask is None:
        rgb, alpha = bleed(rgb, alpha), None  # it was the hole
    if alpha is not None and spec.alpha == "composite":
        rgb, alpha = on_white(rgb, alpha), None
    if alpha is not None and spec.alpha == "lanczos":
        rgb = bleed(rgb, alpha)
    if spec.size is not None:
        rgb = resize(rgb, *spec.size)
        alpha = None if alpha is None else resize(alpha[:, :, None], *spec.size)[:, :, 0]
        if hole is not None:
            touched = resize(hole[:, :, None], *spec.size)[:, :, 0] > 0
            hole = np.where(touched, np.uint8(255), np.uint8(0))
    height, width = rgb.shape[:2]
    image = tensor_of(graph.inputs, "image")
    planes = {image.name: as_channels(rgb, image.shape[3])}
    if spec.mask is not None:
        filled = np.zeros((height, width), np.uint8) if hole is None else hole
        planes[tensor_of(graph.inputs, "mask").name] = filled[:, :, None]
    return Source(planes, height, width), alpha


def _hole(spec: TranslateSpec, picture: Picture) -> Pixels | None:
    """Where to fill in, 255 or 0: from the mask, else from transparency."""
    if spec.mask is None:
        if picture.mask is not None:
            raise InvalidRequest("mask: this model takes none", field="mask")
        return None
    given = picture.mask
    if given is None and picture.alpha is not None:
        given = 255 - picture.alpha
    if given is None or not (given >= 128).any():
        if spec.mask == "required":
            detail = "mask: needed: a file `mask`, white where to fill in, or transparency in the image"
            raise InvalidRequest(detail, field="mask")
        return None
    return np.where(given >= 128, np.uint8(255), np.uint8(0))
