"""Uploaded pictures: read within the limits, checked from their headers, decoded apart from the event loop."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import Request

from service.api import faults, requests
from service.api.intake import Turns
from service.api.parts import Parts
from service.api.plain import Headers
from service.api.record import record_of
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
from service.imaging.decode import Decoded, decode_walked, inspect
from service.imaging.limits import Header, Limits
from service.manifest import Task

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo

C = TypeVar("C")
T = TypeVar("T")

BINARY = {"type": "string", "format": "binary"}
ERRORS = (
    UnknownModel, TaskNotServed, InvalidRequest, Overloaded, NotReady, DeadlineExceeded, RunFailed, ImageTooLarge,
    ImageTypeUnknown, ImageUnreadable, faults.NotAcceptable, faults.BodyTooLarge, faults.BodyTooSlow,
    faults.MalformedForm, faults.UnsupportedMediaType,
)  # fmt: skip
"""How a request with a picture may end."""
UPLOADS_HELD = 16
"""So many bodies of the largest size may be in memory at once, over all requests; beyond it 429."""
PICTURES_HELD = 4
"""So many decoded pictures of the largest size may be."""


def openapi(properties: dict[str, Any]) -> dict[str, Any]:
    """The form, and the bare image with the same fields in the query."""
    query = [
        {"name": name, "in": "query", "schema": schema, "description": "With a bare image as the body."}
        for name, schema in properties.items()
        if schema.get("format") != "binary"
    ]
    form = {"type": "object", "properties": properties, "required": ["image", "model"]}
    content = {FORM: {"schema": form}, "image/*": {"schema": BINARY}}
    return {"parameters": [*query, *requests.HEADERS], "requestBody": {"required": True, "content": content}}


@dataclass(frozen=True)
class Upload(Generic[C]):
    """A request that was read and decoded. `name` is the model as it was asked for: another version may take its place
    before the picture is drawn. `choices` are what its fields ask for, `digest` is of the uploaded bytes."""

    name: str
    model: "ModelInfo"
    picture: Decoded
    mask: npt.NDArray[np.uint8] | None
    choices: C
    digest: str


async def read_upload(
    request: Request, parts: Parts, task: Task, known: tuple[str, ...], held: ExitStack,
    choose: "Callable[[Form, ModelInfo], C]",
) -> Upload[C]:  # fmt: skip
    """The upload, checked from its header and decoded in a worker thread.

    Args:
        known: names of the form's files and fields.
        choose: reads what the other fields ask of the model; called before the picture is decoded.
        held: gives back the room that the picture takes, when the request ends.
    """
    record, settings = record_of(request), parts.settings
    uploads, pictures, turns = _shared(request, parts)
    query, timeout_s = query_fields(request), requests.timeout_of(Headers(request.scope["headers"]), parts)

    def serving(name: str) -> "Awaitable[ModelInfo]":
        left_s = requests.left_of(record, timeout_s)
        return requests.once_awake(parts, partial(requests.serving, parts, name, task), left_s)

    if "model" in query:  # refused before a byte of the body is read
        await serving(query["model"])
    size = expected_bytes(request, settings.max_upload_bytes)
    with uploads.growing(size) as reach:
        body = await read_body(request, size, requests.left_of(record, timeout_s), turns, reach)
        record.stages["read"] = perf_counter() - record.started
        started = perf_counter()
        content_type = request.headers.get("content-type", "")
        form = await apart(parts, lambda: take_apart(body, content_type, query, known))
        name = _required(form, "model")
        model = await serving(name)
        record.model = model.manifest.ref
        choices = choose(form, model)
        if "image" not in form.files:
            raise InvalidRequest("image: the form has no such file", field="image")
        limits = _limits(parts, model, task)
        header = await apart(parts, lambda: _inspect(form.files["image"], limits, model, task, parts))
        held.enter_context(pictures.taken(header.width * header.height))
        picture, mask, digest = await apart(parts, lambda: _decode(form, header, limits))
    record.stages["decode"] = perf_counter() - started
    return Upload(name, model, picture, mask, choices, digest)


async def apart(parts: Parts, work: Callable[[], T]) -> T:
    """Done by a thread that encodes."""
    return await asyncio.get_running_loop().run_in_executor(parts.encoders, work)


def pictures_held(request: Request, parts: Parts) -> Room:
    """How many pixels all requests of this app hold, decoded or as results that are encoded whole."""
    return _shared(request, parts)[1]


def _shared(request: Request, parts: Parts) -> tuple[Room, Room, Turns]:
    """What all requests of this app share."""
    state = request.app.state
    if not hasattr(state, "rooms"):
        settings = parts.settings
        uploads = Room(UPLOADS_HELD * settings.max_upload_bytes, "bytes")
        state.rooms = uploads, Room(PICTURES_HELD * settings.max_pixels + settings.max_result_pixels, "pixels")
        state.turns = Turns()
    return *state.rooms, state.turns


def _required(form: Form, name: str) -> str:
    if not form.fields.get(name):
        raise InvalidRequest(f"{name}: needed, in the form or in the query", field=name)
    return form.fields[name]


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
