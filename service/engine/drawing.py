"""One request for images on its way through the engine, from its rows to what its caller is told."""

import asyncio
from collections.abc import Callable

from service.engine.fairness import Share
from service.engine.loaded import LoadedModel
from service.engine.pipelines import generate as generating
from service.engine.pipelines.rows import Rows
from service.engine.results import Generated, timings_of
from service.errors import DeadlineExceeded


class Drawing:
    """One request on its way: how it begins, and who is told of its end."""

    __slots__ = ("_began_s", "_deadline_s", "_done", "_lone", "_model", "_priority", "_rows", "_share")

    def __init__(
        self,
        model: LoadedModel,
        rows: Rows,
        done: Callable[[Generated | Exception], None],
        priority: int,
        began_s: float,
        deadline_s: float | None,
        lone: bool,
        share: Share | None,
    ) -> None:
        self._share = share
        self._model, self._rows, self._done = model, rows, done
        self._priority, self._began_s, self._deadline_s, self._lone = priority, began_s, deadline_s, lone

    def begin(self, told: Callable[[generating.Drawn | Exception], None]) -> Callable[[], None]:
        """See `flights.Start`."""
        return generating.draw(self._model, self._rows, told, self._priority, self._deadline_s, self._lone, self._share)

    def end(self, outcome: generating.Drawn | Exception, coalesced: bool = False) -> None:
        """Tell the images, or what went wrong."""
        model, rows = self._model, self._rows
        if isinstance(outcome, generating.Drawn):
            shared_s = asyncio.get_running_loop().time() - self._began_s if coalesced else None
            timings = timings_of(outcome.answer, shared_s)
            drawn = (outcome.images, rows.seeds, rows.labels, rows.truncation, model.ref, timings, coalesced)
            self._done(Generated(*drawn, outcome.latents, rows.recipes))
        elif isinstance(outcome, TimeoutError):
            self._done(DeadlineExceeded(f"{model.ref}: not finished before the deadline"))
        else:
            self._done(outcome)
