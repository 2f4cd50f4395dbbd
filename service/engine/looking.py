"""Who looks for new models: a clock, and the system where it tells of changes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from service.engine.options import EngineOptions
from service.errors import FileInvalid

log = logging.getLogger(__name__)

WATCH_STEP_MS = 50
"""Changes that follow one another so soon are one: a folder is written file by file."""
WATCH_WAKE_MS = 1000
"""How often the watching thread looks whether it is still wanted."""
WATCH_AGAIN_S = 2.0
"""Before a folder that could not be watched is tried again."""


class Looking:
    """Looks until it is stopped.

    Args:
        options: `models`, `poll_models_s`, `watch_models`.
        refresh: loads what is new; what was loaded.
    """

    def __init__(self, options: EngineOptions, refresh: Callable[[], Awaitable[list[str]]]) -> None:
        self._options, self._refresh = options, refresh
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, in whichever ways the options ask for."""
        if self._options.poll_models_s is not None:
            self._tasks.append(asyncio.create_task(self._poll(self._options.poll_models_s)))
        if self._options.watch_models:
            self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _poll(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self._look()

    async def _watch(self) -> None:
        try:
            from watchfiles import awatch  # here: it is of no use to most
        except ImportError:
            log.warning("watch_models needs the package watchfiles; new models are looked for by time alone")
            return
        while True:
            with suppress(OSError, RuntimeError):  # the folder is not there: it is looked for by time
                async for _ in awatch(self._options.models, step=WATCH_STEP_MS, rust_timeout=WATCH_WAKE_MS):
                    await self._look()
            await asyncio.sleep(WATCH_AGAIN_S)

    async def _look(self) -> None:
        try:
            loaded = await self._refresh()
        except FileInvalid as error:
            log.error("%s", error)  # an unmounted volume comes back; what is loaded goes on serving
            return
        except Exception:
            log.exception("looking for new models failed")
            return
        for ref in loaded:
            log.info("loaded %s", ref)
