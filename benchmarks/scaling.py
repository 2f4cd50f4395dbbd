"""One replica beside two, each held to a share of a core, behind the balancer; and one process with two lanes.

    python benchmarks/scaling.py --models models --seconds 3 --rounds 3 [--append benchmarks/RESULTS.md]

Every server is held by a control group of its own, so that two replicas, HAProxy and the load generator fit on two
cores without taking time from each other. All of them are started first and then measured in turns, so that what else
the machine does meets all alike. Needs root and the `cpu` controller of control groups, version 1 or 2.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.balanced import Balancer, Replica
from benchmarks.server import write_down
from service.bench import Plan, measure

GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 10_000
"""A tenth of the kernel's default: who has used up its share waits for milliseconds, not for a tenth of a second."""
CLIENTS_PER_LANE = 16
GOAL = 1.8
COLUMNS = (
    "what", "replicas", "lanes in each", "cores for each", "clients", "images/s", "of one replica", "p50 ms", "p99 ms",
    "errors", "cores of the balancer",
)  # fmt: skip


@dataclass
class Case:
    """What is measured, and what was found: images per second, percentiles and errors of each round."""

    what: str
    replicas: int
    lanes: int
    cores: float
    behind: bool = True
    url: str = ""
    balancer: Balancer | None = None
    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    errors: int = 0
    balancer_cores: list[float] = field(default_factory=list)

    @property
    def clients(self) -> int:
        """So many for each lane, so that no lane is short of work."""
        return CLIENTS_PER_LANE * self.lanes * self.replicas

    def row(self, one: float) -> list[str]:
        """As COLUMNS has it; medians over the rounds."""
        rate, p50, p99 = (float(np.median(values)) for values in (self.rates, self.p50_ms, self.p99_ms))
        spent = f"{np.median(self.balancer_cores):.2f}" if self.balancer_cores else ""
        set_up = [self.what, str(self.replicas), str(self.lanes), f"{self.cores:g}", str(self.clients)]
        return [*set_up, f"{rate:.0f}", f"{rate / one:.2f}", f"{p50:.1f}", f"{p99:.1f}", str(self.errors), spent]


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="One replica beside two, each held to a share of a core.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="faces-32")
    parser.add_argument("--cores", type=float, default=0.7, help="of each replica")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    cores = arguments.cores
    cases = [
        Case("one replica", 1, 1, cores),
        Case("two replicas", 2, 1, cores),
        Case("one process, two lanes", 1, 2, 2 * cores),
        Case("one replica, no balancer", 1, 1, cores, behind=False),
    ]
    with ExitStack() as stack:
        for case in cases:
            begin(stack, arguments.models, case)
        for _ in range(arguments.rounds):
            for case in cases:
                measured(case, arguments.model, arguments.seconds)
    text = report(cases, arguments)
    write_down("One replica and two", text, arguments.append)


def begin(stack: ExitStack, models: Path, case: Case) -> None:
    """Start a case's servers and, where there is one, its balancer; `stack` ends them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    replicas = []
    for _ in range(case.replicas):
        group = stack.enter_context(held(case.cores))
        flags = ["--lanes", str(case.lanes), "--threads-per-lane", "1"]
        replica = Replica(models, {"GANYMEDE_CACHE": str(folder)}, flags, group)
        stack.callback(replica.end)
        replica.start()
        replica.wait_ready()
        replicas.append(replica)
    case.url = f"http://127.0.0.1:{replicas[0].port}"
    if case.behind:
        case.balancer = stack.enter_context(Balancer([replica.port for replica in replicas], folder))
        case.balancer.wait_up(len(replicas))
        case.url = case.balancer.url


@contextmanager
def held(cores: float) -> Iterator[Sequence[Path]]:
    """A control group with so many cores; the files to write a process's number to before it begins.

    Raises:
        SystemExit: there are no control groups, or they may not be written.
    """
    quota = round(cores * PERIOD_US)
    unified = (GROUPS / "cgroup.controllers").exists()
    folder = (GROUPS if unified else GROUPS / "cpu") / f"ganymede-scaling-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
        if unified:
            (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
    except OSError as error:
        raise SystemExit(f"control groups cannot be used here: {error}") from None
    try:
        yield [folder / "cgroup.procs"]
    finally:
        for _ in range(50):  # until the kernel has seen the last process go
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def measured(case: Case, model: str, seconds: float) -> None:
    """One round, added to what was found."""
    before = case.balancer.spent_cpu_s() if case.balancer else 0.0
    found = asyncio.run(measure(Plan(case.url, model, seconds, case.clients, None, 1, "png", None)))
    ends = found["ends"]
    assert isinstance(ends, dict)
    for values, name in ((case.rates, "images_per_s"), (case.p50_ms, "p50_ms"), (case.p99_ms, "p99_ms")):
        values.append(float(str(found[name])))
    case.errors += sum(count for end, count in ends.items() if end != "200")
    if case.balancer:
        case.balancer_cores.append((case.balancer.spent_cpu_s() - before) / seconds)


def report(cases: Sequence[Case], arguments: argparse.Namespace) -> str:
    """The Markdown."""
    one = float(np.median(cases[0].rates))
    ratio = float(np.median(cases[1].rates)) / one
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1), *(case.row(one) for case in cases)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{arguments.model}, one image a request, {arguments.rounds} rounds of {arguments.seconds:g} s in turns, of "
        "which the medians. Every server is held by a control group; the load generator and HAProxy are not.\n\n"
        f"{table}\n\n"
        f"Two replicas draw {ratio:.2f} times as many as one; goal {GOAL}: {'met' if ratio >= GOAL else 'NOT met'}."
    )


if __name__ == "__main__":
    main()
