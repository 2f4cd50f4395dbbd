"""What one request did: collected while it runs, told once at its end."""

import json
import logging
import time
from dataclasses import dataclass, field
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from service.metrics import UNKNOWN, Metrics

if TYPE_CHECKING:
    from service.engine.engine import Timings
    from service.engine.fairness import Share

STATE_KEY = "ganymede_record"
_access = logging.getLogger("ganymede.access")


@dataclass(slots=True)
class Record:
    """One request. `stages` are seconds, in the order in which they ended.

    `model` and `task` label metrics: only a loaded model's `name@version`, or `other`.
    """

    request_id: str
    method: str
    path: str
    trace_id: str
    span_id: str
    trace_flags: str
    started: float = field(default_factory=perf_counter)
    model: str = UNKNOWN
    task: str = "other"
    status: int = 0
    images: int = 0
    body_bytes: int = 0
    rejected: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    batch_rows: int | None = None
    coalesced: bool = False
    lone: bool = False
    """No other request is being answered, and lately none came over another connection."""
    caller: str | None = None
    """The key's name, or the address, where callers are told apart."""
    share: "Share | None" = None
    """Whose turn it is, where clients take turns."""

    def take(self, timings: "Timings") -> None:
        """Adopt the timings that ride on the engine's result, which has just come.

        `queue` is all that passed since the last stage's end but the run, so that the stages leave no gap: waiting for
        a lane, and for the event loop before and after it.
        """
        passed_s = perf_counter() - self.started - sum(self.stages.values())
        self.stages["queue"] = max(timings.queue_s, passed_s - timings.run_s)
        self.stages["run"] = timings.run_s
        self.batch_rows = timings.batch_rows

    def traceparent(self) -> str:
        """This request's span as W3C Trace Context writes it, version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.trace_flags}"

    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds of each stage so far, and in total."""
        told_ms = [seconds * 1000 for seconds in self.stages.values()]
        told_ms.append((perf_counter() - self.started) * 1000)
        return _timings(tuple(self.stages)) % tuple(told_ms)


@lru_cache(256)
def _timings(stages: tuple[str, ...]) -> str:
    """The header with a place for each stage's milliseconds."""
    return ", ".join(f"{stage};dur=%.3f" for stage in (*stages, "total"))


def record_of(request: Request) -> Record:
    """The record that the middleware attached."""
    record: Record = request.scope["state"][STATE_KEY]
    return record


def publish(record: Record, metrics: Metrics, *, log: bool) -> None:
    """Tell a finished request: one set of timings becomes metrics and the log line (and was the header)."""
    metrics.observe(record)
    if not log or not _access.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "span_id": record.span_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "duration_ms": _milliseconds(perf_counter() - record.started),
        "bytes": record.body_bytes,
    }
    if record.task != "other":
        fields |= {"task": record.task, "model": record.model, "images": record.images}
        for stage, seconds in record.stages.items():
            fields[f"{stage}_ms"] = _milliseconds(seconds)
    if record.batch_rows is not None:
        fields["batch_rows"] = record.batch_rows
    if record.coalesced:
        fields["coalesced"] = True
    if record.caller is not None:
        fields["caller"] = record.caller
    if record.rejected is not None:
        fields["rejected"] = record.rejected
    _access.handle(_Line(f"{record.method} {record.path} {record.status}", fields))


def _milliseconds(seconds: float) -> float:
    """To the microsecond. In a quarter of the time that `round` takes to three places."""
    return round(seconds * 1e6) / 1000


class _Line(logging.LogRecord):
    """A request's line as `logging` hands it on, made without looking for the caller, the thread and the process.

    They are the same for every line, none of our formats shows them, and they take longer than all of the rest.
    """

    def __init__(self, message: str, fields: dict[str, Any]) -> None:
        now_s = time.time()
        told = {"msg": message, "created": now_s, "msecs": now_s % 1 * 1000, "fields": fields}
        self.__dict__ = {**_EVERY_LINE, **told}


_EVERY_LINE = logging.LogRecord(_access.name, logging.INFO, __file__, 0, "", (), None, "publish").__dict__


@lru_cache(4)
def _clock(second: int, form: str) -> str:
    """A second as a line begins with it: many lines are of the same one."""
    return time.strftime(form, time.localtime(second))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _clock(int(record.created), "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line for a person: time, level, message, then `key=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """To the second."""
        return _clock(int(record.created), datefmt or "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        return f"{super().format(record)}{_pairs(tuple(fields)) % fields}"


@lru_cache(256)
def _pairs(names: tuple[str, ...]) -> str:
    """A place for each field that the message has not: all lines of a kind have the same."""
    pairs = " ".join(f"{name}=%({name})s" for name in names if name not in ("method", "path", "status"))
    return f"  {pairs}" if pairs else ""


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}
