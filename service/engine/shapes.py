"""Runs on a device in few shapes, all of which were looked at when the model was loaded.

A shape that is new to a session, or on CUDA merely another than the last one's, costs tens of milliseconds there: cuDNN
plans each convolution anew. So rows are filled up to sizes that were planned for, with copies of a row whose answers
are dropped, and a few sessions keep a shape each. Rows of other shapes, such as pictures of other sizes, were looked at
in no batch: they run one by one, and then a shape is planned once however many rows come together.
"""

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from service.engine.entries import Signature, signature_of
from service.engine.recovery import Provided, out_of_memory
from service.engine.session import Array, Arrays, Watch
from service.errors import GanymedeError, RunFailed

log = logging.getLogger(__name__)

SHELF = 4
"""Sessions at most, each for a shape: up to three for the planned rows, and one for whatever else comes."""

Shape = tuple[int, Signature]
"""Rows in a run, and what each of them is."""


class ShapedSession:
    """Stands in the place of a device's session; lanes may share it.

    Args:
        session: the first one.
        make: another like it.
        row: recorded rows of every input: others of their shape may ride together.
        sizes: rows of the runs that were looked at, ascending, from 1.
        fills: of these, those that runs are filled up to.
        shelf: sessions at most.
        model: `name@version`, for the log.
    """

    max_rows: int | None = None

    def __init__(
        self,
        session: Provided,
        make: Callable[[], Provided],
        row: Arrays,
        *,
        sizes: Sequence[int],
        fills: Sequence[int],
        shelf: int,
        model: str,
    ) -> None:
        self.spec = session.spec
        self.provider = session.provider
        self.model = model
        self._make = make
        self._row = signature_of(row)
        self._sizes = tuple(sizes)
        self._fills = tuple(fills)
        self._shelf = shelf
        self._unused: list[Provided] = [session]
        self._shelved: OrderedDict[Shape, Provided] = OrderedDict()  # the one used last at its end
        self._too_large: int | None = None  # rows that did not fit into memory, until as many have come to fit
        self._changing = threading.Lock()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes for which sessions are kept, the one used last at the end."""
        return tuple(self._shelved)

    @property
    def sessions(self) -> tuple[Provided, ...]:
        """All that are kept."""
        return (*self._shelved.values(), *self._unused)

    def run(self, inputs: Arrays, watch: Watch | None = None) -> dict[str, Array]:
        """See `Session.run`.

        Raises:
            RunFailed: the run raised, or answered with another number of rows than went in.
        """
        signature, rows = signature_of(inputs), _rows(inputs)
        most = self._sizes[-1] if signature == self._row else 1
        if rows <= most:
            return self._run(inputs, rows, signature, watch)
        pieces = []
        for start in range(0, rows, most):
            if watch is not None:
                if watch.terminated:
                    raise RunFailed(f"{self.spec.file}: the run was ended")
                watch.calls += 1
            piece = {name: array[start : start + most] for name, array in inputs.items()}
            pieces.append(self._run(piece, _rows(piece), signature, watch))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def warm(self, row: Arrays) -> None:
        """Have the sizes that runs are filled up to planned before anybody waits for it.

        Raises:
            RunFailed: a run raised.
        """
        for size in reversed(self._fills):  # the narrowest, which comes first, is used last
            self._call(filled(row, size), (size, self._row), None)

    def shrink(self, inputs: Arrays) -> None:
        """Give back what the arenas hold beyond the weights; sessions for other rows than the planned go altogether.

        Each runs its own shape, which keeps it planned.

        Args:
            inputs: one of the planned rows.

        Raises:
            RunFailed: a run raised.
        """
        with self._changing:
            for shape in [shape for shape in self._shelved if shape[1] != self._row]:
                session = self._shelved.pop(shape)
                if not self._shelved and not self._unused:
                    self._unused.append(session)
            shelved, unused = list(self._shelved.items()), list(self._unused)
        for (size, _), session in shelved:
            session.shrink(filled(inputs, size))
        for session in unused:
            session.shrink(inputs)

    def _run(self, inputs: Arrays, rows: int, signature: Signature, watch: Watch | None) -> dict[str, Array]:
        """Rows that fit into one run."""
        while True:
            size = self._size(rows) if signature == self._row else rows
            try:
                answers = self._call(filled(inputs, size), (size, signature), watch)
            except RunFailed as error:
                if not out_of_memory(error) or (watch is not None and watch.terminated):
                    raise
                if self._let_go((size, signature)):  # what other shapes' sessions hold, first
                    continue
                if signature != self._row:
                    raise
                self._too_large = min(size, self._too_large or size)
                if self._size(rows) >= size:
                    raise
                continue
            if signature == self._row and size >= (self._too_large or math.inf):
                self._too_large = None
            if any(len(array) != size for array in answers.values()):
                raise RunFailed(f"{self.spec.file}: the run answered with another number of rows than {size}")
            return answers if size == rows else {name: array[:rows] for name, array in answers.items()}

    def _size(self, rows: int) -> int:
        """What so many rows are filled up to: less where that did not fit into memory."""
        limit = self._too_large
        fits = self._fills if limit is None else tuple(size for size in self._sizes if size < limit)
        return next(size for size in (*fits, *self._sizes) if size >= rows)

    def _call(self, inputs: Arrays, shape: Shape, watch: Watch | None) -> dict[str, Array]:
        return self._session_for(shape, watch).run(inputs, watch)

    def _session_for(self, shape: Shape, watch: Watch | None) -> Provided:
        """The shape's session: the one that keeps it, one that keeps none, a new one, or that used longest ago."""
        with self._changing:
            session = self._shelved.pop(shape, None)
            if session is None and self._unused:
                session = self._unused.pop()
            if session is None and len(self._shelved) < self._shelf:
                session = self._another(watch)
            if session is None:
                _, session = self._shelved.popitem(last=False)
            self._shelved[shape] = session
            return session

    def _another(self, watch: Watch | None) -> Provided | None:
        """One more session; None where there can be none, and then none is tried for again."""
        if watch is not None:
            watch.loading = True
        try:
            session = self._make()
            if session.provider != self.provider:  # what `auto` takes where the device has no room
                raise RunFailed(f"{self.spec.file}: it would be on {session.provider}, not on {self.provider}")
            return session
        except (GanymedeError, MemoryError, RuntimeError) as error:
            self._shelf = max(1, len(self._shelved))
            log.warning("%s: no further session for another shape: %s", self.model, error)
            return None
        finally:
            if watch is not None:
                watch.loading = False

    def _let_go(self, shape: Shape) -> bool:
        """Drop the sessions of other shapes, and keep none from now on; whether there were any."""
        with self._changing:
            others = len(self._unused) + len(self._shelved) - (shape in self._shelved)
            if not others or shape not in self._shelved:
                return False
            self._shelved, self._unused = OrderedDict([(shape, self._shelved[shape])]), []
            self._shelf = 1
        log.warning("%s: out of memory, so no sessions are kept for other shapes", self.model)
        return True


def filled(inputs: Arrays, size: int) -> Arrays:
    """So many rows: these, then copies of the last."""
    rows = _rows(inputs)
    if size == rows:
        return inputs
    full: dict[str, Array] = {}
    for name, array in inputs.items():
        full[name] = np.empty((size, *array.shape[1:]), array.dtype)
        full[name][:rows], full[name][rows:] = array, array[-1]
    return full


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))
