"""The endpoints, thin: what they accept is in schemas, what they answer in pictures, what goes wrong in problems."""

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api import answers, described, faults, problems
from service.api.direct import serve
from service.api.hot import linked, posted
from service.api.negotiation import NPY
from service.api.parts import Parts, PartsDep
from service.api.plain import Headers, PlainResponse
from service.api.requests import HEADERS
from service.api.strict_json import object_of, read_body, shown
from service.engine.steering import NOISES
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    RunFailed,
    UnknownModel,
)
from service.imaging import FORMATS

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo

router = APIRouter()

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_IMAGES: dict[str, Any] = dict.fromkeys(FORMATS.values(), _BINARY)
_FORMS = {
    **_IMAGES,
    "application/json": {"schema": {"$ref": "#/components/schemas/GenerateResponse"}},
    "application/zip": _BINARY,
    NPY: _BINARY,
}
_ERRORS = (UnknownModel, InvalidRequest, Overloaded, NotReady, DeadlineExceeded, RunFailed, faults.NotAcceptable)
_BODY_ERRORS = (*_ERRORS, faults.MalformedBody, faults.BodyTooLarge, faults.UnsupportedMediaType)


def _query(name: str, schema: dict[str, Any], text: str, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": text}


_QUERY = [
    _query("model", {"type": "string"}, "Name or `name@version`.", required=True),
    _query("seed", {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}, "Which picture.", required=True),
    _query("label", {"type": "string"}, "Class by name or index."),
    _query("truncation", {"type": "number", "minimum": 0, "maximum": 2, "default": 1}, "Below 1: more typical."),
    _query("truncation_cutoff", {"type": "integer", "minimum": 0}, "So many layers are truncated."),
    _query("directions", {"type": "string"}, "Such as `sefa_1:2,sefa_3:-1`."),
    _query("noise", {"enum": list(NOISES)}, "Of models that take it."),
    _query("noise_seed", {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}, "Whose random noise."),
    _query("format", {"enum": list(FORMATS)}, "Goes before `Accept`."),
]


@router.post(
    "/generate",
    summary="Draw images",
    response_class=Response,
    responses={
        200: described.answer(
            "The pictures", _FORMS, "X-Model", "X-Seed", "X-Seeds", "X-Label", "X-Recipe", "X-Space", "ETag"
        ),
        **problems.responses(*_BODY_ERRORS),
    },
    openapi_extra={
        "parameters": HEADERS,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/GenerateRequest"}},
                NPY: _BINARY,
            },
        },
    },
)
async def generate(request: Request, parts: PartsDep) -> Response:
    """One image for each seed, seeds drawn for a count, or latents given outright."""
    return PlainResponse(await serve(request, parts, posted))


@router.get(
    "/generate",
    summary="One seeded image by its URL",
    response_class=Response,
    responses={
        200: described.answer("The picture", _IMAGES, "X-Model", "X-Seed", "X-Label", "X-Recipe", "ETag"),
        304: {"description": "The client's copy is current"},
        **problems.responses(*_ERRORS),
    },
    openapi_extra={"parameters": [*_QUERY, *HEADERS]},
)
async def picture(request: Request, parts: PartsDep) -> Response:
    """The same picture as `POST /generate` with one seed, cacheable."""
    return PlainResponse(await serve(request, parts, linked))


@router.get("/models", summary="What is served", response_model=answers.ModelList)
async def models(request: Request, parts: PartsDep) -> JSONResponse:
    """All loaded models, those that are loaded when asked for, and the folders that were refused, with the reason."""
    loaded = sorted(parts.engine.models(), key=lambda model: (model.manifest.name, -model.manifest.version))
    told = {"models": [_summary(model) for model in loaded], "asleep": parts.engine.asleep}
    return JSONResponse(told | {"refused": parts.engine.refused})


@router.get(
    "/models/{name}", summary="One model", response_model=answers.ModelPage, responses=problems.responses(UnknownModel)
)
async def model_page(name: str, parts: PartsDep) -> JSONResponse:
    """Manifest, providers and the plan that this server chose; `name` or `name@version`."""
    model = parts.engine.model(name)
    return JSONResponse(
        {
            **_summary(model),
            "providers": list(model.providers),
            "provider_notes": list(model.provider_notes),
            "plans": {graph: dataclasses.asdict(plan) for graph, plan in model.plans.items()},
            "loaded_at": datetime.fromtimestamp(model.loaded_at, UTC).isoformat(timespec="seconds"),
            "manifest": model.manifest.model_dump(mode="json"),
        }
    )


@router.post(
    "/models/{name}/load",
    summary="Load or reload a model (operators)",
    response_model=answers.ModelSummary,
    responses=problems.responses(UnknownModel, faults.AdminOff, faults.MalformedBody),
)
async def load(name: str, request: Request, parts: PartsDep) -> JSONResponse:
    """Verify, warm and swap in `models/<name>/<version>`; the newest version unless one is named."""
    _admin(parts)
    return JSONResponse(_summary(await parts.engine.load(name, await _version(request, parts))))


@router.post(
    "/models/{name}/unload",
    summary="Unload a model (operators)",
    status_code=204,
    responses=problems.responses(UnknownModel, faults.AdminOff),
)
async def unload(name: str, request: Request, parts: PartsDep) -> Response:
    """Stop serving a model, or the version that is named; its accepted requests finish."""
    _admin(parts)
    await parts.engine.unload(name, await _version(request, parts))
    return Response(status_code=204)


def _summary(model: "ModelInfo") -> dict[str, Any]:
    manifest = model.manifest
    drawn = manifest.generate
    here = f"/models/{manifest.ref}"
    outputs = [tensor for graph in manifest.graphs.values() for tensor in graph.outputs if tensor.kind == "image"]
    sizes = [size if isinstance(size, int) else None for size in outputs[-1].shape[1:]] if outputs else [None] * 3
    return {
        "name": manifest.name,
        "version": manifest.version,
        "ref": manifest.ref,
        "tasks": [task.value for task in manifest.tasks],
        "family": manifest.family,
        "image": dict(zip(("height", "width", "channels"), sizes, strict=True)),
        "labels": list(drawn.labels) if drawn and drawn.labels else None,
        "latent_dim": drawn.latent_dim if drawn else None,
        "truncation": drawn.truncation if drawn else False,
        "mask": bool(manifest.translate and manifest.translate.mask),
        "steering": _steering(model),
        "license": manifest.license,
        "paper": manifest.paper,
        "state": model.state,
        "links": {"self": here, "samples": f"{here}/samples.png", "card": f"{here}/card"},
    }


def _steering(model: "ModelInfo") -> dict[str, Any] | None:
    """What a model's latents can be asked for."""
    drawn, graphs = model.manifest.generate, model.manifest.graphs.values()
    if drawn is None:
        return None
    kinds = {(tensor.kind, tensor.dtype) for graph in graphs for tensor in graph.inputs}
    styled, encoder = drawn.style_layers is not None, model.encoder
    return {
        "spaces": ["z", "w", "w+"] if styled else ["z"],
        "style_layers": drawn.style_layers,
        "style_dim": model.manifest.style_dim if styled else None,
        "mix": "w" if styled else "z",
        "class_mix": drawn.labels is not None and (styled or ("label", "float32") in kinds),
        "noise": list(NOISES) if styled and ("noise", "float32") in kinds else [],
        "directions": list(model.directions),
        "project": None if encoder is None else {"space": encoder.space, "passes": encoder.passes_most},
    }


def _admin(parts: Parts) -> None:
    if not parts.settings.admin:
        raise faults.AdminOff("operator calls are off; start with --admin or GANYMEDE_ADMIN=true to allow them")


async def _version(request: Request, parts: Parts) -> int | None:
    """`version` from the query or the body, in which nothing else may be."""
    body = await read_body(request, parts.settings.timeout_s)
    fields = object_of(body, Headers(request.scope["headers"])) if body else {}
    for name, value in parse_qsl(request.url.query, keep_blank_values=True):
        fields[name] = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else value
    for name in fields:
        if name != "version":
            raise InvalidRequest(f"unknown field {shown(name)}; only 'version' is known", field=name[:60])
    version = fields.get("version")
    if version is not None and (not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 2**31):
        raise InvalidRequest(f"version is {shown(version)}, must be a whole number from 1", field="version")
    return version
