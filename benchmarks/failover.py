"""Replicas that are killed, frozen and restarted behind the balancer, and what their clients notice of it.

    python benchmarks/failover.py --models models --replicas 2 --rounds 50 [--append benchmarks/RESULTS.md]

Real servers behind a real HAProxy with the shipped configuration, under an open loop of `python -m service bench`.
Three ways to lose a replica, one after the other, each beside a time without: `kill -9` and a new start, SIGSTOP for
longer than a request may take, and a rolling restart of all; and a machine that stands still: SIGSTOP of all of them
for seconds. The exit status is 1 where a single request was answered
with anything but 200 or not at all.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.balanced import ROOT, Balancer, Replica, balanced
from benchmarks.server import write_down

BETWEEN_S = 1.0
"""Between two blows, so that each falls on a full house."""
FROZEN_S = 7.0
"""Longer than the deadline that the balancer gives (5 s) and its patience beyond it (1 s)."""
STALLED_S = 4.0
CALM_S = 10.0
LOG_CHARACTERS = 20_000
"""So much of the balancer's log is shown where a request failed."""
RESENT = ("retry", "redispatch")
COLUMNS = (
    "replicas", "what happened", "times", "requests", "failed", "sent again", "p50 ms", "p99 ms", "p99.9 ms",
    "longest ms",
)  # fmt: skip


@dataclass
class Seen:
    """What clients saw while something happened."""

    replicas: int
    what: str
    times: int
    report: Mapping[str, object] = field(default_factory=dict)
    resent: int = 0

    @property
    def ends(self) -> Mapping[str, int]:
        """Requests by status."""
        ends = self.report["ends"]
        assert isinstance(ends, dict)
        return ends

    @property
    def failed(self) -> int:
        """Requests that ended in anything but 200."""
        return sum(count for end, count in self.ends.items() if end != "200")

    def row(self) -> list[str]:
        """As COLUMNS has it."""
        marks = [f"{self.report[name]:.0f}" for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms")]
        counts = [str(count) for count in (self.times, sum(self.ends.values()), self.failed, self.resent)]
        return [str(self.replicas), self.what, *counts, *marks]


def main() -> None:
    """Break things and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="Replicas lost behind the balancer, and what clients notice of it.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="fashion-28")
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rounds", type=int, default=50, help="times that each thing happens")
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second")
    parser.add_argument("--only", choices=["calm", *BLOWS], nargs="+", default=["calm", *BLOWS])
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    seen: list[Seen] = []
    for count in arguments.replicas:
        seen += broken(arguments, count)
    text = table(seen)
    write_down("Replicas lost behind the balancer", text, arguments.append)
    sys.exit(1 if any(one.failed for one in seen) else 0)


def broken(arguments: argparse.Namespace, count: int) -> list[Seen]:
    """Everything that is asked for, with so many replicas."""
    found = []
    with tempfile.TemporaryDirectory() as cache:
        replicas = [Replica(arguments.models, {"GANYMEDE_CACHE": cache}) for _ in range(count)]
        with balanced(replicas) as balancer:
            for what in arguments.only:
                times = 0 if what == "calm" else arguments.rounds
                found.append(under_load(arguments, balancer, replicas, what, times))
                print(*found[-1].row(), sep=" | ", flush=True)
                if found[-1].failed:
                    print(dict(found[-1].ends), balancer.log.read_text()[-LOG_CHARACTERS:], sep="\n", flush=True)
    return found


def under_load(
    arguments: argparse.Namespace, balancer: Balancer, replicas: Sequence[Replica], what: str, times: int
) -> Seen:
    """Let one thing happen so many times while clients draw."""
    before = resent(balancer)
    load = Load(balancer.url, arguments.model, arguments.rate)
    try:
        time.sleep(BETWEEN_S)
        if not times:
            time.sleep(CALM_S)
        for number in range(times):
            BLOWS[what](replicas, number)
            balancer.wait_up(len(replicas))
            time.sleep(BETWEEN_S)
    finally:
        report = load.stop()
    return Seen(len(replicas), what, times, report, resent(balancer) - before)


class Load:
    """An open loop in a process of its own, until it is stopped."""

    def __init__(self, url: str, model: str, rate: float) -> None:
        bench = [
            sys.executable,
            "-m",
            "service",
            "bench",
            "--url",
            url,
            "--model",
            model,
            "--rate",
            str(rate),
            "--json",
        ]
        self._process = subprocess.Popen([*bench, "--seconds", "3600"], cwd=ROOT, stdout=subprocess.PIPE)

    def stop(self) -> dict[str, object]:
        """Its report, when its last request is answered."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=120)
        report: dict[str, object] = json.loads(output)
        return report


def killed(replicas: Sequence[Replica], number: int) -> None:
    """`kill -9` of one, and a new start."""
    replica = replicas[number % len(replicas)]
    replica.send(signal.SIGKILL)
    replica.wait()
    time.sleep(BETWEEN_S)
    replica.start()
    replica.wait_ready()


def frozen(replicas: Sequence[Replica], number: int) -> None:
    """SIGSTOP of one, and SIGCONT when nobody can be waiting for it any more."""
    replica = replicas[number % len(replicas)]
    replica.send(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    replica.send(signal.SIGCONT)
    replica.wait_ready()


def stalled(replicas: Sequence[Replica], number: int) -> None:
    """SIGSTOP of all of them, for longer than checks are waited for and shorter than a request may take."""
    for replica in replicas:
        replica.send(signal.SIGSTOP)
    time.sleep(STALLED_S)
    for replica in replicas:
        replica.send(signal.SIGCONT)
    for replica in replicas:
        replica.wait_ready()


def rolled(replicas: Sequence[Replica], number: int) -> None:
    """A rolling restart: each in turn drains, ends and is started again."""
    for replica in replicas:
        replica.send(signal.SIGTERM)
        if status := replica.wait():
            raise SystemExit(f"a replica that drained ended with status {status}")
        replica.start()
        replica.wait_ready()
        time.sleep(BETWEEN_S)


BLOWS: Mapping[str, Callable[[Sequence[Replica], int], None]] = {
    "kill -9": killed,
    "SIGSTOP": frozen,
    "SIGSTOP of all": stalled,
    "rolling restart": rolled,
}


def resent(balancer: Balancer) -> int:
    """Times that the balancer has sent a request once more, so far: it counts those that found another server apart."""
    names = tuple(f"haproxy_backend_{kind}_warnings_total{{" for kind in RESENT)
    return round(sum(value for name, value in balancer.series().items() if name.startswith(names)))


def table(seen: Sequence[Seen]) -> str:
    """What was seen as Markdown."""
    lines = [COLUMNS, ["---:", "---"] + ["---:"] * (len(COLUMNS) - 2), *(one.row() for one in seen)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
