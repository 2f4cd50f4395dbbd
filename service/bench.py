"""A load generator against any running server: `python -m service bench --model fashion-28 --clients 16`.

Closed loop (`--clients`): so many clients, each sends its next request when the last is answered: finds the capacity.
Open loop (`--rate`): requests arrive at random (Poisson) whether or not the server keeps up; each latency counts
from when the request should have been sent, so that a stall is charged to all requests behind it (no coordinated
omission). Only the standard library and numpy, so that the client's own cost stays small. Ctrl+C ends a run early and
reports what was seen until then.
"""

import argparse
import asyncio
import json
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

ERROR = "no answer"
"""Counted where a status would be when the connection failed."""


@dataclass(frozen=True)
class Plan:
    """What to send: `images` in each request, for `seconds`; `clients` or else `rate` in requests per second."""

    url: str
    model: str
    seconds: float
    clients: int
    rate: float | None
    images: int
    format: str
    label: str | None

    def body(self, number: int) -> bytes:
        """The request of this number; no two ask for the same picture."""
        first = number * self.images % (2**32 - self.images)
        asked: dict[str, object] = {"model": self.model, "format": self.format}
        asked |= {"label": self.label} if self.label is not None else {}
        asked |= {"seed": first} if self.images == 1 else {"seeds": f"{first}-{first + self.images - 1}", "as": "zip"}
        return json.dumps(asked).encode()


@dataclass
class Tally:
    """Every request's latency in seconds from its intended start, and how it ended."""

    latencies_s: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    body_bytes: int = 0


class Connections:
    """Kept-alive HTTP/1.1 connections, lent one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise SystemExit(f"--url: {url} must begin with http://")
        self._host, self._port = parts.hostname, parts.port or 80
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        pair = self._waiting() or await asyncio.open_connection(self._host, self._port)
        try:
            yield pair
        except BaseException:
            pair[1].close()
            raise
        self._idle.append(pair)

    def _waiting(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """An idle connection that the other side has not closed meanwhile; as every client must look."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def send(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request: status and body."""
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        async with self._lent() as (reader, writer):
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", answer, re.IGNORECASE)
            return int(answer.split(b" ", 2)[1]), await reader.readexactly(int(length[1])) if length else b""

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()


def run_bench(plan: Plan, *, as_json: bool) -> int:
    """Run and print; the exit status is 1 where no request was answered with 200."""
    report = asyncio.run(_until_interrupted(plan))
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            print(f"{name:22} {value}")
    return 0 if report["images_per_s"] else 1


async def _until_interrupted(plan: Plan) -> dict[str, object]:
    """As `measure`; the first SIGINT ends the run, a second one the program."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupted() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    with suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGINT, interrupted)
    return await measure(plan, stop)


async def measure(plan: Plan, stop: asyncio.Event | None = None) -> dict[str, object]:
    """One run against the server: see the module's docstring for what the numbers mean.

    Args:
        plan: what to send.
        stop: set, it ends the run before its time.
    """
    stop = stop or asyncio.Event()
    connections = Connections(plan.url)
    try:
        status, answer = await connections.send("POST", "/generate", plan.body(2**31 // plan.images))
    except OSError as error:
        raise SystemExit(f"--url: nothing answers at {plan.url}: {error}") from None
    if status != 200:
        raise SystemExit(f"the server refuses such requests with {status}: {answer.decode(errors='replace')[:500]}")
    before = await _scrape(connections)
    tally, began = Tally(), time.perf_counter()
    await (_open_loop(plan, connections, tally, stop) if plan.rate else _closed_loop(plan, connections, tally, stop))
    elapsed_s = time.perf_counter() - began
    after = await _scrape(connections)
    connections.close()
    return _report(plan, tally, elapsed_s, {name: value - before.get(name, 0.0) for name, value in after.items()})


async def _closed_loop(plan: Plan, connections: Connections, tally: Tally, stop: asyncio.Event) -> None:
    end = time.perf_counter() + plan.seconds
    numbers = iter(range(2**32))

    async def client() -> None:
        while (now := time.perf_counter()) < end and not stop.is_set():
            await _one(plan, connections, tally, next(numbers), now)

    await asyncio.gather(*(client() for _ in range(plan.clients)))


async def _open_loop(plan: Plan, connections: Connections, tally: Tally, stop: asyncio.Event) -> None:
    assert plan.rate is not None
    began = time.perf_counter()
    gaps_s = np.random.RandomState(0).exponential(1 / plan.rate, max(1, round(plan.rate * plan.seconds)))
    sent: set[asyncio.Task[None]] = set()
    for number, due_s in enumerate(np.cumsum(gaps_s)):
        await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
        if stop.is_set():
            break
        task = asyncio.create_task(_one(plan, connections, tally, number, began + due_s))
        sent.add(task)
        task.add_done_callback(sent.discard)
    await asyncio.gather(*sent)


async def _one(plan: Plan, connections: Connections, tally: Tally, number: int, due: float) -> None:
    try:
        status, body = await connections.send("POST", "/generate", plan.body(number))
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        tally.ends[ERROR] += 1
        await asyncio.sleep(0.01)  # a server that is gone is not asked in a tight loop
        return
    tally.ends[str(status)] += 1
    if status == 200:
        tally.latencies_s.append(time.perf_counter() - due)
        tally.body_bytes += len(body)


async def _scrape(connections: Connections) -> dict[str, float]:
    """The server's series by name and labels; none where it has no /metrics."""
    status, body = await connections.send("GET", "/metrics")
    if status != 200:
        return {}
    lines = (line.rpartition(" ") for line in body.decode().splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def _report(plan: Plan, tally: Tally, elapsed_s: float, server: dict[str, float]) -> dict[str, object]:
    answered = len(tally.latencies_s)
    images = answered * plan.images
    loop = f"open, {plan.rate:g} requests/s" if plan.rate else f"closed, {plan.clients} clients"
    report: dict[str, object] = {"model": plan.model, "loop": loop, "seconds": round(elapsed_s, 3)}
    report |= {"requests": sum(tally.ends.values()), "ends": dict(sorted(tally.ends.items()))}
    report |= {"requests_per_s": round(answered / elapsed_s, 1), "images_per_s": round(images / elapsed_s, 1)}
    if answered:
        marks = np.percentile(np.array(tally.latencies_s) * 1000, [50, 95, 99, 99.9, 100])
        names = ("p50", "p95", "p99", "p999", "max")
        report |= {f"{name}_ms": round(float(mark), 3) for name, mark in zip(names, marks, strict=True)}
        report["bytes_per_image"] = round(tally.body_bytes / images)
    if images and (cpu_s := server.get("process_cpu_seconds_total")) is not None:
        report["server_cpu_ms_per_image"] = round(cpu_s * 1000 / images, 4)
    runs = _batches(server)
    if runs:
        report["runs_by_rows"] = runs
    return report


def _batches(server: dict[str, float]) -> dict[str, int]:
    """Runs by size from the cumulative buckets, over all models."""
    cumulative: Counter[float] = Counter()
    for name, value in server.items():
        if match := re.fullmatch(r'ganymede_batch_rows_bucket\{.*le="([^"]+)".*\}', name):
            cumulative[float(match[1])] += round(value)
    counts, before, low = {}, 0, 0
    for bound, total in sorted(cumulative.items()):
        if total > before:
            top = f"{low + 1} or more" if bound == float("inf") else f"{low + 1}-{bound:g}"
            counts[str(low + 1) if bound == low + 1 else top] = total - before
        before, low = total, low if bound == float("inf") else round(bound)
    return counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench`."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--model", required=True, help="the model to draw with")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to send (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="closed loop: clients (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="open loop instead: requests per second")
    parser.add_argument("--images", type=int, default=1, help="images in each request (default: %(default)s)")
    parser.add_argument("--format", default="png", choices=["png", "jpeg", "webp"])
    parser.add_argument("--label", help="class name or index, for a model that has classes")
    parser.add_argument("--json", action="store_true", help="print JSON")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The flags as a plan; ends the program where one makes no sense."""
    for name in ("seconds", "clients", "images"):
        if getattr(arguments, name) <= 0:
            raise SystemExit(f"--{name}: {getattr(arguments, name)} must be above 0")
    if arguments.rate is not None and arguments.rate <= 0:
        raise SystemExit(f"--rate: {arguments.rate} must be above 0")
    names = ("url", "model", "seconds", "clients", "rate", "images", "format", "label")
    return Plan(**{name: getattr(arguments, name) for name in names})
