"""The only place where the parts are joined: settings, engine, metrics, middleware and routes become one app."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service import __version__
from service.api import answers, described, edits, motion_body, motions, pages, problems, projections, routes, schemas
from service.api.direct import Direct
from service.api.fast import Front
from service.api.guard import Guard
from service.api.ledger import Ledger
from service.api.middleware.access import Access
from service.api.middleware.context import RequestContext
from service.api.middleware.crossorigin import CrossOrigin
from service.api.middleware.limits import BodyLimit
from service.api.parts import Parts
from service.api.pictures import onnxruntime_version
from service.metrics import Metrics
from service.process import step_back
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine

DESCRIPTION = "Images from generative adversarial networks, over HTTP. The same request is the same picture."
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
"""Of every answer, where they are asked for. Pages have a content security policy of their own always."""
ROUTERS = (routes.router, edits.router, motions.router, projections.router, pages.router)
"""Always served; the playground's pages come beside them where they are asked for."""
CROSS_ORIGIN: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST"],
    "allow_headers": [
        "Authorization", "Content-Type", "If-None-Match", "Traceparent", "X-API-Key", "X-Priority", "X-Request-Id",
        "X-Request-Timeout-Ms",
    ],
    "expose_headers": [
        "ETag", "Retry-After", "Retry-After-Ms", "Server-Timing", "Traceparent", "X-Label", "X-Model", "X-Request-Id",
        "X-Frames", "X-Psnr-Db", "X-Recipe", "X-Resized", "X-Seed", "X-Seeds", "X-Space",
    ],
    "max_age": 600,
}  # fmt: skip
"""What scripts of other origins may send and read. Keys go in headers; the browser's own credentials are of no use."""

_log = logging.getLogger("ganymede")


def create_app(settings: Settings, engine: "Engine | None" = None) -> FastAPI:
    """The app. Models load in the background after start-up: `/livez` answers at once, `/readyz` when they are in.

    Args:
        engine: made from the settings by default; tests hand in another.
    """
    if engine is None:
        engine = engine_of(settings)
    build = {"version": __version__, "onnxruntime": onnxruntime_version()}
    metrics = Metrics(engine, build)
    parts = Parts(settings, engine, metrics)
    app = FastAPI(
        title="Ganymede",
        version=build["version"],
        description=DESCRIPTION,
        lifespan=_lifespan(parts),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Metrics and trace context are our own; asking three global providers for theirs costs each request 20 µs.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.parts = parts
    app.add_middleware(Direct, parts=parts)
    uploading = (*edits.router.routes, *projections.router.routes)
    uploads = {route.path: settings.max_upload_bytes for route in uploading if isinstance(route, APIRoute)}
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, larger=uploads)
    guard = Guard.of(settings)
    if guard is not None:
        app.add_middleware(Access, guard=guard)
    if settings.origins:
        app.add_middleware(CrossOrigin, allow_origins=settings.origins, **CROSS_ORIGIN)
    told = SECURITY_HEADERS if settings.security_headers else ()
    ledger = Ledger(metrics, settings.access_log, lambda: parts.draining, told)
    app.add_middleware(RequestContext, ledger=ledger)
    app.state.front = Front(parts, ledger, guard)
    problems.install(app, _methods)
    for router in ROUTERS:
        app.include_router(router)
    if settings.playground:
        app.include_router(pages.site)
    app.openapi = _openapi(app, settings.with_keys)  # type: ignore[method-assign]
    return app


def engine_of(settings: Settings) -> "Engine":
    """The engine that these settings describe."""
    from service.engine.engine import Engine, EngineOptions  # here: a test with its own engine needs no onnxruntime

    return Engine(
        EngineOptions(
            models=settings.models,
            providers=settings.providers,
            lanes=settings.lanes,
            threads_per_lane=settings.threads_per_lane,
            max_batch=settings.max_batch,
            max_queue_rows=settings.max_queue_rows,
            max_images=settings.max_images,
            max_motion_frames=settings.max_motion_frames,
            tile_side=settings.tile_side,
            max_whole_pixels=settings.max_whole_pixels,
            max_result_pixels=settings.max_result_pixels,
            poll_models_s=settings.poll_models_s,
            watch_models=settings.watch_models,
            load_on_demand=settings.load_on_demand,
            memory_budget_bytes=settings.memory_budget_bytes,
            versions_kept=settings.versions_kept,
            run_timeout_s=settings.run_timeout_s,
            device_memory_bytes=settings.device_memory_bytes,
            fp16=settings.fp16,
            profile_s=settings.profile_s,
            cache=settings.cache,
            devices=settings.devices,
            shrink_after_s=settings.shrink_after_s,
            load_timeout_s=settings.load_timeout_s,
        )
    )


def _methods(path: str) -> list[str]:
    """What a path answers to, over all routes: a router alone knows only the first that matches."""
    found: set[str] = set()
    for route in (route for router in (*ROUTERS, pages.site) for route in router.routes):
        if isinstance(route, APIRoute) and route.path_regex.match(path):
            found |= route.methods or set()
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _lifespan(parts: Parts) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What `to_thread` is given cuts, pastes and converts pictures. As many threads as Python would take.
        pool = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4), "apart", step_back)
        asyncio.get_running_loop().set_default_executor(pool)
        opening = asyncio.create_task(_open(parts))
        watching = asyncio.create_task(parts.metrics.watch_loop())
        try:
            yield
        finally:
            parts.draining = True
            for task in (opening, watching):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await parts.engine.drain(parts.left_to_drain_s())
            await parts.engine.close()
            parts.encoders.shutdown(wait=True, cancel_futures=True)

    return lifespan


async def _open(parts: Parts) -> None:
    try:
        await parts.engine.open()
    except Exception as error:
        parts.failure = error
        _log.exception("the models could not be opened")
        return
    parts.opened = True
    loaded = ", ".join(sorted(model.manifest.ref for model in parts.engine.models()))
    _log.info("serving %s", loaded or f"no model: {parts.settings.models} has none that passed")


def _openapi(app: FastAPI, with_keys: bool) -> Callable[[], dict[str, Any]]:
    """FastAPI's document, with the schemas that the routes only refer to, and how a key is sent."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (
            schemas.GenerateRequest,
            motion_body.InterpolateRequest,
            answers.GenerateResponse,
            answers.ProjectResponse,
            answers.Problem,
        ):
            if model.__name__ not in components:
                schema = model.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
                components.update(schema.pop("$defs", {}))
                components[model.__name__] = schema
        for unused in ("HTTPValidationError", "ValidationError"):
            components.pop(unused, None)
        if with_keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        for path in document["paths"].values():
            for operation in path.values():
                for response in operation["responses"].values():
                    response.setdefault("headers", {}).update(described.headers(*described.EVERYWHERE))
                reply = operation["responses"].get("422", {})
                if "HTTPValidationError" in str(reply):
                    del operation["responses"]["422"]
        return document

    return openapi
