"""A model swapped again and again under load: `make bench-hotswap`.

    python benchmarks/hotswap.py --swaps 200 [--cpu-ms 5] [--append benchmarks/RESULTS.md]

Two generators of one shape and other weights are built and their plans measured once. A server serves them as versions
of one model, the odd ones with the first weights, the even ones with the second. Closed-loop clients find its capacity;
then requests arrive at random (Poisson) at half of it, by turns calmly and while version after version is written into
the folder and swapped in (`POST /models/{name}/load`), the one before leaving memory (`versions_kept` 1). Each answer
must be the picture that the version which it names draws for its seed, bit for bit.
The load shares the cores with the server. The two kinds of turns are equally long, and p99 is over all of a kind: of
one calm period before and one after it would tell more of the machine's hour than of swaps.
"""

import argparse
import asyncio
import json
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import uvloop

from benchmarks.graphs import write_heavy
from benchmarks.overload import Client, Found, Reply, capacity, percentile, plan_of, poisson, table
from benchmarks.server import serving, write_down

NAME = "heavy"
SEEDS = 64
"""Different pictures that are asked for; each is known beforehand for both weights."""
TIMEOUT_MS = 10_000.0
TURNS = 10
FLAGS = ("--admin", "--no-provenance", "--versions-kept", "1", "--poll-models-s", "none", "--log-level", "warning")
_VERSION = re.compile(rb"\r\nx-model: heavy@(\d+)\r\n")


@dataclass
class Seen:
    """What a load came to."""

    latencies_s: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    versions: set[int] = field(default_factory=set)


class Swapper:
    """Writes versions and has them swapped in.

    Args:
        models: the server's folder.
        stages: the folders of both weights' packages; version v is of `stages[v % 2]`.
    """

    def __init__(self, client: Client, models: Path, stages: tuple[Path, Path]) -> None:
        self.version = 0
        self.took_s: list[float] = []
        self.failed: list[str] = []
        self._client, self._folder, self._stages = client, models / NAME, stages

    def write(self) -> None:
        """The next version's folder, renamed into place as any export is; older ones go."""
        self.version += 1
        partial = self._folder / f"{self.version}.tmp"
        shutil.copytree(self._stages[self.version % 2], partial)
        manifest = json.loads((partial / "manifest.json").read_text())
        (partial / "manifest.json").write_text(json.dumps(manifest | {"version": self.version}))
        partial.rename(self._folder / str(self.version))
        shutil.rmtree(self._folder / str(self.version - 2), ignore_errors=True)

    async def swap(self) -> None:
        """One more version, served when this returns."""
        await asyncio.to_thread(self.write)
        path = f"POST /models/{NAME}/load HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        reply = await self._client.send(path.encode())
        self.took_s.append(reply.latency_s)
        if reply.status != 200:
            self.failed.append(f"{reply.status} {reply.body[:200]!r}")


async def pictures(client: Client) -> dict[int, bytes]:
    """What the version that serves now draws for each seed."""
    replies = [await client.draw(TIMEOUT_MS, seed) for seed in range(SEEDS)]
    assert all(reply.status == 200 for reply in replies), "the server refuses"
    return {seed: reply.body for seed, reply in enumerate(replies)}


def judged(reply: Reply, seed: int, known: tuple[dict[int, bytes], dict[int, bytes]], seen: Seen) -> None:
    """Count an answer: right, another version's picture, or a failure."""
    named = _VERSION.search(reply.head)
    if reply.status != 200 or named is None:
        seen.ends[str(reply.status)] += 1
        return
    version = int(named[1])
    seen.latencies_s.append(reply.latency_s)
    seen.versions.add(version)
    seen.ends["right" if reply.body == known[version % 2][seed] else "another version's picture"] += 1


async def load(
    client: Client, rate: float, seconds: float, known: tuple[dict[int, bytes], dict[int, bytes]], seen: Seen
) -> None:
    """Poisson arrivals at this rate."""
    seeds = cycle(range(SEEDS))

    async def send(due: float) -> None:
        seed = next(seeds)
        try:
            judged(await client.draw(TIMEOUT_MS, seed, due), seed, known, seen)
        except (ConnectionError, OSError):
            seen.ends["no answer"] += 1

    await poisson(rate, seconds, send)


async def resident(client: Client) -> float:
    """MiB."""
    return (await client.scrape())["process_resident_memory_bytes"] / 2**20


async def swapping(client: Client, swapper: Swapper, swaps: int, every_s: float) -> float:
    """So many swaps, one begun every so many seconds or as soon as the last is done; the least memory after any, MiB.

    The least: while the version before finishes its work two are in memory, and what that takes is no growth.
    """
    began, held = time.perf_counter(), []
    for number in range(swaps):
        await asyncio.sleep(max(0.0, began + number * every_s - time.perf_counter()))
        await swapper.swap()
        held.append(await resident(client))
    await asyncio.sleep(max(0.0, began + swaps * every_s - time.perf_counter()))
    return min(held)


async def measure(models: Path, stages: tuple[Path, Path], swapper: Swapper, settings: argparse.Namespace,
                  found: Found) -> None:  # fmt: skip
    """Every phase against one server, which has version 1."""
    client = swapper._client
    known_odd = await pictures(client)
    await swapper.swap()
    known = (await pictures(client), known_odd)
    found.add("the plan", await plan_of(client))
    rate = await capacity(client, settings.seconds, TIMEOUT_MS, found, "before", 2) / 2
    found.add("rate, half of the capacity, images/s", rate, ".1f")
    before = await resident(client)

    async def turn(swaps: int, seen: Seen) -> tuple[float, float]:
        """Swaps under load; seconds, and the least memory."""
        began = time.perf_counter()
        at_work = asyncio.ensure_future(swapping(client, swapper, swaps, settings.every_s))
        while not at_work.done():
            await load(client, rate, 0.5, known, seen)
        return time.perf_counter() - began, await at_work

    # Heaps grow to what two versions in all their threads take, and what is freed is used again.
    await turn(max(10, settings.swaps // 2), Seen())
    swapper.took_s.clear()
    calm, during, memory, lasted_s, cpu_s = [], [], [before], 0.0, 0.0
    for number in range(TURNS):
        calm.append(Seen())
        during.append(Seen())
        cpu_s -= (await client.scrape())["process_cpu_seconds_total"]
        seconds, least = await turn(share_of(settings.swaps, number), during[-1])
        cpu_s += (await client.scrape())["process_cpu_seconds_total"]
        memory.append(least)
        lasted_s += seconds
        await load(client, rate, seconds, known, calm[-1])
    report(found, swapper, calm, during, memory, lasted_s)
    found.add("cores of the server meanwhile", cpu_s / lasted_s, ".2f")
    client.close()


def share_of(swaps: int, number: int) -> int:
    """Swaps of a turn: together all, and of two turns much the same."""
    return swaps * (number + 1) // TURNS - swaps * number // TURNS


def pooled(turns: list[Seen]) -> Seen:
    """What all of them saw."""
    whole = Seen()
    for seen in turns:
        whole.latencies_s += seen.latencies_s
        whole.ends += seen.ends
        whole.versions |= seen.versions
    return whole


def report(
    found: Found, swapper: Swapper, calms: list[Seen], durings: list[Seen], memory: list[float], lasted_s: float
) -> None:
    """The table's rows."""
    calm, during = pooled(calms), pooled(durings)
    found.add("swaps", f"{len(swapper.took_s)} in {lasted_s:.1f} s")
    found.add("swaps that failed", float(len(swapper.failed)), ".0f", most=0)
    found.add(
        "a swap, p50 and p99", f"{percentile(swapper.took_s, 50):.0f} and {percentile(swapper.took_s, 99):.0f} ms"
    )
    found.add("requests meanwhile", ", ".join(f"{end}: {number}" for end, number in sorted(during.ends.items())))
    wrong = sum(number for end, number in during.ends.items() if end != "right")
    found.add("requests that failed", float(wrong), ".0f", most=0)
    found.add("versions that answered", float(len(during.versions)), ".0f")
    failed = sum(number for end, number in calm.ends.items() if end != "right")
    found.add("requests without swaps, and those that failed", f"{sum(calm.ends.values())} and {failed}")
    for share in (50, 99, 99.9):
        without, within = percentile(calm.latencies_s, share), percentile(during.latencies_s, share)
        found.add(f"p{share} without and with swaps", f"{without:.2f} and {within:.2f} ms")
        if share == 99:
            found.add("p99 with swaps / without", within / without, ".2f", most=2)
            each = (
                f"{percentile(one.latencies_s, 99):.0f} and {percentile(other.latencies_s, 99):.0f}"
                for one, other in zip(calms, durings, strict=True)
            )
            found.add("p99 of each turn, without and with swaps", ", ".join(each) + " ms")
    told = ", ".join(f"{held:.0f}" for held in memory)
    found.add("memory before any swap, and the least in each tenth of them", f"{told} MiB")
    found.add("memory, growth from first three tenths to last", growth(memory[1:]), ".1f", most=5, unit=" %")


def growth(memory: list[float]) -> float:
    """Per cent, between the medians of the first three and the last three: single samples are too noisy."""
    return (statistics.median(memory[-3:]) / statistics.median(memory[:3]) - 1) * 100


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="A model swapped again and again under load.")
    parser.add_argument("--swaps", type=int, default=200, help=f"at least {TURNS}")
    parser.add_argument(
        "--every-s", type=float, default=0.25, help="seconds from one swap's begin to the next, at least"
    )
    parser.add_argument("--seconds", type=float, default=2.5, help="the capacity is found for so long")
    parser.add_argument("--cpu-ms", type=float, default=5.0, help="CPU-ms of one image, at least")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    if arguments.swaps < TURNS:
        parser.error(f"--swaps: is {arguments.swaps}, must be at least {TURNS}, one for each turn")
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _, cpu_ms = write_heavy(root / "even", arguments.cpu_ms, seed=0)
        write_heavy(root / "odd", arguments.cpu_ms, seed=1)
        found.add("the generator's CPU-ms an image", cpu_ms, ".1f")
        stages = root / "even" / NAME / "1", root / "odd" / NAME / "1"
        models = root / "models"
        (models / NAME).mkdir(parents=True)
        swapper = Swapper(Client("", NAME), models, stages)
        swapper.write()
        with serving(models, *FLAGS, "--cache", str(root / "cache")) as url:
            swapper._client.url = url
            uvloop.run(measure(models, stages, swapper, arguments, found))
    text = table(found.rows)
    write_down("Hot swaps at half of the capacity", text, arguments.append)
    for failure in swapper.failed:
        print(failure)


if __name__ == "__main__":
    main()
