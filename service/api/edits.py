"""`POST /translate` and `POST /upscale`: a picture comes in, a picture goes out; a large PNG while it is being made."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import described, problems, requests
from service.api.faults import raise_all
from service.api.negotiation import Form, choose
from service.api.parts import Parts, PartsDep
from service.api.pictures import onnxruntime_version, processor
from service.api.plain import Headers
from service.api.reading import BINARY, ERRORS, Upload, apart, openapi, pictures_held, read_upload
from service.api.record import record_of
from service.api.streaming import Streamed
from service.api.strict_json import shown
from service.api.uploads import Form as Fields
from service.errors import (
    InvalidRequest,
)
from service.imaging import FORMATS, LONGEST_SIDE, Provenance, check_side, encode, encoder_version
from service.imaging.png_stream import PngStream
from service.manifest import Task

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo
    from service.engine.pipelines.painting import Painting

router = APIRouter()

Asked = Upload[tuple[int | None, str | None]]
"""With the scale and the format."""

STREAMED_PX = 4_000_000
"""From so many pixels on a PNG is sent while it is made; below, it is encoded at once and has a Content-Length."""
_TEXT = {"type": "string"}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: described.answer(
        "The picture", {kind: {"schema": BINARY} for kind in FORMATS.values()}, "X-Model", "X-Resized", "ETag"
    ),
    **problems.responses(*ERRORS),
}
_FIELDS = {"image": BINARY, "model": _TEXT, "format": {"enum": list(FORMATS)}}


@router.post(
    "/translate",
    summary="Make one picture of another",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=openapi(
        {
            **_FIELDS,
            "mask": {
                **BINARY,
                "description": "For repair models: of the image's size, white where to fill in, or transparent.",
            },
        }
    ),
)
async def translate(request: Request, parts: PartsDep) -> Response:
    """Sketch to colour, photo repair and the like; same size, unless the model has a fixed one."""
    return await _edit(request, parts, Task.TRANSLATE, ("image", "mask", "model", "format"))


@router.post(
    "/upscale",
    summary="Enlarge a picture",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=openapi({**_FIELDS, "scale": {"type": "integer", "minimum": 2, "maximum": 16}}),
)
async def upscale(request: Request, parts: PartsDep) -> Response:
    """By the model's scale; seamless at any size."""
    return await _edit(request, parts, Task.UPSCALE, ("image", "model", "format", "scale"))


async def _edit(request: Request, parts: Parts, task: Task, known: tuple[str, ...]) -> Response:
    """Read, decode, run, encode."""
    record = record_of(request)
    record.task = task.value
    headers_in = Headers(request.scope["headers"])
    timeout_s, accept = requests.timeout_of(headers_in, parts), headers_in.joined(b"accept")
    schedule: dict[str, Any] = {"priority": requests.number_of(headers_in, "X-Priority", 1, 9) or 5}
    with ExitStack() as held:
        asked = await read_upload(request, parts, task, known, held, partial(_choices, accept))
        left_s = max(0.001, timeout_s - (perf_counter() - record.started))
        schedule |= {"timeout_s": left_s} | ({} if record.share is None else {"share": record.share})
        started = _begin(parts, task, asked, schedule)
        painting = await requests.while_connected(request, started)
        form = _form(painting, asked.choices[1], accept)
        record.model = painting.model
        headers = {"x-model": painting.model, "vary": "Accept"}
        if painting.model == asked.model.manifest.ref:
            headers["etag"] = _tag(parts, asked, form.fmt, painting)
        if painting.resized is not None:
            headers["x-resized"] = f"{painting.resized[1]}x{painting.resized[0]}"
        if form.fmt == "png" and painting.height * painting.width >= STREAMED_PX:
            first = await requests.while_connected(request, _first(painting))
            record.take(painting.tally)  # type: ignore[arg-type]
            record.images = 1
            return Streamed(_pieces(parts, painting, first, held.pop_all()), headers, FORMATS["png"])
        held.enter_context(pictures_held(request, parts).taken(painting.height * painting.width))
        pixels = await requests.while_connected(request, painting.whole())
        record.take(painting.tally)  # type: ignore[arg-type]
        started_s = perf_counter()
        mark, options = _mark(parts, painting), parts.encode_options
        body = await apart(parts, lambda: encode(pixels, form.fmt, mark, options))
    record.stages["encode"] = perf_counter() - started_s
    record.images = 1
    return Response(body, 200, headers, form.media_type)


def _form(painting: "Painting", fmt: str | None, accept: str | None) -> Form:
    """In which format the answer comes, among those that hold its sides: told before anything is run.

    Raises:
        InvalidRequest: the format asked for does not hold them.
        NotAcceptable: see `choose`.
    """
    side = max(painting.height, painting.width)
    if fmt is not None:
        check_side(fmt, side)
    return choose("image", fmt, 1, accept, tuple(one for one in FORMATS if side <= LONGEST_SIDE[one]))


async def _begin(parts: Parts, task: Task, asked: Asked, schedule: dict[str, Any]) -> "Painting":
    """Hand the picture to the engine."""
    name, picture = asked.name, asked.picture
    if task is Task.UPSCALE:
        return await parts.engine.upscale(name, picture.rgb, alpha=picture.alpha, scale=asked.choices[0], **schedule)
    return await parts.engine.translate(name, picture.rgb, alpha=picture.alpha, mask=asked.mask, **schedule)


def _choices(accept: str | None, form: Fields, model: "ModelInfo") -> tuple[int | None, str | None]:
    """Scale and format, where they are given.

    Raises:
        InvalidRequest: a field is wrong; all that are, are told.
        NotAcceptable: `accept` has none of our formats.
    """
    fmt, text, spec = form.fields.get("format"), form.fields.get("scale"), model.manifest.upscale
    wrong = []
    if fmt is not None and fmt not in FORMATS:
        detail = f"format is {shown(fmt)}, must be one of {', '.join(FORMATS)}"
        wrong.append(InvalidRequest(detail, field="format", allowed=list(FORMATS)))
    if text is not None and spec is not None and text.strip().lower().removeprefix("x") != str(spec.scale):
        detail = f"scale is {shown(text)}; this model has {spec.scale}"
        wrong.append(InvalidRequest(detail, field="scale", allowed=[spec.scale]))
    raise_all(wrong)
    choose("image", fmt, 1, accept)
    return (None if text is None or spec is None else spec.scale), fmt


def _tag(parts: Parts, asked: Asked, fmt: str, painting: "Painting") -> str:
    """A strong ETag: the answer is a function of the upload, the model, and who computes and writes it."""
    streamed = fmt == "png" and painting.height * painting.width >= STREAMED_PX
    # A streamed PNG is packed by bands, whose height follows the tiles'.
    bands = parts.settings.tile_side if streamed else None
    writer = [fmt, encoder_version(fmt, parts.encode_options), parts.settings.provenance, bands]
    names = [asked.model.fingerprint, asked.digest, writer, onnxruntime_version(), processor()]
    return f'"{hashlib.sha256(repr(names).encode()).hexdigest()[:32]}"'


def _mark(parts: Parts, painting: "Painting") -> Provenance | None:
    return Provenance({"model": painting.model}) if parts.settings.provenance else None


async def _first(painting: "Painting") -> npt.NDArray[np.uint8]:
    """The first band: what can still be refused with a status is refused here."""
    return await anext(aiter(painting.bands))


async def _pieces(
    parts: Parts, painting: "Painting", first: npt.NDArray[np.uint8], held: ExitStack
) -> AsyncGenerator[bytes, None]:
    """The PNG's bytes; the next tiles run while a band is packed and sent."""
    mark = _mark(parts, painting)
    chunks = mark.png_chunks() if mark else ()
    writer = PngStream(painting.height, painting.width, painting.channels, chunks)
    with held:
        async with aclosing(painting.bands) as bands:  # type: ignore[type-var]
            yield writer.head()
            packing = asyncio.ensure_future(apart(parts, partial(writer.rows, first)))
            async for band in bands:  # made while the one before it is packed
                yield await packing
                packing = asyncio.ensure_future(apart(parts, partial(writer.rows, band)))
            yield await packing
        yield writer.end()
