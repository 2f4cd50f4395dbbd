"""What the routes work with: one object per app, made by `app.py`, never a global."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Depends, Request

from service.api.recipes import Recipes
from service.imaging import EncodeOptions
from service.metrics import Metrics
from service.process import step_back
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine

State = Literal["loading", "ready", "draining", "failed", "no-models"]


@dataclass
class Parts:
    """The app's parts. `draining` and `failure` are set once and stay."""

    settings: Settings
    engine: "Engine"
    metrics: Metrics
    opened: bool = False
    draining: bool = False
    drain_until_s: float | None = None
    """In the loop's time: when accepted requests have to be finished. Known once the port closes."""
    failure: BaseException | None = None
    encoders: ThreadPoolExecutor = field(init=False)
    encode_options: EncodeOptions = field(init=False)
    """Qualities from the settings."""
    recipes: Recipes = field(init=False)
    cached_by: str = field(init=False)
    """`public`, or `private` where keys are asked for: a cache between must not hand on what it got with one."""

    def __post_init__(self) -> None:
        self.cached_by = "private" if self.settings.with_keys else "public"
        self.encode_options = EncodeOptions(self.settings.jpeg_quality, self.settings.webp_quality)
        self.recipes = Recipes(self.settings.max_images)
        self.encoders = ThreadPoolExecutor(self.settings.encode_threads, "encode", step_back)

    def left_to_drain_s(self) -> float:
        """Seconds that accepted requests have yet; all that the settings give where the port is not closed."""
        if self.drain_until_s is None:
            return self.settings.drain_timeout_s
        return max(0.0, self.drain_until_s - asyncio.get_running_loop().time())

    @property
    def state(self) -> State:
        """What `/readyz` says."""
        if self.draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        if not self.opened:
            return "loading"
        if not self.engine.models() and not self.engine.asleep:
            return "no-models"
        return "ready" if self.engine.ready else "loading"


async def parts_of(request: Request) -> Parts:
    """The parts of the app that serves this request."""
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(parts_of)]
