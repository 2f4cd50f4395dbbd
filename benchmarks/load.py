"""A cheap closed-loop load, the same for every server: raw HTTP/1.1 over kept-alive connections.

Each client sends its next request when the last is answered. The protocol is parsed by hand and bodies are formatted
in one step, so that a request costs the client some tens of microseconds of the cores it shares with the server; the
load measures its own CPU time, and the tables state it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import uvloop

NO_ANSWER = "no answer"
"""Counted where a status would be: the connection failed or closed, or nothing came within STRAGGLERS_S."""
STRAGGLERS_S = 10.0
"""How long after the period its last requests may still be answered."""
ACCEPT_S = 5.0
"""The period waits so long for every client's first answer: while a server still accepts, the load is not yet whole."""
RECONNECT_S = 0.02
_HEAD = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


@dataclass
class Period:
    """What was seen in one or more measured periods.

    Args:
        seconds: their length.
        answered: 200s that arrived within them.
        latencies_s: of the requests sent within them and answered with 200, whenever that was.
        ends: how those requests ended: statuses and NO_ANSWER.
        server_cpu_s: CPU time of all of the server's processes.
        client_cpu_s: CPU time of the load itself.
        sizes: bytes of the bodies of 200s.
    """

    seconds: float = 0.0
    answered: int = 0
    latencies_s: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    sizes: int = 0

    def add(self, other: "Period") -> None:
        """Pool another period of the same server and load: rates and percentiles are then over both."""
        self.seconds += other.seconds
        self.answered += other.answered
        self.latencies_s += other.latencies_s
        self.ends += other.ends
        self.server_cpu_s += other.server_cpu_s
        self.client_cpu_s += other.client_cpu_s
        self.sizes += other.sizes

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def errors(self) -> int:
        """Requests that ended in anything but 200."""
        return sum(count for end, count in self.ends.items() if end != "200")

    @property
    def cpu_ms(self) -> float:
        """The server's CPU time for each answer, in ms; NaN where there is none."""
        return self.server_cpu_s * 1000 / self.answered if self.answered else float("nan")

    @property
    def client_cores(self) -> float:
        """Cores that the load itself kept busy."""
        return self.client_cpu_s / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies in ms; NaN where nothing was answered."""
        return float(np.percentile(self.latencies_s, percent)) * 1000 if self.latencies_s else float("nan")


def closed_loop(
    port: int, bodies: Iterator[bytes], clients: int, seconds: float, cpu_s: Callable[[], float], warm_s: float = 0.3
) -> Period:
    """Load `POST /generate` of a server on this machine for `warm_s`, then measure for `seconds`.

    Args:
        bodies: the requests' JSON, endless; no two alike, so that nothing is answered from a cache.
        cpu_s: the server's CPU time so far.
    """
    return uvloop.run(_measure(port, bodies, clients, seconds, cpu_s, warm_s))


async def _measure(
    port: int, bodies: Iterator[bytes], clients: int, seconds: float, cpu_s: Callable[[], float], warm_s: float
) -> Period:
    load = _Load(port, bodies)
    users = [_Client(load) for _ in range(clients)]
    for user in users:
        user.connect()
    await asyncio.sleep(warm_s)
    await _until(lambda: load.met >= clients, ACCEPT_S)
    server_before, client_before, load.begin = cpu_s(), time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    load.end = time.perf_counter()
    period = load.period
    period.seconds = load.end - load.begin
    period.client_cpu_s = time.process_time() - client_before
    period.server_cpu_s = cpu_s() - server_before
    await _until(lambda: not load.waiting, STRAGGLERS_S)
    for user in users:
        user.leave()
    return period


async def _until(reached: Callable[[], bool], most_s: float) -> None:
    end = time.perf_counter() + most_s
    while not reached() and time.perf_counter() < end:  # noqa: ASYNC110  (an event would cost the clients on every answer)
        await asyncio.sleep(0.005)


class _Load:
    """What the clients of one measurement share."""

    def __init__(self, port: int, bodies: Iterator[bytes]) -> None:
        self.port, self.bodies, self.period = port, bodies, Period()
        self.begin = self.end = float("inf")
        self.waiting = 0  # clients whose request is not answered yet
        self.met = 0  # clients who have had an answer


class _Client(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self, load: _Load) -> None:
        self._load, self._loop = load, asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._left = self._met = False
        self._sent: float | None = None
        self._received = b""
        self._total = 0  # bytes of the whole answer; 0 until its head is in, -1 where it comes in chunks
        self._task: asyncio.Task[None] | None = None

    def connect(self, delay_s: float = 0.0) -> None:
        """Open the connection; the first request goes out with it."""
        self._task = self._loop.create_task(self._connect(delay_s))

    async def _connect(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            await self._loop.create_connection(lambda: self, "127.0.0.1", self._load.port)
        except OSError:
            if time.perf_counter() < self._load.end:
                self._count(time.perf_counter(), NO_ANSWER)
                self.connect(RECONNECT_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to send."""
        self._transport = transport  # type: ignore[assignment]
        self._send()

    def _send(self) -> None:
        now = time.perf_counter()
        if now >= self._load.end or self._left or self._transport is None:
            return
        body = next(self._load.bodies)
        self._sent, self._received, self._total = now, b"", 0
        self._load.waiting += 1
        self._transport.write(_HEAD % (len(body), body))

    def data_received(self, data: bytes) -> None:
        """Collect the answer; when it is whole, count it and send the next request."""
        if self._sent is None:
            return  # bytes that nobody asked for
        self._received = received = self._received + data if self._received else data
        if not self._total:
            head = received.find(b"\r\n\r\n")
            if head < 0:
                return
            self._total = _length(received[:head].lower(), head + 4)
        whole = received.endswith(b"\r\n0\r\n\r\n") if self._total < 0 else len(received) >= self._total
        if whole:
            if not self._met:
                self._met = True
                self._load.met += 1
            self._finish(received[9:12].decode("ascii", "replace"), len(received))
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the request that was on it; a new connection takes over while the period lasts."""
        self._transport = None
        if self._sent is not None:
            self._finish(NO_ANSWER, 0)
        if not self._left and time.perf_counter() < self._load.end:
            self.connect(RECONNECT_S)

    def leave(self) -> None:
        """Close; a request that is still unanswered counts as such."""
        self._left = True
        if self._sent is not None:
            self._finish(NO_ANSWER, 0)
        if self._transport is not None:
            self._transport.close()
        elif self._task is not None:
            self._task.cancel()

    def _finish(self, end: str, size: int) -> None:
        assert self._sent is not None
        sent, self._sent = self._sent, None
        self._load.waiting -= 1
        self._count(sent, end, size)

    def _count(self, sent: float, end: str, size: int = 0) -> None:
        load, period, now = self._load, self._load.period, time.perf_counter()
        if end == "200" and load.begin <= now < load.end:
            period.answered += 1
            period.sizes += size
        # Who got no answer at all may have asked before the period; hiding that would flatter the server.
        if load.begin <= sent < load.end or (end == NO_ANSWER and sent < load.end):
            period.ends[end] += 1
            if end == "200":
                period.latencies_s.append(now - sent)


def _length(head: bytes, offset: int) -> int:
    """The answer's length from its head in lower case; -1 for chunks, the head alone where nothing is said."""
    _, found, rest = head.partition(b"content-length:")
    if found:
        return offset + int(rest.split(b"\r\n", 1)[0])
    return -1 if b"transfer-encoding: chunked" in head else offset
