"""Picture to a larger picture: `POST /upscale`'s arguments to tiles, and tiles back to bands of rows."""

import asyncio

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
from service.engine.pipelines.translate import as_channels, check_ends, check_picture, with_alpha
from service.engine.resample import bleed, enlarge, on_white
from service.errors import GraphMismatch, ImageTooLarge, InvalidRequest
from service.manifest import GraphSpec, Manifest, Task, UpscaleSpec


def check(manifest: Manifest) -> None:
    """Hold a manifest against what this pipeline feeds: a picture; `scale` times it out.

    Raises:
        GraphMismatch: names what does not fit.
    """
    spec = manifest.upscale
    if Task.UPSCALE not in manifest.tasks or spec is None:
        return
    _, graph = picture_graph(manifest, Task.UPSCALE)
    if len(graph.inputs) != 1:
        kinds = sorted(tensor.kind for tensor in graph.inputs)
        raise GraphMismatch(f"{graph.file} takes {kinds}; upscale feeds a picture alone", model=manifest.ref)
    check_ends(manifest, spec.scale, None)


def check_scale(spec: UpscaleSpec, scale: int | None) -> None:
    """A scale that is asked for must be the model's.

    Raises:
        InvalidRequest: field `scale`.
    """
    if scale is not None and scale != spec.scale:
        raise InvalidRequest(f"scale: {scale}; this model has {spec.scale}", field="scale", allowed=[spec.scale])


def check_result(spec: UpscaleSpec, height: int, width: int, limit: int) -> None:
    """The result's size; told from a header, before anything is decoded.

    Raises:
        ImageTooLarge: more pixels than the limit.
    """
    pixels = height * width * spec.scale**2
    if pixels > limit:
        side = f"{width * spec.scale}x{height * spec.scale}"
        raise ImageTooLarge(f"image: the result would be {side}, {pixels} pixels; at most {limit}", field="image")


async def upscale(
    model: LoadedModel, rgb: Pixels, alpha: Pixels | None, scale: int | None, bounds: Bounds, schedule: Schedule
) -> Painting:
    """Make an enlargement ready; its bands run it, and hold no more than a few rows of tiles at a time.

    Raises:
        InvalidRequest: names the argument that is wrong.
        ImageTooLarge: more pixels than the model takes at once, or than a result may have.
    """
    spec = model.manifest.upscale
    assert spec is not None  # the engine has looked at `tasks`
    check_picture(rgb, alpha)
    check_scale(spec, scale)
    height, width = rgb.shape[:2]
    check_result(spec, height, width, bounds.max_result_pixels)
    name, graph = picture_graph(model.manifest, Task.UPSCALE)
    reach = geometry_of(model, name)
    check_whole(model, reach, height, width, bounds.max_whole_pixels)
    source, alpha = await asyncio.to_thread(_ready, spec, graph, rgb, alpha)
    output = tensor_of(graph.outputs, "image")
    side = 2 * bounds.tile_side // spec.scale  # what is enlarged takes the memory
    rows = lay_out(height, side, 1, reach.height, reach)
    columns = lay_out(width, side, 1, reach.width, reach)
    tally = Tally()

    def finish(band: Pixels, top: int) -> Pixels:
        if alpha is None:
            return with_alpha(band, None)
        return with_alpha(band, _rows_of(spec, alpha, top, top + len(band)))

    batcher = model.graphs[name].batcher
    bands = paint(batcher, source, (rows, columns), output, spec.scale, schedule, tally, finish)
    channels = channels_of(output, alpha)
    sides = height * spec.scale, width * spec.scale
    return Painting(model.ref, *sides, channels, len(rows) * len(columns), None, bands, tally)


def _ready(spec: UpscaleSpec, graph: GraphSpec, rgb: Pixels, alpha: Pixels | None) -> tuple[Source, Pixels | None]:
    """What the graph is fed, and the transparency of its answer. Runs in a thread: whole pictures are touched."""
    if alpha is not None and spec.alpha == "composite":
        rgb, alpha = on_white(rgb, alpha), None
    elif alpha is not None and spec.alpha == "lanczos":
        rgb = bleed(rgb, alpha)
    image = tensor_of(graph.inputs, "image")
    return Source({image.name: as_channels(rgb, image.shape[3])}, *rgb.shape[:2]), alpha


def _rows_of(spec: UpscaleSpec, alpha: Pixels, top: int, bottom: int) -> Pixels:
    """The result's transparency: smooth, or each pixel's as it is."""
    if spec.alpha == "lanczos":
        return enlarge(alpha, spec.scale, top, bottom)
    rows = alpha[np.arange(top, bottom) // spec.scale]
    return rows.repeat(spec.scale, axis=1)
