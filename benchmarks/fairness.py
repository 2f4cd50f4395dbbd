"""One client that asks for ten times its share, and what the others feel of it: `make bench-fairness`.

    python benchmarks/fairness.py --seconds 10 [--cpu-ms 5] [--append benchmarks/RESULTS.md]

Twenty clients with keys of their own ask at random (Poisson) for pictures with a deadline. Sent fairly, all ask for the
same; then, with the same total, one asks for ten times as much as that and the other nineteen for what is left. Both
loads are measured in turns, below the server's capacity and above it, by a server where clients take turns (`fair`) and
by one where they do not. The figure is the p99 of the other nineteen, unfair over fair.
"""

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.graphs import write_heavy
from benchmarks.overload import Client, Found, percentile, table
from benchmarks.server import serving, write_down
from service.keys import Key, digest_of

CLIENTS = 20
TIMES = 10
LOADS = (0.7, 1.3)
"""Of the capacity."""
GOAL = 1.5
TIMEOUT_MS = 1000.0
HEAD = (
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: key-%d\r\n"
    b"X-Request-Timeout-Ms: %d\r\nContent-Length: %d\r\n\r\n%b"
)


@dataclass
class Seen:
    """What the clients but the first met."""

    latencies_s: list[float] = field(default_factory=list)
    ends: Counter[int] = field(default_factory=Counter)


def shares(unfair: bool) -> np.ndarray:
    """Each client's part of the total, the first's first."""
    even = np.full(CLIENTS, 1 / CLIENTS)
    if not unfair:
        return even
    even[0] *= TIMES
    even[1:] *= (1 - even[0]) / even[1:].sum()
    return even


def keys() -> str:
    """A key for each client."""
    return ";".join(Key(f"client-{n}", digest_of(b"key-%d" % n)).line for n in range(CLIENTS))


async def ask(client: Client, who: int, due: float | None = None) -> tuple[int, float]:
    """One picture for a client: status and seconds."""
    body = b'{"model":"%b","seed":%d}' % (client.model.encode(), next(client.seeds))
    reply = await client.send(HEAD % (who, TIMEOUT_MS, len(body), body), due)
    return reply.status, reply.latency_s


async def capacity(client: Client, seconds: float) -> float:
    """Images per second of closed-loop clients, in the second half of the time."""
    began, answered = time.perf_counter(), 0

    async def loop(who: int) -> None:
        nonlocal answered
        while (now := time.perf_counter()) < began + seconds:
            status, _ = await ask(client, who)
            answered += status == 200 and now > began + seconds / 2

    await asyncio.gather(*(loop(who) for who in range(CLIENTS)))
    return answered / (time.perf_counter() - began - seconds / 2)


async def load(client: Client, rate: float, seconds: float, unfair: bool, seen: Seen, seed: int) -> None:
    """Poisson arrivals, each of a client drawn by its share."""
    random, tasks = np.random.RandomState(seed), set()
    dues = np.cumsum(random.exponential(1 / rate, max(1, round(rate * seconds))))
    callers = random.choice(CLIENTS, len(dues), p=shares(unfair))

    async def send(who: int, due: float) -> None:
        status, latency_s = await ask(client, who, due)
        if who == 0:
            return
        seen.ends[status] += 1
        if status == 200:
            seen.latencies_s.append(latency_s)

    began = time.perf_counter()
    for who, due_s in zip(callers.tolist(), dues.tolist(), strict=True):
        await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
        tasks.add(asyncio.ensure_future(send(who, began + due_s)))
    await asyncio.gather(*tasks)


async def measure(urls: Mapping[str, str], model: str, seconds: float, found: Found) -> None:
    """Both servers at every load, fair and unfair in turns."""
    clients = {name: Client(url, model) for name, url in urls.items()}
    rates = [await capacity(client, seconds / 2) for client in clients.values() for _ in range(2)]
    rate = max(rates)
    found.add("capacity, images/s", rate, ".1f")
    for part in LOADS:
        for name, client in clients.items():
            fair, unfair = Seen(), Seen()
            for turn in range(2):
                await load(client, part * rate, seconds / 2, False, fair, turn)
                await load(client, part * rate, seconds / 2, True, unfair, turn)
            where = f"at {part:g} of the capacity, {name}"
            for kind, seen in (("fair", fair), ("unfair", unfair)):
                told = [percentile(seen.latencies_s, share) for share in (50, 99)]
                ends = ", ".join(f"{status}: {number}" for status, number in sorted(seen.ends.items()))
                found.add(f"{where}, sent {kind}ly: p50, p99, answers", "{:.1f} and {:.1f} ms, ".format(*told) + ends)
            ratio = percentile(unfair.latencies_s, 99) / percentile(fair.latencies_s, 99)
            goal = GOAL if name == "in turns" else None
            found.add(f"{where}: p99 unfair / fair", ratio, ".2f", most=goal)
            missing = [1 - seen.ends[200] / max(1, seen.ends.total()) for seen in (fair, unfair)]
            found.add(f"{where}: refused or late, fair and unfair", "{:.1%} and {:.1%}".format(*missing))
    for client in clients.values():
        client.close()


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="One client at ten times its share.")
    parser.add_argument("--seconds", type=float, default=10.0, help="each load lasts so long, in two pieces")
    parser.add_argument("--cpu-ms", type=float, default=5.0, help="CPU-ms of one image, at least")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        model, cpu_ms = write_heavy(models, arguments.cpu_ms)
        found.add("the generator's CPU-ms an image", cpu_ms, ".1f")
        flags = ("--keys", keys(), "--cache", str(Path(folder) / "cache"), "--log-level", "warning")
        with serving(models, *flags, "--fair") as turns, serving(models, *flags) as none:
            uvloop.run(measure({"in turns": turns, "first come": none}, model, arguments.seconds, found))
    text = table(found.rows)
    write_down("One client at ten times its share", text, arguments.append)


if __name__ == "__main__":
    main()
