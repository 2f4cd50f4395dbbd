"""Half an hour of mixed load at half of capacity with faults injected, and what must still hold. `make bench-soak`.

    python benchmarks/soak.py --models models --minutes 30 [--append benchmarks/RESULTS.md]

First the capacity for the honest mix is measured with a closed loop; then requests arrive at random (Poisson) at half
of that rate, over every model that draws, and with them clients that leave, send garbage, name unknown models, allow
no time, read slowly, send too much, or open connections and do nothing. Pictures asked for at the start are asked for
again throughout and must come back byte for byte. The exit status is 1 where a promise was broken.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from benchmarks.processes import free_port, ganymede, running
from benchmarks.server import write_down
from benchmarks.soakclients import FAULTS, HONEST, STUCK, Clients, scraped
from service.manifest import Task
from service.package import read_package

PROMISED = frozenset({"503", "504"})
"""The only statuses from 500 on that a server which is not broken answers with."""
DRIFT = 0.05
SETTLED_S = 180.0
"""Memory is held against what it was after so long: caches are full by then. A tenth of a shorter run."""
CALIBRATE_S, CALIBRATE_CLIENTS = 5.0, 16
SHARE_OF_CAPACITY = 0.5
FAULT_SHARE = 0.15
SAMPLE_S = 5.0
QUIET_S = 40.0
"""After the load every request must have ended within so long: the longest that a client waits, and some."""
MOST_OPEN = 2000
"""Requests in flight beyond which the load would measure itself; they are counted as not sent."""


@dataclass
class Soak:
    """What was seen. `samples`: seconds since the start, resident bytes, requests in flight."""

    rate: float = 0.0
    measured: bool = True
    ends: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unexpected: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    not_sent: int = 0
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    quiet_after_s: float | None = None


def main() -> None:
    """Soak and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="Mixed load with faults injected, and what must still hold.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, help="honest requests per second, instead of half of what is measured")
    parser.add_argument("--seed", type=int, default=0, help="of the order of requests and faults")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    arguments = parser.parse_args()
    manifests = [read_package(path.parent) for path in sorted(arguments.models.glob("*/*/manifest.json"))]
    models = [manifest.ref for manifest in manifests if Task.GENERATE in manifest.tasks]
    if not models:
        raise SystemExit(f"--models: {arguments.models} holds no model that draws")
    port = free_port()
    with running(ganymede(arguments.models, port), {}, Path.cwd(), port, models):
        soak = uvloop.run(soaked(port, models, arguments.minutes * 60, arguments.rate, arguments.seed))
    text, kept = report(soak, arguments.minutes * 60)
    write_down(f"Soak of {arguments.minutes:g} minutes", text, arguments.append)
    sys.exit(0 if kept else 1)


async def soaked(port: int, models: Sequence[str], seconds: float, rate: float | None, seed: int) -> Soak:
    """Run the whole soak against a server that is ready."""
    clients, soak, chance = Clients(port, models), Soak(), random.Random(seed)
    await clients.remember()
    soak.rate, soak.measured = rate or SHARE_OF_CAPACITY * await capacity(clients, chance), not rate
    soak.before = await scraped(port)
    sampling = asyncio.create_task(sample(port, soak))
    await load(clients, soak, chance, seconds)
    sampling.cancel()
    with suppress(asyncio.CancelledError):
        await sampling
    clients.close()
    began = time.perf_counter()
    while time.perf_counter() - began < QUIET_S:
        soak.after = await scraped(port)
        if not at_work(soak.after):
            soak.quiet_after_s = time.perf_counter() - began
            break
        await asyncio.sleep(0.2)
    return soak


async def capacity(clients: Clients, chance: random.Random) -> float:
    """Honest requests per second that a closed loop gets through."""
    end, done = time.perf_counter() + CALIBRATE_S, 0

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await clients.send(chance.choices(list(HONEST), list(HONEST.values()))[0], chance)
            done += 1

    await asyncio.gather(*(client() for _ in range(CALIBRATE_CLIENTS)))
    return done / CALIBRATE_S


async def load(clients: Clients, soak: Soak, chance: random.Random, seconds: float) -> None:
    """Send at random times until the time is over, then wait for what is under way."""
    kinds = [*HONEST, *FAULTS]
    weights = [weight * (1 - FAULT_SHARE) / sum(HONEST.values()) for weight in HONEST.values()]
    weights += [weight * FAULT_SHARE / sum(FAULTS.values()) for weight in FAULTS.values()]
    began, due_s = time.perf_counter(), 0.0
    under_way: set[asyncio.Task[None]] = set()
    while (due_s := due_s + chance.expovariate(soak.rate / (1 - FAULT_SHARE))) < seconds:
        await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
        if len(under_way) >= MOST_OPEN:
            soak.not_sent += 1
            continue
        task = asyncio.create_task(one(clients, soak, chance.choices(kinds, weights)[0], chance))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way)


async def one(clients: Clients, soak: Soak, kind: str, chance: random.Random) -> None:
    """Send one request and note how it ended."""
    end, expected = await clients.send(kind, chance)
    soak.ends[kind][end] += 1
    if not expected:
        soak.unexpected[f"{kind}: {end}"] += 1


async def sample(port: int, soak: Soak) -> None:
    """Look at the server until cancelled."""
    began = time.perf_counter()
    while True:
        found = await scraped(port)
        in_flight = found["ganymede_requests_in_flight"] - 1  # without the scrape itself
        soak.samples.append((time.perf_counter() - began, found["process_resident_memory_bytes"], in_flight))
        await asyncio.sleep(SAMPLE_S)


def at_work(found: dict[str, float]) -> bool:
    """Whether the server still has anything to do but this scrape."""
    names = ("ganymede_queue_rows", "ganymede_lanes_busy{")
    return found["ganymede_requests_in_flight"] > 1 or any(
        value for name, value in found.items() if name.startswith(names)
    )


def drift(samples: Sequence[tuple[float, float, float]], seconds: float) -> tuple[float, float, float]:
    """Median resident bytes about the settled minute and in the last one, and by what share they differ."""
    settled_s = min(SETTLED_S, seconds / 10)
    window_s = min(30.0, seconds / 20)
    early = [size for at_s, size, _ in samples if abs(at_s - settled_s) <= window_s + SAMPLE_S]
    late = [size for at_s, size, _ in samples if at_s >= seconds - 2 * window_s - SAMPLE_S]
    first, last = (sorted(sizes)[len(sizes) // 2] for sizes in (early, late))
    return first, last, last / first - 1


def lag_within(before: dict[str, float], after: dict[str, float], share: float) -> str:
    """The bucket in which a share of the loop's lags lies, in milliseconds."""
    name = "ganymede_event_loop_lag_seconds"
    counts = {key: after[key] - before.get(key, 0.0) for key in after if key.startswith(f"{name}_bucket")}
    total = after[f"{name}_count"] - before[f"{name}_count"]
    for key, count in counts.items():  # in the order of their bounds
        if count >= share * total:
            bound = key.partition('le="')[2].rstrip('"}')
            return f"at most {float(bound) * 1000:g} ms" if bound != "+Inf" else "more than the last bucket"
    return "not measured"


def report(soak: Soak, seconds: float) -> tuple[str, bool]:
    """The Markdown, and whether every promise was kept."""
    every: Counter[str] = Counter()
    for ends in soak.ends.values():
        every.update(ends)
    broken = {end: count for end, count in every.items() if end.startswith("5") and end not in PROMISED}
    first, last, share = drift(soak.samples, seconds)
    quiet = "never" if soak.quiet_after_s is None else f"after {soak.quiet_after_s:.1f} s"
    wrong = sum(count for end, count in every.items() if end == "other picture")
    promises = [
        ("no 5xx but 503 and 504", str(broken or "none"), not broken),
        ("no request without an end", f"{every[STUCK]} stuck", not every[STUCK]),
        ("every end is one that its request may have", str(dict(soak.unexpected) or "none other"), not soak.unexpected),
        ("the same request is the same picture", f"{wrong} differed", not wrong),
        ("in flight, queue and lanes return to 0", quiet, soak.quiet_after_s is not None),
        (
            f"memory drifts by at most {DRIFT:.0%} from {min(SETTLED_S, seconds / 10):.0f} s on",
            f"{first / 2**20:.1f} to {last / 2**20:.1f} MiB, {share:+.1%}",
            share <= DRIFT,
        ),
    ]
    lines = ["| promise | found | kept |", "| --- | --- | --- |"]
    lines += [f"| {promise} | {found} | {'yes' if kept else 'NO'} |" for promise, found, kept in promises]
    cpu_s = soak.after["process_cpu_seconds_total"] - soak.before["process_cpu_seconds_total"]
    lines += [
        "",
        f"{sum(every.values())} requests in {seconds / 60:g} minutes, {soak.rate:.0f} honest ones a second"
        f"{', half of what a closed loop got through' if soak.measured else ''}; "
        f"{soak.not_sent} not sent. The server took {cpu_s / seconds:.2f} cores. "
        f"Most requests in flight when sampled: {max(count for *_, count in soak.samples):.0f}. "
        "Lag of the event loop at p99: "
        f"{lag_within(soak.before, soak.after, 0.99)}.",
        "",
        "| kind | ends |",
        "| --- | --- |",
    ]
    for kind in [*HONEST, *FAULTS]:
        lines.append(f"| {kind} | {', '.join(f'{end}: {n}' for end, n in sorted(soak.ends[kind].items())) or 'none'} |")
    return "\n".join(lines), all(kept for *_, kept in promises)


if __name__ == "__main__":
    main()
