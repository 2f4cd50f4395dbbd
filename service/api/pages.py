"""The endpoints that are files or states: health, metrics, samples and card of a model, playground, reference."""

import asyncio
import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.api import answers, faults, problems
from service.api.negotiation import field_of, matches, parse_accept, quality
from service.api.parts import Parts, PartsDep
from service.errors import UnknownModel
from service.manifest import CARD_FILE, SAMPLES_FILE

router = APIRouter()
site = APIRouter(include_in_schema=False)

PLAYGROUND = Path(__file__).parent.parent / "playground"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MODEL_FILE_MAX_BYTES = 64 << 20
"""A sample grid or a card that is larger is none."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/livez", summary="Is the process alive", response_model=answers.Health)
async def livez() -> JSONResponse:
    """200 as long as the event loop turns; says nothing about models."""
    return JSONResponse({"state": "alive"}, headers={"cache-control": "no-store"})


@router.get(
    "/readyz",
    summary="Should requests be sent here",
    response_model=answers.Health,
    responses={503: {"description": "Loading, draining, failed, or no model", "model": answers.Health}},
)
async def readyz(parts: PartsDep) -> JSONResponse:
    """200 when models are loaded and the server is not draining; the folders that were refused, either way."""
    state = parts.state
    body = {
        "state": state,
        "models": sorted(model.manifest.ref for model in parts.engine.models()),
        "refused": parts.engine.refused,
    }
    headers = {"cache-control": "no-store"} | ({} if state == "ready" else {"retry-after": "1"})
    return JSONResponse(body, 200 if state == "ready" else 503, headers)


@router.get("/metrics", summary="Prometheus series", response_class=Response)
async def metrics(request: Request, parts: PartsDep) -> Response:
    """Prometheus' text format, or OpenMetrics where `Accept` prefers it."""
    ranges = parse_accept(field_of(request, "accept") or "*/*")
    asked = any(media_range == "application/openmetrics-text" and q > 0 for media_range, q in ranges)
    better = asked and quality("application/openmetrics-text", ranges) >= quality("text/plain", ranges)
    body, content_type = parts.metrics.expose(as_openmetrics=better)
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})


_FILE = problems.responses(UnknownModel, faults.FileMissing)


@router.get("/models/{name}/samples.png", summary="A model's sample grid", response_class=Response, responses=_FILE)
async def samples(name: str, request: Request, parts: PartsDep) -> Response:
    """The picture that was exported with the model."""
    return await _model_file(request, parts, name, SAMPLES_FILE, "image/png")


@router.get("/models/{name}/card", summary="A model's card", response_class=Response, responses=_FILE)
async def card(name: str, request: Request, parts: PartsDep) -> Response:
    """Markdown: what the model draws, its data, metrics and limits."""
    return await _model_file(request, parts, name, CARD_FILE, "text/markdown; charset=utf-8")


@site.get("/")
async def index(request: Request) -> Response:
    """The playground."""
    return _page(request, "index.html")


@site.get("/docs")
async def docs(request: Request) -> Response:
    """The reference, drawn from /openapi.json by our own script: it works offline and under the same policy."""
    return _page(request, "docs.html")


@site.get("/playground/{name}")
async def asset(name: str, request: Request) -> Response:
    """Scripts and styles of both pages."""
    return _page(request, name)


async def _model_file(request: Request, parts: Parts, model: str, name: str, content_type: str) -> Response:
    body = await asyncio.to_thread(_own_file, parts.engine.model(model).folder, name)
    headers = {
        "etag": _tag(body),
        "cache-control": f"{parts.cached_by}, max-age=60",
        "x-content-type-options": "nosniff",
    }
    if matches(headers["etag"], field_of(request, "if-none-match")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "content-type": content_type})


def _own_file(folder: Path, name: str) -> bytes:
    """A file that really lies in the folder: a model from a stranger may bring a link to any file of this machine.

    Raises:
        FileMissing: there is none, or it is a link out of the folder, no regular file, unreadable or too large.
    """
    try:
        path = (folder / name).resolve(strict=True)
        if path.is_file() and path.is_relative_to(folder.resolve()) and path.stat().st_size <= MODEL_FILE_MAX_BYTES:
            return path.read_bytes()
    except OSError:
        pass  # it may be deleted or replaced at any moment
    raise faults.FileMissing(f"the model's folder has no {name}")


def _tag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _page(request: Request, name: str) -> Response:
    found = _assets().get(name)
    if found is None:
        raise HTTPException(404)
    body, tag, content_type = found
    headers = {"etag": tag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if content_type.startswith("text/html"):
        headers |= {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
    if matches(tag, field_of(request, "if-none-match")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "content-type": content_type})


@cache
def _assets() -> dict[str, tuple[bytes, str, str]]:
    """Name to body, ETag and type. Only what lies in the folder can be asked for: a name is a key, not a path."""
    found = {}
    for path in sorted(PLAYGROUND.iterdir()):
        if path.suffix in TYPES:
            body = path.read_bytes()
            found[path.name] = (body, _tag(body), TYPES[path.suffix])
    return found
