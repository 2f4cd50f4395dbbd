"""`POST /project`: a picture comes in, a latent that draws it goes out, with the picture that it draws."""

import base64
import hashlib
import json
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import described, problems, requests
from service.api.negotiation import NPY, Form, choose_projection
from service.api.parts import Parts, PartsDep
from service.api.pictures import (
    HEADER_CHARACTERS,
    MARK_CHARACTERS,
    header_text,
    onnxruntime_version,
    processor,
    written,
)
from service.api.plain import Headers
from service.api.reading import BINARY, ERRORS, Upload, apart, openapi, read_upload
from service.api.record import Record, record_of
from service.api.schemas import ENCODINGS
from service.api.strict_json import shown
from service.api.uploads import Form as Fields
from service.engine.pipelines.project import PASSES_MOST
from service.engine.wire import base64_of, npy_of
from service.errors import (
    InvalidRequest,
    TaskNotServed,
)
from service.imaging import FORMATS, Provenance, encode, encoder_version
from service.manifest import Task

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo, Projected

router = APIRouter()
TASK = "project"
SHAPES = ("json", "image", "npy")
KNOWN = ("image", "model", "passes", "label", "return_latents", "format", "as")

_TEXT = {"type": "string"}
_PROPERTIES: dict[str, dict[str, Any]] = {
    "image": BINARY,
    "model": _TEXT,
    "passes": {"type": "integer", "minimum": 1, "maximum": PASSES_MOST},
    "label": _TEXT,
    "return_latents": {"enum": list(ENCODINGS)},
    "format": {"enum": list(FORMATS)},
    "as": {"enum": list(SHAPES)},
}
_TYPES: dict[str, Any] = {kind: {"schema": BINARY} for kind in (*FORMATS.values(), NPY)}
_TYPES["application/json"] = {"schema": {"$ref": "#/components/schemas/ProjectResponse"}}


class _Choices:
    """What the form's fields ask for; see docs/api.md."""

    def __init__(self, parts: Parts, form: Fields, model: "ModelInfo") -> None:
        if model.encoder is None:
            able = sorted({one.manifest.name for one in parts.engine.models() if one.encoder is not None})
            raise TaskNotServed(f"{model.ref} has no encoder to project by", field="model", allowed=able)
        fields = form.fields
        self.fmt = _one_of(fields, "format", tuple(FORMATS))
        self.shape = _one_of(fields, "as", SHAPES)
        self.encoding = _one_of(fields, "return_latents", ENCODINGS)
        if self.encoding is not None and self.shape is None:
            self.shape = "json"  # whatever `Accept` likes: pictures have no room for them
        if self.encoding is not None and self.shape == "image":
            detail = "return_latents: as is 'image', which has no room for them; use json or npy"
            raise InvalidRequest(detail, field="as", allowed=["json", "npy"])
        self.label = fields.get("label")
        self.passes: int | None = None
        if (text := fields.get("passes")) is not None:
            most = model.encoder.passes_most
            if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= most):
                detail = f"passes is {shown(text)}; {model.ref} takes 1 to {most}"
                raise InvalidRequest(detail, field="passes", allowed=list(range(1, most + 1)))
            self.passes = int(text)


def _one_of(fields: Any, name: str, allowed: tuple[str, ...]) -> str | None:
    value: str | None = fields.get(name)
    if value is not None and value not in allowed:
        detail = f"{name} is {shown(value)}, must be one of {', '.join(allowed)}"
        raise InvalidRequest(detail, field=name, allowed=list(allowed))
    return value


@router.post(
    "/project",
    summary="A latent that draws a picture",
    response_class=Response,
    responses={
        200: described.answer(
            "Latent and reconstruction", _TYPES, "X-Model", "X-Space", "X-Psnr-Db", "X-Label", "X-Recipe", "ETag"
        ),
        **problems.responses(*ERRORS),
    },
    openapi_extra=openapi(_PROPERTIES),
)
async def project(request: Request, parts: PartsDep) -> Response:
    """By the model's encoder, once or in passes."""
    record, headers_in = record_of(request), Headers(request.scope["headers"])
    record.task = TASK
    timeout_s = requests.timeout_of(headers_in, parts)
    with ExitStack() as held:
        asked = await read_upload(request, parts, Task.GENERATE, KNOWN, held, partial(_Choices, parts))
        choices, picture = asked.choices, asked.picture
        form = choose_projection(choices.shape, choices.fmt, headers_in.joined(b"accept"))
        work = parts.engine.project(
            asked.name, picture.rgb, alpha=picture.alpha, passes=choices.passes, label=choices.label,
            priority=requests.number_of(headers_in, "X-Priority", 1, 9) or 5,
            timeout_s=max(0.001, timeout_s - (perf_counter() - record.started)),
            **({} if record.share is None else {"share": record.share}),
        )  # fmt: skip
        found = await requests.while_connected(request, work)
    record.model = found.model
    record.take(found.tally)  # type: ignore[arg-type]
    record.images = 1
    headers = _headers(found)
    if form.shape != "json" and found.model == asked.model.ref:
        headers["etag"] = _tag(parts, asked, form)
    body = await apart(parts, partial(_body, parts, record, found, form, choices.encoding or "json"))
    return Response(body, 200, headers, form.media_type)


def _recipe(found: "Projected") -> dict[str, object]:
    """What draws the reconstruction again."""
    told: dict[str, object] = {"model": found.model, "latents": base64_of(found.latents[0])}
    told |= {} if found.space == "z" else {"space": found.space}
    return told if found.label is None else told | {"label": found.label}


def _headers(found: "Projected") -> dict[str, str]:
    recipe = Provenance(_recipe(found)).text()
    told = {"x-model": found.model, "x-space": found.space, "x-psnr-db": f"{found.psnr_db:.2f}", "vary": "Accept"}
    if found.label is not None:
        told["x-label"] = header_text(found.label).decode("ascii")
    return told | ({"x-recipe": recipe} if len(recipe) <= HEADER_CHARACTERS else {})


def _body(parts: Parts, record: Record, found: "Projected", form: Form, encoding: str) -> bytes:
    """The answer's body; from a worker thread."""
    if form.shape == "npy":
        return npy_of(found.latents)
    started = perf_counter()
    mark = None
    if parts.settings.provenance:
        recipe = _recipe(found)
        mark = Provenance(recipe if len(str(recipe)) <= MARK_CHARACTERS else {"model": found.model})
    file = encode(found.image, form.fmt, mark, parts.encode_options)
    record.stages["encode"] = perf_counter() - started
    if form.shape == "image":
        return file
    tally = found.tally
    body = {
        "model": found.model,
        "space": found.space,
        "latent": written(found.latents[0], encoding),
        "label": found.label,
        "passes": found.passes,
        "psnr_db": round(found.psnr_db, 3),
        "reconstruction": {"media_type": FORMATS[form.fmt], "b64": base64.b64encode(file).decode("ascii")},
        "timings": {
            "queue_s": tally.queue_s,
            "run_s": tally.run_s,
            "encode_s": record.stages["encode"],
            "batch_rows": tally.batch_rows,
        },
    }
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def _tag(parts: Parts, asked: Upload[_Choices], form: Form) -> str:
    """A strong ETag: the answer is a function of the upload, the fields, the model, and who computes and writes it."""
    own = [asked.choices.passes, asked.choices.label]
    coder = None if form.shape == "npy" else encoder_version(form.fmt, parts.encode_options)
    writer = [form.shape, coder, parts.settings.provenance]
    names = [asked.model.fingerprint, asked.digest, own, writer, onnxruntime_version(), processor()]
    return f'"{hashlib.sha256(repr(names).encode()).hexdigest()[:32]}"'
