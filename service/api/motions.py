"""`POST /interpolate` and `GET /interpolate`: frames on a way, as one file or sent while they are made.

What can be asked is in motion_body, what is written in motion_writer.
"""

import hashlib
import json
from contextlib import aclosing
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import described, faults, problems, requests
from service.api.hot import PINNED_CACHE_S
from service.api.motion_body import (
    FPS,
    FPS_MOST,
    FRAMES,
    MOTION_FORMATS,
    SHAPES,
    InterpolateRequest,
    parse_interpolate,
    parse_interpolate_query,
)
from service.api.motion_writer import BOUNDARY, Pieces, Writer
from service.api.negotiation import MIXED, NDJSON, MotionForm, choose_motion, matches
from service.api.parts import Parts, PartsDep
from service.api.pictures import HEADER_CHARACTERS, mark_of, onnxruntime_version, processor
from service.api.plain import Headers
from service.api.reading import apart
from service.api.record import Record, record_of
from service.api.streaming import Streamed
from service.api.strict_json import object_of, read_body
from service.engine.blending import METHODS
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    RunFailed,
    TaskNotServed,
    TooLarge,
    UnknownModel,
)
from service.imaging import FORMATS, Provenance, encoder_version
from service.imaging.animation import ANIMATIONS, Pace, animation_version
from service.manifest import Task

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo, Motion

router = APIRouter()
TASK = "interpolate"
SHAPES_WRITTEN = {"zip": "zip-2", "stream": "stream-2"}
"""Part of the ETag where a shape's bytes have changed for the same pictures."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_TYPES = dict.fromkeys((*ANIMATIONS.values(), *FORMATS.values(), "application/zip", MIXED, NDJSON), _BINARY)
_HEADERS = ("X-Model", "X-Frames", "X-Recipe", "ETag")
_ERRORS = (
    UnknownModel, TaskNotServed, InvalidRequest, TooLarge, Overloaded, NotReady, DeadlineExceeded, RunFailed,
    faults.NotAcceptable,
)  # fmt: skip
_BODY_ERRORS = (*_ERRORS, faults.MalformedBody, faults.BodyTooLarge, faults.BodyTooSlow, faults.UnsupportedMediaType)


def _query(name: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema}


_QUERY = [
    _query("model", {"type": "string"}, required=True),
    _query("seeds", {"type": "string"}, required=True),
    _query("frames", {"type": "integer", "minimum": 2, "default": FRAMES}),
    _query("method", {"enum": list(METHODS)}),
    _query("space", {"enum": ["z", "w"]}),
    _query("loop", {"type": "boolean", "default": False}),
    _query("fps", {"type": "integer", "minimum": 1, "maximum": FPS_MOST, "default": FPS}),
    _query("label", {"type": "string"}),
    _query("truncation", {"type": "number", "minimum": 0, "maximum": 2, "default": 1}),
    _query("truncation_cutoff", {"type": "integer", "minimum": 0}),
    _query("directions", {"type": "string"}),
    _query("noise", {"type": "string"}),
    _query("noise_seed", {"type": "integer", "minimum": 0}),
    _query("format", {"enum": list(MOTION_FORMATS)}),
    _query("as", {"enum": list(SHAPES)}),
]


@router.post(
    "/interpolate",
    summary="Frames on a way through key frames",
    response_class=Response,
    responses={200: described.answer("The frames", _TYPES, *_HEADERS), **problems.responses(*_BODY_ERRORS)},
    openapi_extra={
        "parameters": requests.HEADERS,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InterpolateRequest"}}},
        },
    },
)
async def interpolate(request: Request, parts: PartsDep) -> Response:
    """Through seeds, latents or mixes; linear, spherical or cubic; in z or w."""
    headers = Headers(request.scope["headers"])
    record_of(request).task = TASK
    body = await read_body(request, requests.timeout_of(headers, parts))
    asked = parse_interpolate(object_of(body, headers), max_images=parts.settings.max_images)
    return await _answer(request, parts, asked, {})


@router.get(
    "/interpolate",
    summary="An animation by its URL",
    response_class=Response,
    responses={
        200: described.answer("The frames", _TYPES, *_HEADERS),
        304: {"description": "The client's copy is current"},
        **problems.responses(*_ERRORS),
    },
    openapi_extra={"parameters": [*_QUERY, *requests.HEADERS]},
)
async def animation(request: Request, parts: PartsDep) -> Response:
    """The same as `POST /interpolate` through seeds, cacheable."""
    record_of(request).task = TASK
    pairs = parse_qsl(request.url.query, keep_blank_values=True)
    asked = parse_interpolate_query(pairs, max_images=parts.settings.max_images)
    model = await _serving(request, parts, asked)
    pinned = asked.model == model.ref
    seconds = PINNED_CACHE_S if pinned else parts.settings.cache_s
    cache = f"{parts.cached_by}, max-age={seconds}" + (", immutable" if pinned else "")
    return await _answer(request, parts, asked, {"cache-control": cache})


async def _serving(request: Request, parts: Parts, asked: InterpolateRequest) -> "ModelInfo":
    timeout_s = requests.timeout_of(Headers(request.scope["headers"]), parts)
    return await requests.once_awake(parts, partial(requests.serving, parts, asked.model, Task.GENERATE), timeout_s)


async def _answer(request: Request, parts: Parts, asked: InterpolateRequest, headers: dict[str, str]) -> Response:
    """Latents of all frames, then the frames, in the form that is wanted."""
    record, headers_in = record_of(request), Headers(request.scope["headers"])
    record.stages["read"] = perf_counter() - record.started
    model = await _serving(request, parts, asked)
    record.model = model.ref
    form = choose_motion(asked.as_, asked.format, headers_in.joined(b"accept"))
    tag = _tag(parts, model, asked, form)
    headers |= {"x-model": model.ref, "vary": "Accept"} | ({} if tag is None else {"etag": tag})
    if request.method == "GET" and tag is not None and matches(tag, headers_in.joined(b"if-none-match")):
        return Response(None, 304, headers)
    motion = await requests.while_connected(request, _begin(parts, asked, record, headers_in))
    if motion.model != model.ref:  # another version came in between: the tag names the one before
        record.model = headers["x-model"] = motion.model
        headers.pop("etag", None)
    recipe = {"model": motion.model, **asked.recipe(), "method": motion.method, "space": motion.space}
    telling = Provenance(recipe).text()
    headers |= {"x-frames": str(motion.frames)} | ({"x-recipe": telling} if len(telling) <= HEADER_CHARACTERS else {})
    writer = Writer(parts, motion, form, Pace(asked.fps), mark_of(recipe, motion.model), recipe)
    if (pieces := writer.pieces()) is not None:
        first = await requests.while_connected(request, anext(pieces))  # what has a status is refused here
        _note(record, motion)
        kind = f"{MIXED}; boundary={BOUNDARY}" if form.shape == "stream" else form.media_type
        return Streamed(_after(first, pieces), headers, kind)
    frames = await requests.while_connected(request, motion.whole())
    _note(record, motion)
    started = perf_counter()
    body = await apart(parts, partial(writer.whole, frames))
    record.stages["encode"] = perf_counter() - started
    return Response(body, 200, headers, form.media_type)


async def _begin(parts: Parts, asked: InterpolateRequest, record: Record, headers: Headers) -> "Motion":
    from service.engine.engine import KeyFrame, Track  # here: a test with its own engine needs no onnxruntime

    keys = [KeyFrame(*key) for key in asked.key_frames()]
    track = Track(asked.frames, asked.method, asked.space, asked.loop)  # type: ignore[arg-type]  # checked by the field
    left_s = max(0.001, requests.timeout_of(headers, parts) - (perf_counter() - record.started))
    priority = requests.number_of(headers, "X-Priority", 1, 9) or 5
    schedule: dict[str, Any] = {"priority": priority, "timeout_s": left_s}
    schedule |= {} if record.share is None else {"share": record.share}
    return await parts.engine.interpolate(asked.model, keys, track, **schedule)


def _note(record: Record, motion: "Motion") -> None:
    record.take(motion.tally)  # type: ignore[arg-type]
    record.images = motion.frames


def _tag(parts: Parts, model: "ModelInfo", asked: InterpolateRequest, form: MotionForm) -> str | None:
    """A strong ETag; None for lines of JSON, which hold timings."""
    if form.shape == "ndjson":
        return None
    moving = form.shape == "animation"
    coder = (animation_version if moving else encoder_version)(form.fmt, parts.encode_options)
    recipe = [json.dumps(asked.recipe()), asked.method, asked.space]
    names = [
        model.fingerprint,
        recipe,
        SHAPES_WRITTEN.get(form.shape, form.shape),
        coder,
        parts.settings.provenance,
        onnxruntime_version(),
        processor(),
    ]
    return f'"{hashlib.sha256(repr(names).encode()).hexdigest()[:32]}"'


async def _after(first: bytes, pieces: Pieces) -> Pieces:
    """All pieces, of which the first was taken."""
    async with aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece
