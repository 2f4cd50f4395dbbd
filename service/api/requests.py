"""What every endpoint that draws asks of its request: model, schedule, and whether the client is still there."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from service.api import faults
from service.api.parts import Parts
from service.api.plain import Headers
from service.api.record import Record
from service.api.strict_json import shown
from service.engine.folders import lies_there
from service.errors import GanymedeError, InvalidRequest, ModelAsleep, NotReady, TaskNotServed, UnknownModel
from service.manifest import Task

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo

T = TypeVar("T")

ENDPOINTS = {Task.GENERATE: "POST /generate", Task.TRANSLATE: "POST /translate", Task.UPSCALE: "POST /upscale"}
WATCHED_AFTER_S = 0.05
"""Requests that take longer are watched for clients that leave; shorter ones would be over before it helped."""

HEADERS = [
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 1, "maximum": 3_600_000},
        "description": "Deadline in milliseconds; passed: 504.",
    },
    {
        "name": "X-Priority",
        "in": "header",
        "schema": {"type": "integer", "minimum": 1, "maximum": 9, "default": 5},
        "description": "1 is served first, 9 last.",
    },
]
"""OpenAPI's words for what `timeout_of` and `X-Priority` read."""


def serving(parts: Parts, name: str, task: Task) -> "ModelInfo":
    """The loaded model, if it serves the task.

    Raises:
        UnknownModel, NotReady, ModelAsleep; TaskNotServed: names the endpoint that is right for the model.
    """
    try:
        model = parts.engine.model(name)
    except UnknownModel:
        if parts.state == "loading" and lies_there(parts.settings.models, name):
            raise NotReady(f"{shown(name)} is not loaded yet", reason="loading") from None
        raise
    if task not in model.manifest.tasks:
        right = [ENDPOINTS[served] for served in model.manifest.tasks]
        raise TaskNotServed(f"{name} does not {task.value}; use {' or '.join(right)}", field="model", allowed=right)
    return model


def number_of(headers: Headers, name: str, low: int, high: int) -> int | None:
    """A header that holds a whole number; None if it is absent.

    Raises:
        InvalidRequest: it holds anything else, or a number outside low to high.
    """
    raw = headers.first(_lowered(name))
    if raw is None:
        return None
    text = raw.decode("latin-1")
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and low <= int(text) <= high):
        raise InvalidRequest(f"{name} is {shown(text)}, must be a whole number from {low} to {high}", field=name)
    return int(text)


@cache
def _lowered(name: str) -> bytes:
    return name.lower().encode("ascii")


def timeout_of(headers: Headers, parts: Parts) -> float:
    """Seconds until the request's deadline: `X-Request-Timeout-Ms`, or the setting.

    Raises:
        InvalidRequest: the header holds no number of milliseconds up to an hour.
    """
    asked = number_of(headers, "X-Request-Timeout-Ms", 1, 3_600_000)
    return parts.settings.timeout_s if asked is None else asked / 1000


def left_of(record: Record, timeout_s: float) -> float:
    """Seconds that are left of a request's time, a millisecond at least: what it took to come is part of it."""
    return max(0.001, timeout_s - (perf_counter() - record.started))


async def once_awake(parts: Parts, look: Callable[[], T], timeout_s: float) -> T:
    """What `look` returns; where the model that it looks for is not in memory, when it is.

    Args:
        look: raises ModelAsleep until then.
        timeout_s: of the request, from now.

    Raises:
        What `look` raises; DeadlineExceeded: the model is not in memory by then.
    """
    end_s = asyncio.get_running_loop().time() + timeout_s
    while True:  # it may be put to sleep again before its turn, and a version that is refused leaves an older one
        try:
            return look()
        except ModelAsleep as asleep:
            await parts.engine.wake(asleep.ref, max(0.0, end_s - asyncio.get_running_loop().time()))


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; the work is cancelled when the client leaves first.

    Raises:
        ClientGone: the client left.
        BodyTooLarge: a GET brought a body, and one above the limit.
    """
    task = asyncio.current_task()
    assert task is not None
    watch = _Watch(request, task)
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.fired or task.uncancel():  # somebody else ends this task too
            raise
        raise watch.reason from None
    finally:
        watch.stop()


class _Watch:
    """Cancels a task when its client leaves. Starts late: a watcher costs more than most requests are worth."""

    def __init__(self, request: Request, task: "asyncio.Task[Any]") -> None:
        self.fired = False
        self.reason: BaseException = faults.ClientGone()
        self._request = request
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._timer = task.get_loop().call_later(WATCHED_AFTER_S, self._start)

    def stop(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = self._task.get_loop().create_task(self._watch())

    async def _watch(self) -> None:
        try:
            while (await self._request.receive())["type"] != "http.disconnect":
                pass
        except GanymedeError as error:
            self.reason = error
        self.fired = True
        self._task.cancel()
