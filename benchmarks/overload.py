"""What three times more load than a server can bear does to it: `make bench-overload`.

    python benchmarks/overload.py --seconds 20 [--cpu-ms 20] [--append benchmarks/RESULTS.md]

A generator that costs at least `--cpu-ms` an image is built and served by the real server. Closed-loop clients find its
capacity; then requests with a deadline arrive at random (Poisson) at three times that rate, first from clients that
go away when they are refused, then from clients that come back when they were told to. Then the queue is filled to four
seconds' work, clients leave, and inside of this process one row of a batch is poisoned and one run never ends.
The load shares the cores with the server, so that goodput is held against a capacity measured under the same condition.
"""

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.graphs import BAD, ENDLESS, LATENT_DIM, write_faulty, write_heavy
from benchmarks.server import serving, write_down
from service.engine.engine import Engine, EngineOptions
from service.errors import GanymedeError

CLIENTS = 32
OVERLOAD = 3.0
LATE_MS = 10.0
"""A client that was told to come back does so up to this much later."""
PROBES_S = {"/livez": 0.05, "/metrics": 0.2}
"""Seconds between probes. A scrape costs a millisecond; more of them would be a load of their own."""
LAG_FACTOR = 4
COLUMNS = ("measure", "value", "goal", "met")
LAG = "ganymede_event_loop_lag_seconds_bucket"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
_RETRY = re.compile(rb"(?i)\r\nretry-after-ms: (\d+)")


@dataclass
class Reply:
    """One answer. `latency_s` from when the request was due; `retry_s` is what `retry-after-ms` says."""

    status: int
    latency_s: float
    retry_s: float | None
    body: bytes
    head: bytes = b""


class Connection(asyncio.Protocol):
    """A kept-alive connection with at most one request on it, parsed by hand: the load shares the server's cores."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._received = b""
        self._head = self._total = 0  # bytes of the answer's head and of all of it; 0 until the head is in

    @property
    def open(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self._transport = transport  # type: ignore[assignment]

    def ask(self, request: bytes) -> "asyncio.Future[tuple[bytes, bytes]]":
        """The answer's head and body, or ConnectionError."""
        assert self._transport is not None
        self._answer, self._received, self._total = asyncio.get_running_loop().create_future(), b"", 0
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Collect the answer."""
        self._received = received = self._received + data if self._received else data
        if not self._total:
            end = received.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            length = _LENGTH.search(received, 0, end)
            self._head, self._total = end, end + (int(length[1]) if length else 0)
        if len(received) >= self._total and self._answer is not None and not self._answer.done():
            self._answer.set_result((received[: self._head], received[self._head :]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits hears of it."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the connection was closed"))

    def close(self) -> None:
        """Leave, answered or not."""
        if self._transport is not None:
            self._transport.close()


@dataclass
class Client:
    """Kept-alive connections to one server, each lent to one request at a time."""

    url: str
    model: str
    seeds: Iterator[int] = field(default_factory=lambda: iter(count()))
    _idle: list[Connection] = field(default_factory=list)

    async def draw(self, timeout_ms: float, seed: int, due: float | None = None) -> Reply:
        """One image with a deadline."""
        body = b'{"model":"%b","seed":%d}' % (self.model.encode(), seed)
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-Timeout-Ms: %d\r\n"
        return await self.send(head % timeout_ms + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), due)

    async def get(self, path: str) -> Reply:
        """One page."""
        return await self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    async def send(self, request: bytes, due: float | None = None) -> Reply:
        """One request. A connection whose request was cancelled is closed."""
        due = time.perf_counter() if due is None else due
        while self._idle:
            if (connection := self._idle.pop()).open:
                try:
                    return await self._ask(connection, request, due)
                except ConnectionError:
                    pass  # the server had closed it, idle as it was
        parts = urlsplit(self.url)
        _, connection = await asyncio.get_running_loop().create_connection(Connection, parts.hostname, parts.port)
        return await self._ask(connection, request, due)

    async def _ask(self, connection: Connection, request: bytes, due: float) -> Reply:
        try:
            head, body = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        retry = _RETRY.search(head)
        return Reply(int(head[9:12]), time.perf_counter() - due, int(retry[1]) / 1000 if retry else None, body, head)

    async def scrape(self) -> dict[str, float]:
        """The server's series by name and labels."""
        lines = (await self.get("/metrics")).body.decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()


@dataclass
class Found:
    """The table's rows."""

    rows: list[list[str]] = field(default_factory=list)

    def add(self, measure: str, value: float | str, form: str = "", *, least: float | None = None,
            most: float | None = None, unit: str = "") -> None:  # fmt: skip
        """One row, held against its goal where it has one."""
        goal = (
            f"at least {least:g}{unit}" if least is not None else f"at most {most:g}{unit}" if most is not None else ""
        )
        met = ""
        if goal and not isinstance(value, str):
            met = "yes" if (least is None or value >= least) and (most is None or value <= most) else "NO"
        self.rows.append([measure, f"{value:{form}}{unit}", goal, met])


@dataclass(frozen=True)
class Moment:
    """A scrape, and the CPU seconds of this process, which is the load, at that time."""

    at: float
    series: dict[str, float]
    own_cpu_s: float

    def cores_until(self, later: "Moment") -> str:
        """What the server and the load took on average."""
        name, seconds = "process_cpu_seconds_total", later.at - self.at
        server = (later.series[name] - self.series[name]) / seconds
        return f"{server:.2f}, {(later.own_cpu_s - self.own_cpu_s) / seconds:.2f}"


async def moment(client: Client) -> Moment:
    """Now."""
    series = await client.scrape()
    return Moment(time.perf_counter(), series, time.process_time())


async def capacity(client: Client, seconds: float, timeout_ms: float, found: Found, when: str, rounds: int) -> float:
    """Images per second of closed-loop clients, in the last of so many rounds: the first warms server and prices up."""
    answered_at: list[float] = []
    end = 0.0

    async def loop() -> None:
        while time.perf_counter() < end:
            if (await client.draw(timeout_ms, next(client.seeds))).status == 200:
                answered_at.append(time.perf_counter())

    for _ in range(rounds):
        answered_at.clear()
        before = await moment(client)
        end = before.at + seconds
        await asyncio.gather(*(loop() for _ in range(CLIENTS)))
    after = await moment(client)
    spent = after.series["process_cpu_seconds_total"] - before.series["process_cpu_seconds_total"]
    # All are counted until the last is answered: lanes are full until then but for the last run.
    rate = len(answered_at) / (max(answered_at) - before.at)
    found.add(f"capacity, images/s, {when}", rate, ".1f")
    found.add(f"the server's CPU-ms an image, {when}", spent * 1000 / len(answered_at), ".1f")
    found.add(f"cores of the server and of the load, {when}", before.cores_until(after))
    return rate


async def poisson(rate: float, seconds: float, send: Callable[[float], Awaitable[None]]) -> None:
    """Start `send(due)` at random moments, whether or not earlier ones have ended; wait for all."""
    began, tasks = time.perf_counter(), set()
    for due_s in np.cumsum(np.random.RandomState(0).exponential(1 / rate, max(1, round(rate * seconds)))):
        await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
        tasks.add(asyncio.ensure_future(send(began + due_s)))
    await asyncio.gather(*tasks)


async def probing(client: Client, path: str, seen_s: list[float]) -> None:
    """Ask for a page again and again until cancelled."""
    while True:
        await asyncio.sleep(PROBES_S[path])
        seen_s.append((await client.get(path)).latency_s)


async def overload(client: Client, rate: float, seconds: float, timeout_ms: float, found: Found) -> float:
    """Three times the capacity, from clients that never come back; images per second."""
    replies: list[Reply] = []
    answered_at: list[float] = []
    probes: dict[str, list[float]] = {path: [] for path in PROBES_S}
    watchers = [asyncio.ensure_future(probing(client, path, seen)) for path, seen in probes.items()]

    async def send(due: float) -> None:
        reply = await client.draw(timeout_ms, next(client.seeds), due)
        replies.append(reply)
        if reply.status == 200:
            answered_at.append(time.perf_counter())

    before = await moment(client)
    began, fill_s = before.at, min(timeout_ms / 1000, seconds / 4)
    full = asyncio.ensure_future(later(fill_s, lambda: moment(client)))
    await poisson(OVERLOAD * rate, seconds, send)
    after = await moment(client)
    for watcher in watchers:
        watcher.cancel()
    good = [reply.latency_s for reply in replies if reply.status == 200]
    kept = sum(latency_s * 1000 <= timeout_ms for latency_s in good)
    refused = [reply.latency_s for reply in replies if reply.status == 429]
    ends = Counter(reply.status for reply in replies)
    # From when the queue has filled to when nothing arrives any more: what the lanes did in a steady state.
    steady = [at for at in answered_at if fill_s <= at - began <= seconds]
    found.add("answers by status", ", ".join(f"{status}: {number}" for status, number in sorted(ends.items())))
    found.add("cores of the server and of the load, at three times the capacity", before.cores_until(after))
    accepted = len(replies) - len(refused)
    found.add("accepted requests that kept their deadline", kept / max(1, accepted) * 100, ".1f", least=99, unit=" %")
    found.add("rejections, p99", percentile(refused, 99), ".1f", most=50, unit=" ms")
    for path, seen in probes.items():
        found.add(f"{path}, p99", percentile(seen, 99), ".1f", most=50, unit=" ms")
    memory = [seen.series["process_resident_memory_bytes"] / 2**20 for seen in (before, await full, after)]
    found.add("memory before, with the queue full, and after", ", ".join(f"{held:.1f}" for held in memory) + " MiB")
    found.add("memory, growth with the queue full", (memory[2] / memory[1] - 1) * 100, ".1f", most=5, unit=" %")
    return len(steady) / (seconds - fill_s)


async def later(delay_s: float, ask: Callable[[], Awaitable[Moment]]) -> Moment:
    """What is seen after so many seconds."""
    await asyncio.sleep(delay_s)
    return await ask()


async def obedience(client: Client, rate: float, seconds: float, timeout_ms: float, found: Found) -> None:
    """Three times the capacity, from clients that come back once, when they were told to."""
    returned: list[tuple[float, Reply]] = []
    late = np.random.RandomState(1)

    async def send(due: float) -> None:
        seed = next(client.seeds)
        reply = await client.draw(timeout_ms, seed, due)
        if reply.status == 429 and reply.retry_s is not None:
            await asyncio.sleep(reply.retry_s + late.uniform(0, LATE_MS) / 1000)
            returned.append((reply.retry_s, await client.draw(timeout_ms, seed)))

    await poisson(OVERLOAD * rate, seconds, send)
    accepted = [(told_s, reply) for told_s, reply in returned if reply.status != 429]
    share = len(accepted) / max(1, len(returned)) * 100
    found.add(f"of {len(returned)} clients that came back, accepted", share, ".1f", least=95, unit=" %")
    # Whoever was finished long before the longest accepted wait could have come so much earlier.
    settled = [(told_s, reply.latency_s) for told_s, reply in accepted if reply.status == 200]
    longest_s = percentile([latency_s for _, latency_s in settled], 98) / 1000
    right = sum(max(0.0, longest_s - took_s) <= max(0.05, 0.25 * told_s) for told_s, took_s in settled)
    found.add("Retry-After right within 25 % or 50 ms", right / max(1, len(settled)) * 100, ".1f", least=95, unit=" %")


async def lag(client: Client, rate: float, seconds: float, found: Found) -> None:
    """The event loop's lag while the queue holds four seconds' work."""
    sending = asyncio.ensure_future(
        poisson(LAG_FACTOR * rate, LAG_FACTOR / (LAG_FACTOR - 1) + seconds, lambda due: _ignore(client, due))
    )
    depths, began, start, end = [0.0], time.perf_counter(), None, None
    while not sending.done():
        await asyncio.sleep(0.1)
        series = await client.scrape()
        depth = sum(value for name, value in series.items() if name.startswith("ganymede_queue_rows"))
        if depth >= LAG_FACTOR * rate or (start is None and time.perf_counter() - began > 2 + seconds / 2):
            start, end = start or series, series
            depths.append(depth)
    await sending
    assert start is not None and end is not None
    found.add("rows queued at most / served in a second", max(depths) / rate, ".1f", least=LAG_FACTOR)
    found.add("event loop lag, p99", bucket_percentile(start, end, LAG, 0.99) * 1000, ".1f", most=10, unit=" ms")


async def _ignore(client: Client, due: float) -> None:
    await client.draw(30_000, next(client.seeds), due)


async def leaving(client: Client, rate: float, found: Found) -> None:
    """Four fifths of a second's requests leave before their turn."""

    def ran(series: dict[str, float]) -> float:
        return sum(value for name, value in series.items() if name.startswith("ganymede_rows_total"))

    before = await client.scrape()
    number = max(20, round(rate))
    tasks = [asyncio.ensure_future(client.draw(30_000, next(client.seeds))) for _ in range(number)]
    await asyncio.sleep(0.1)
    gone = tasks[number // 5 :]
    left = sum(task.cancel() for task in gone)
    await asyncio.gather(*tasks, return_exceptions=True)
    answered = number - left
    after = await client.scrape()
    while sum(value for name, value in after.items() if name.startswith("ganymede_lanes_busy")):
        await asyncio.sleep(0.05)
        after = await client.scrape()
    rows = ran(after) - ran(before)
    found.add(f"of {left} clients that left, rows that ran", rows - answered, ".0f")


async def faults(models: Path, model: str, found: Found) -> None:
    """A poisoned row and an endless run, in this process."""
    async with Engine(EngineOptions(models=models, lanes=1, poll_models_s=None, run_timeout_s=1.0)) as engine:
        z = np.random.RandomState(0).randn(9, LATENT_DIM).astype(np.float32)
        z[3, 0] = BAD - 1
        busy = asyncio.ensure_future(engine.generate(model, latents=z[8:]))
        await asyncio.sleep(0)
        sent = [engine.generate(model, latents=z[row : row + 1]) for row in range(8)]
        replies = await asyncio.gather(busy, *sent, return_exceptions=True)
        good = sum(not isinstance(reply, BaseException) for reply in replies[1:])
        found.add("of 8 in a batch with one poisoned, answered", float(good), ".0f", least=7, most=7)
        z[0, 0] = ENDLESS * 2
        began = time.perf_counter()
        try:
            await engine.generate(model, latents=z[:1])
        except GanymedeError:
            found.add(
                "an endless run was ended after (set: 1 s)", time.perf_counter() - began, ".2f", most=1.5, unit=" s"
            )
        again = await engine.generate(model, seeds=[1])
        found.add("and the next request was answered", float(len(again.images)), ".0f", least=1)


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds; NaN of nothing, which meets no goal."""
    return float(np.percentile(seconds, share)) * 1000 if seconds else float("nan")


def bucket_percentile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float:
    """The upper bound of the histogram's bucket that holds this percentile of what was observed in between."""
    counts = sorted(
        (float(match[1]), value - before.get(series, 0.0))
        for series, value in after.items()
        if (match := re.fullmatch(name + r'\{le="([^"]+)"\}', series))
    )
    total = counts[-1][1]
    return next((bound for bound, number in counts if total and number >= share * total), float("nan"))


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown under COLUMNS."""
    lines = [COLUMNS, ("---", "---:", "---:", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def plan_of(client: Client) -> str:
    """How the server runs the model."""
    (plan,) = json.loads((await client.get(f"/models/{client.model}")).body)["plans"].values()
    return f"{plan['lanes']} x {plan['threads']} threads, {plan['max_batch']} rows a run"


async def measure(url: str, model: str, seconds: float, timeout_ms: float, found: Found) -> None:
    """Every phase against one server."""
    client = Client(url, model)
    found.add("the plan", await plan_of(client))
    rate = await capacity(client, seconds / 2, 30_000, found, "before", 2)
    found.add("deadline of each request", timeout_ms, ".0f", unit=" ms")
    good = await overload(client, rate, seconds, timeout_ms, found)
    # Machines drift: what was served in between is held against the mean of what could be before and after it.
    again = await capacity(client, seconds / 2, 30_000, found, "after", 1)
    found.add("goodput / capacity", good / ((rate + again) / 2), ".2f", least=0.9)
    await obedience(client, rate, seconds, timeout_ms, found)
    await lag(client, rate, seconds / 2, found)
    await leaving(client, rate, found)
    client.close()


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="A server at three times its capacity.")
    parser.add_argument("--seconds", type=float, default=20.0, help="the long phases last so long")
    parser.add_argument("--cpu-ms", type=float, default=20.0, help="CPU-ms of one image, at least")
    parser.add_argument("--timeout-ms", type=float, default=1000.0, help="deadline of each request")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    if min(arguments.seconds, arguments.cpu_ms, arguments.timeout_ms) <= 0:
        parser.error("--seconds, --cpu-ms and --timeout-ms must be above 0")
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "heavy"
        model, cpu_ms = write_heavy(models, arguments.cpu_ms)
        found.add("the generator's CPU-ms an image", cpu_ms, ".1f", least=arguments.cpu_ms)
        with serving(models) as url:
            uvloop.run(measure(url, model, arguments.seconds, arguments.timeout_ms, found))
        models = Path(folder) / "faulty"
        uvloop.run(faults(models, write_faulty(models), found))
    text = table(found.rows)
    write_down("Three times the capacity", text, arguments.append)


if __name__ == "__main__":
    main()
