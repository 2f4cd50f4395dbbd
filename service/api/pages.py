"""The endpoints that are files or states: health, metrics, samples and card of a model, playground, reference."""

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from service.api import faults, problems, schemas
from service.api.negotiation import parse_accept, quality
from service.api.parts import PartsDep
from service.errors import UnknownModel
from service.manifest import CARD_FILE, SAMPLES_FILE

router = APIRouter()
site = APIRouter(include_in_schema=False)

PLAYGROUND = Path(__file__).parent.parent / "playground"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/livez", summary="Is the process alive", response_model=schemas.Health)
async def livez() -> JSONResponse:
    """200 as long as the event loop turns; says nothing about models."""
    return JSONResponse({"state": "alive"}, headers={"cache-control": "no-store"})


@router.get(
    "/readyz",
    summary="Should requests be sent here",
    response_model=schemas.Health,
    responses={503: {"description": "Loading, draining, failed, or no model", "model": schemas.Health}},
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
    ranges = parse_accept(request.headers.get("accept", "*/*"))
    asked = any(media_range == "application/openmetrics-text" and q > 0 for media_range, q in ranges)
    better = asked and quality("application/openmetrics-text", ranges) >= quality("text/plain", ranges)
    body, content_type = parts.metrics.expose(as_openmetrics=better)
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})


_FILE = problems.responses(UnknownModel, faults.FileMissing)


@router.get("/models/{name}/samples.png", summary="A model's sample grid", response_class=Response, responses=_FILE)
async def samples(name: str, parts: PartsDep) -> Response:
    """The picture that was exported with the model."""
    return _model_file(parts.engine.model(name).folder, SAMPLES_FILE, "image/png")


@router.get("/models/{name}/card", summary="A model's card", response_class=Response, responses=_FILE)
async def card(name: str, parts: PartsDep) -> Response:
    """Markdown: what the model draws, its data, metrics and limits."""
    return _model_file(parts.engine.model(name).folder, CARD_FILE, "text/markdown; charset=utf-8")


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


def _model_file(folder: Path, name: str, content_type: str) -> Response:
    path = folder / name
    if not path.is_file():
        raise faults.FileMissing(f"the model's folder has no {name}")
    return FileResponse(path, headers={"content-type": content_type, "cache-control": "public, max-age=60"})


def _page(request: Request, name: str) -> Response:
    found = _assets().get(name)
    if found is None:
        raise HTTPException(404)
    body, tag, content_type = found
    headers = {"etag": tag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if content_type.startswith("text/html"):
        headers |= {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "content-type": content_type})


@cache
def _assets() -> dict[str, tuple[bytes, str, str]]:
    """Name to body, ETag and type. Only what lies in the folder can be asked for: a name is a key, not a path."""
    found = {}
    for path in sorted(PLAYGROUND.iterdir()):
        if path.suffix in TYPES:
            body = path.read_bytes()
            found[path.name] = (body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', TYPES[path.suffix])
    return found
