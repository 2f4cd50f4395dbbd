"""The service on a Ray cluster: Ray Serve's proxy before replicas, each the whole app with an engine of its own.

    serve run deploy.ray_app:app
    serve run deploy.ray_app:app min_replicas=2 max_replicas=8 gpus=1

Settings are the service's own (`GANYMEDE_...`), read where this is started and sent to every replica. How many replicas
there are follows `ganymede_replicas_wanted`, as on Kubernetes, and not Ray's count of requests.
"""

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from service.api.app import create_app
from service.api.server import SWITCH_S, settle, start_logs
from service.settings import Settings

WANTED = "replicas_wanted"
LOOK_S = 0.1
"""Between two looks at whether the models are in."""


class Scale(BaseModel):
    """How many replicas, and of what size: the arguments after `serve run deploy.ray_app:app`."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=1, description="Fewest; a replica that is not there would want nothing.")
    max_replicas: int = Field(16, ge=1, description="Most. What the cluster has no room for waits until it has.")
    cpus: float = Field(1.0, gt=0, description="Cores that Ray sets aside for each; lanes, where settings name none.")
    gpus: float = Field(0.0, ge=0, description="GPUs for each; a replica sees no others.")
    upscale_s: float = Field(15.0, ge=0, description="Seconds that more must have been wanted before more are started.")
    downscale_s: float = Field(300.0, ge=0, description="Seconds that fewer must have been wanted before one ends.")

    @model_validator(mode="after")
    def _order(self) -> "Scale":
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self


def wanted(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Ray's autoscaling policy: the sum over the replicas, rounded up; as it is where no replica has told yet."""
    told = (context.aggregated_metrics or {}).get(WANTED) or {}
    figures = [told[replica] for replica in context.running_replicas if replica in told]
    number = math.ceil(sum(figures)) if figures else context.target_num_replicas
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(most, max(least, number)), context.policy_state


@serve.deployment(name="ganymede")
@serve.ingress()
class Replica:
    """One process with the app in it. It counts as started when its models are in, and not before."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        start_logs(settings)
        sys.setswitchinterval(SWITCH_S)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app as it is served without Ray, but for a start that waits."""
        app = create_app(self._settings)
        self._parts = app.state.parts
        app.router.lifespan_context = _open_first(app)
        return app

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray asks each replica for, several times a minute."""
        return {WANTED: self._parts.metrics.replicas_wanted()}

    async def check_health(self) -> None:
        """Raise where the replica should be ended and started anew."""
        if self._parts.state == "failed":
            raise RuntimeError("the models could not be opened") from self._parts.failure


def app(scale: Scale) -> Application:
    """What `serve run` starts. The environment's settings hold for all replicas."""
    return application(scale, Settings())


def application(scale: Scale, settings: Settings) -> Application:
    """The same with settings of the caller's."""
    return Replica.options(
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        # The engine itself prices, queues and refuses, and answers sooner when it does than a queue in the proxy would.
        max_ongoing_requests=settings.max_queue_rows,
        graceful_shutdown_timeout_s=settings.drain_timeout_s + 5,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.min_replicas,
            initial_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            upscale_delay_s=scale.upscale_s,
            downscale_delay_s=scale.downscale_s,
            policy=AutoscalingPolicy(policy_function=wanted),
        ),
    ).bind(sized(settings, scale))


def sized(settings: Settings, scale: Scale) -> Settings:
    """One-thread lanes for the cores of a replica: left to itself, each would plan for all cores of its node."""
    if scale.gpus or settings.lanes is not None or settings.threads_per_lane is not None:
        return settings
    return settings.model_copy(update={"lanes": max(1, int(scale.cpus)), "threads_per_lane": 1})


def _open_first(app: FastAPI) -> Any:
    """The app's lifespan, which says that it has started only when models serve."""
    inner, parts = app.router.lifespan_context, app.state.parts

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            while not parts.opened:
                if parts.failure is not None:
                    raise RuntimeError("the models could not be opened") from parts.failure
                await asyncio.sleep(LOOK_S)
            settle()
            yield

    return lifespan
