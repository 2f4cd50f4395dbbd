"""`POST /translate` and `POST /upscale`: a picture comes in, a picture goes out; a large PNG while it is being made."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api import faults, problems, requests
from service.api.negotiation import choose
from service.api.parts import Parts, PartsDep
from service.api.pictures import onnxruntime_version, processor
from service.api.plain import Headers
from service.api.record import record_of
from service.api.strict_json import shown
from service.api.uploads import FORM, Form, Part, Room, expected_bytes, query_fields, read_body, take_apart
from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    ImageTypeUnknown,
    ImageUnreadable,
    InvalidRequest,
    NotReady,
    Overloaded,
    RunFailed,
    TaskNotServed,
    UnknownModel,
)
from service.imaging import FORMATS, Provenance, encode, encoder_version
from service.imaging.decode import Decoded, decode_walked, inspect
from service.imaging.limits import Header, Limits
from service.imaging.png_stream import PngStream
from service.manifest import Task

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo
    from service.engine.pipelines.painting import Painting

T = TypeVar("T")
router = APIRouter()

STREAMED_PX = 4_000_000
"""From so many pixels on a PNG is sent while it is made; below, it is encoded at once and has a Content-Length."""
UPLOADS_HELD = 16
"""So many bodies of the largest size may be in memory at once, over all requests; beyond it 429."""
PICTURES_HELD = 4
"""So many decoded pictures of the largest size may be."""

_BINARY = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture", "content": {kind: {"schema": _BINARY} for kind in FORMATS.values()}},
    **problems.responses(
        UnknownModel,
        TaskNotServed,
        InvalidRequest,
        Overloaded,
        NotReady,
        DeadlineExceeded,
        RunFailed,
        ImageTooLarge,
        ImageTypeUnknown,
        ImageUnreadable,
        faults.NotAcceptable,
        faults.BodyTooLarge,
        faults.BodyTooSlow,
        faults.MalformedForm,
        faults.UnsupportedMediaType,
    ),
}


def _openapi(properties: dict[str, Any]) -> dict[str, Any]:
    """The form, and the bare image with the same fields in the query."""
    query = [
        {"name": name, "in": "query", "schema": schema, "description": "With a bare image as the body."}
        for name, schema in properties.items()
        if schema != _BINARY
    ]
    form = {"type": "object", "properties": properties, "required": ["image", "model"]}
    content = {FORM: {"schema": form}, "image/*": {"schema": _BINARY}}
    return {"parameters": [*query, *requests.HEADERS], "requestBody": {"required": True, "content": content}}


_FIELDS = {"image": _BINARY, "model": _TEXT, "format": {"enum": list(FORMATS)}}


@router.post(
    "/translate",
    summary="Make one picture of another",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_openapi({**_FIELDS, "mask": _BINARY}),
)
async def translate(request: Request, parts: PartsDep) -> Response:
    """Sketch to colour, photo repair and the like; same size, unless the model has a fixed one."""
    return await _edit(request, parts, Task.TRANSLATE, ("image", "mask", "model", "format"))


@router.post(
    "/upscale",
    summary="Enlarge a picture",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_openapi({**_FIELDS, "scale": {"type": "integer", "minimum": 2, "maximum": 16}}),
)
async def upscale(request: Request, parts: PartsDep) -> Response:
    """By the model's scale; seamless at any size."""
    return await _edit(request, parts, Task.UPSCALE, ("image", "model", "format", "scale"))


@dataclass(frozen=True)
class _Asked:
    """A request that was read and decoded. `name` is the model as it was asked for: another version may take its place
    before the picture is drawn. `digest` is of the uploaded bytes."""

    name: str
    model: "ModelInfo"
    picture: Decoded
    mask: npt.NDArray[np.uint8] | None
    scale: int | None
    fmt: str | None
    digest: str


async def _edit(request: Request, parts: Parts, task: Task, known: tuple[str, ...]) -> Response:
    """Read, decode, run, encode."""
    record = record_of(request)
    record.task = task.value
    headers_in = Headers(request.scope["headers"])
    timeout_s = requests.timeout_of(headers_in, parts)
    with ExitStack() as held:
        asked = await _read(request, parts, task, known, held)
        form = choose("image", asked.fmt, 1, headers_in.joined(b"accept"))
        left_s = max(0.001, timeout_s - (perf_counter() - record.started))
        schedule: dict[str, Any] = {"priority": requests.number_of(headers_in, "X-Priority", 1, 9) or 5}
        schedule |= {"timeout_s": left_s} | ({} if record.share is None else {"share": record.share})
        started = _begin(parts, task, asked, schedule)
        painting = await requests.while_connected(request, started)
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
            return _Streamed(_pieces(parts, painting, first, held.pop_all()), headers, FORMATS["png"])
        pixels = await requests.while_connected(request, painting.whole())
    record.take(painting.tally)  # type: ignore[arg-type]
    started_s = perf_counter()
    mark, options = _mark(parts, painting), parts.encode_options
    body = await _apart(parts, lambda: encode(pixels, form.fmt, mark, options))
    record.stages["encode"] = perf_counter() - started_s
    record.images = 1
    return Response(body, 200, headers, form.media_type)


async def _begin(parts: Parts, task: Task, asked: _Asked, schedule: dict[str, Any]) -> "Painting":
    """Hand the picture to the engine."""
    name, picture = asked.name, asked.picture
    if task is Task.UPSCALE:
        return await parts.engine.upscale(name, picture.rgb, alpha=picture.alpha, scale=asked.scale, **schedule)
    return await parts.engine.translate(name, picture.rgb, alpha=picture.alpha, mask=asked.mask, **schedule)


async def _read(request: Request, parts: Parts, task: Task, known: tuple[str, ...], held: ExitStack) -> _Asked:
    """The upload, checked from its header and decoded in a worker thread.

    Args:
        held: gives back the room that the picture takes, when the request ends.
    """
    record, settings = record_of(request), parts.settings
    uploads, pictures = _rooms(request, parts)
    query, timeout_s = query_fields(request), requests.timeout_of(Headers(request.scope["headers"]), parts)

    def serving(name: str) -> "Awaitable[ModelInfo]":
        return requests.once_awake(parts, partial(requests.serving, parts, name, task), timeout_s)

    if "model" in query:  # refused before a byte of the body is read
        await serving(query["model"])
    size = expected_bytes(request, settings.max_upload_bytes)
    with uploads.taken(size):
        body = await read_body(request, size, timeout_s)
        record.stages["read"] = perf_counter() - record.started
        started = perf_counter()
        content_type = request.headers.get("content-type", "")
        form = await _apart(parts, lambda: take_apart(body, content_type, query, known))
        name = _required(form, "model")
        model = await serving(name)
        record.model = model.manifest.ref
        scale, fmt = _choices(form, model)
        if "image" not in form.files:
            hint = "; it needs a filename" if "image" in form.fields else ""
            raise InvalidRequest(f"image: the form has no such file{hint}", field="image")
        limits = _limits(parts, model, task)
        header = await _apart(parts, lambda: _inspect(form.files["image"], limits, model, task, parts))
        held.enter_context(pictures.taken(header.width * header.height))
        picture, mask, digest = await _apart(parts, lambda: _decode(form, header, limits))
    record.stages["decode"] = perf_counter() - started
    return _Asked(name, model, picture, mask, scale, fmt, digest)


def _rooms(request: Request, parts: Parts) -> tuple[Room, Room]:
    """What all requests of this app share."""
    state = request.app.state
    if not hasattr(state, "rooms"):
        settings = parts.settings
        uploads = Room(UPLOADS_HELD * settings.max_upload_bytes, "bytes")
        state.rooms = uploads, Room(PICTURES_HELD * settings.max_pixels, "pixels")
    rooms: tuple[Room, Room] = state.rooms
    return rooms


def _required(form: Form, name: str) -> str:
    if not form.fields.get(name):
        raise InvalidRequest(f"{name}: needed, in the form or in the query", field=name)
    return form.fields[name]


def _choices(form: Form, model: "ModelInfo") -> tuple[int | None, str | None]:
    """Scale and format, where they are given."""
    fmt, text = form.fields.get("format"), form.fields.get("scale")
    if fmt is not None and fmt not in FORMATS:
        detail = f"format is {shown(fmt)}, must be one of {', '.join(FORMATS)}"
        raise InvalidRequest(detail, field="format", allowed=list(FORMATS))
    spec = model.manifest.upscale
    if text is None or spec is None:
        return None, fmt
    if text.strip().lower().removeprefix("x") != str(spec.scale):
        detail = f"scale is {shown(text)}; this model has {spec.scale}"
        raise InvalidRequest(detail, field="scale", allowed=[spec.scale])
    return spec.scale, fmt


def _limits(parts: Parts, model: "ModelInfo", task: Task) -> Limits:
    """The deployment's bounds, narrowed by the model's own."""
    settings = parts.settings
    spec = model.manifest.upscale if task is Task.UPSCALE else model.manifest.translate
    own = None if spec is None else spec.max_pixels
    return Limits(
        max_bytes=settings.max_upload_bytes,
        max_pixels=settings.max_pixels if own is None else min(own, settings.max_pixels),
        max_side=settings.max_side,
        max_aspect=settings.max_aspect,
        max_frames=settings.max_frames,
        max_profile_bytes=settings.max_profile_bytes,
    )


def _inspect(part: Part, limits: Limits, model: "ModelInfo", task: Task, parts: Parts) -> Header:
    """All that the header forbids, the result's size included."""
    header = inspect(part.data, limits, part.media_type)
    spec = model.manifest.upscale
    if task is Task.UPSCALE and spec is not None:
        most = parts.settings.max_result_pixels
        pixels = header.width * header.height * spec.scale**2
        if pixels > most:
            sides = f"{header.width * spec.scale}x{header.height * spec.scale}"
            raise ImageTooLarge(f"image: the result would be {sides}, {pixels} pixels; at most {most}", field="image")
    return header


def _decode(form: Form, header: Header, limits: Limits) -> tuple[Decoded, npt.NDArray[np.uint8] | None, str]:
    """The picture, the mask (its transparency, where it has any, else its brightness), and the digest of both."""
    image, mask = form.files["image"], form.files.get("mask")
    digest = hashlib.sha256(image.data)
    picture = decode_walked(image.data, header, limits)
    if mask is None:
        return picture, None, digest.hexdigest()
    digest.update(b"mask" + len(mask.data).to_bytes(8, "big"))
    digest.update(mask.data)
    try:
        found = inspect(mask.data, limits, mask.media_type)
        if sorted((found.width, found.height)) != sorted((header.width, header.height)):
            sides = f"{found.width}x{found.height} pixels, the image {header.width}x{header.height}"
            raise InvalidRequest(f"mask: is {sides}; they must be equal", field="mask")
        drawn = decode_walked(mask.data, found, limits)
    except (ImageTooLarge, ImageTypeUnknown, ImageUnreadable) as error:
        detail = error.detail.replace("image:", "mask:", 1)
        raise type(error)(detail, field="mask", allowed=error.allowed) from None
    if drawn.alpha is not None and not drawn.alpha.all():
        return picture, 255 - drawn.alpha, digest.hexdigest()
    return picture, drawn.rgb.max(axis=2), digest.hexdigest()


def _tag(parts: Parts, asked: _Asked, fmt: str, painting: "Painting") -> str:
    """A strong ETag: the answer is a function of the upload, the model, and who computes and writes it."""
    streamed = fmt == "png" and painting.height * painting.width >= STREAMED_PX
    writer = [fmt, encoder_version(fmt, parts.encode_options), parts.settings.provenance, streamed]
    names = [asked.model.fingerprint, asked.digest, writer, onnxruntime_version(), processor()]
    return f'"{hashlib.sha256(repr(names).encode()).hexdigest()[:32]}"'


def _mark(parts: Parts, painting: "Painting") -> Provenance | None:
    return Provenance({"model": painting.model}) if parts.settings.provenance else None


async def _first(painting: "Painting") -> npt.NDArray[np.uint8]:
    """The first band: what can still be refused with a status is refused here."""
    return await anext(aiter(painting.bands))


async def _apart(parts: Parts, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(parts.encoders, work)


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
            packing = asyncio.ensure_future(_apart(parts, partial(writer.rows, first)))
            async for band in bands:  # made while the one before it is packed
                yield await packing
                packing = asyncio.ensure_future(_apart(parts, partial(writer.rows, band)))
            yield await packing
        yield writer.end()


class _Streamed(StreamingResponse):
    """Ends its source when the client leaves."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], headers: dict[str, str], media_type: str) -> None:
        super().__init__(pieces, 200, headers, media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()
