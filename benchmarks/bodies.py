"""The event loop's lag while many clients send large bodies and others keep a queue full; told by `uploads.py`.

    PYTHONPATH=. python benchmarks/bodies.py --seconds 5 [--append benchmarks/RESULTS.md]

Three processes: the server as `python -m service serve` runs it, with a probe on its loop; the clients, who hand the
kernel bodies from the page cache and so hardly need a core; and, for comparison, a loop like the server's that has
nothing to do while others compute. What the system's scheduler makes such a loop wait, no server can better.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.server import write_down
from benchmarks.soak import lag_within

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

CLIENTS, DRAWING = 16, 8
BODY_BYTES = 16 << 20
PERIOD_S = 0.005
"""Between two looks at the lag."""
SETTLE_S = 1.0
"""Of sending before anything is counted."""
QUEUE_ROWS = 256
"""Of the server's queue: so few that those who draw keep it full."""
GOAL_MS = 10.0
CASES = (
    ("bodies, in tiles", "tiny-paint", CLIENTS, DRAWING),
    ("bodies, resized", "tiny-fixed", CLIENTS, DRAWING),
    ("bodies alone, resized", "tiny-fixed", CLIENTS, 0),
    ("full queue alone", "tiny-fixed", 0, DRAWING),
)
"""What, the model of the uploads, who uploads, who draws. Each body that comes in is decoded. Cut into tiles it keeps
the model busy for long; resized to the 24 x 16 pixels that a model takes it is gone at once, and the next one comes."""
COLUMNS = (
    "load", "MiB/s in", "uploads", "drawings", "server CPU s/s", "others'", "lag p50, ms", "p99", "p99.9", "largest",
    "own histogram, p99",
)  # fmt: skip
LAG = "ganymede_event_loop_lag_seconds"


class Probe:
    """How late a loop wakes from short sleeps."""

    def __init__(self) -> None:
        self.lags_s: list[float] = []

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            due_s = time.monotonic() + PERIOD_S  # uvloop's own clock ticks in milliseconds
            await asyncio.sleep(PERIOD_S)
            self.lags_s.append(time.monotonic() - due_s)

    def told(self) -> dict[str, float]:
        """Milliseconds by quantile since the last time."""
        found, self.lags_s = np.array(self.lags_s[1:] or [0.0]) * 1000, []
        return {str(share): float(np.quantile(found, share)) for share in (0.5, 0.99, 0.999, 1.0)}


def serve(models: Path) -> None:
    """A server that prints its port, and at each line of its input its loop's lag; ends with its input."""
    from service.api.server import server_of
    from service.settings import Settings

    settings = Settings(
        models=models, port=0, profile_s=0, lanes=1, threads_per_lane=1, access_log=False, poll_models_s=None,
        max_queue_rows=QUEUE_ROWS,
    )  # fmt: skip
    server, probe = server_of(settings), Probe()

    async def control() -> None:
        while not server.started or not server.parts.opened:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.05)
        watching = asyncio.create_task(probe.watch())
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            page = server.parts.metrics.expose(as_openmetrics=False)[0].decode().splitlines()
            own = [line.rpartition(" ") for line in page if line.startswith(LAG)]
            print(json.dumps({"lag": probe.told(), "own": {name: float(value) for name, _, value in own}}), flush=True)
        watching.cancel()
        server.should_exit = True

    async def both() -> None:
        await asyncio.gather(server.serve(), control())

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(both())


def idle(seconds: float) -> None:
    """A loop with nothing to do beside threads that compute as lanes do; prints its lag."""
    import uvloop

    from service.process import go_first, step_back

    block, probe = memoryview(bytes(1 << 20)), Probe()

    def compute() -> None:
        step_back()
        while True:
            hashlib.sha256(block)  # without the interpreter's lock

    async def watch() -> None:
        go_first()
        for _ in range(os.cpu_count() or 1):
            threading.Thread(target=compute, daemon=True).start()
        watching = asyncio.create_task(probe.watch())
        await asyncio.sleep(SETTLE_S)
        probe.told()
        await asyncio.sleep(seconds)
        print(json.dumps(probe.told()), flush=True)
        watching.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watch())


@contextlib.contextmanager
def serving(models: Path) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """A server of its own, and its port."""
    command = [sys.executable, __file__, "--serve", str(models)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        try:
            yield server, int(server.stdout.readline())
        finally:
            server.stdin.close()


def ask(server: "subprocess.Popen[str]") -> dict[str, Any]:
    """The lag since the last time, and the server's own histogram of it."""
    assert server.stdin and server.stdout
    server.stdin.write("\n")
    server.stdin.flush()
    told: dict[str, Any] = json.loads(server.stdout.readline())
    return told


def spent_s(process: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """CPU seconds of the whole machine so far."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def flooded(
    server: "subprocess.Popen[str]", port: int, body: Path, seconds: float, case: tuple[str, str, int, int]
) -> tuple[list[str], float]:
    """One row of the table, and the CPU seconds that the clients took a second."""
    name, model, clients, drawing = case
    plan = json.dumps([port, str(body), model, seconds + SETTLE_S, clients, drawing])
    sender = [sys.executable, str(Path(__file__).with_name("bodyclients.py")), plan]
    with subprocess.Popen(sender, stdout=subprocess.PIPE, text=True) as sending:
        time.sleep(SETTLE_S)
        before, cpu_s, all_s = ask(server), spent_s(server.pid), busy_s()
        time.sleep(seconds)
        after, cpu_s, all_s = ask(server), spent_s(server.pid) - cpu_s, busy_s() - all_s
        assert sending.stdout
        told = json.loads(sending.stdout.read())
    counted = [
        ", ".join(f"{count} x {end}" for end, count in sorted(told[who].items())) for who in ("uploads", "draws")
    ]
    lags = [f"{after['lag'][share]:.1f}" for share in ("0.5", "0.99", "0.999", "1.0")]
    rate = f"{told['mib'] / (seconds + SETTLE_S):.0f}"
    sending_s = told["cpu_s"] / (seconds + SETTLE_S)
    shares = [f"{cpu_s / seconds:.2f}", f"{max(0.0, (all_s - cpu_s) / seconds - sending_s):.2f}"]
    return [name, rate, *counted, *shares, *lags, lag_within(before["own"], after["own"], 0.99)], sending_s


def measured(models: Path, seconds: float) -> str:
    """The table, and a line about what it was held against.

    Args:
        models: a folder with the tiny picture models.
    """
    from tinymodels import write_tiny
    from uploads import saved

    write_tiny(models, "tiny-rgb", side=64)
    side, body = int((BODY_BYTES / 3) ** 0.5), models / "body.bmp"
    body.write_bytes(saved(np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8), "BMP"))
    with serving(models) as (server, port):
        found = [flooded(server, port, body, seconds, case) for case in CASES]
    command = [sys.executable, __file__, "--idle", "--seconds", str(seconds)]
    lag = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    name = f"no server: an idle loop beside {os.cpu_count()} computing threads"
    rows = [row for row, _ in found]
    rows.append([name, "", "", "", "", "", *(f"{lag[share]:.1f}" for share in ("0.5", "0.99", "0.999", "1.0")), ""])
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    took = max(share for _, share in found)
    mib = body.stat().st_size / 2**20
    words = f"{CLIENTS} clients with bodies of {mib:.0f} MiB, {DRAWING} that keep a queue of {QUEUE_ROWS} rows full"
    words = f"{words}; all of them took at most {took:.2f} CPU seconds a second. Goal: p99 at most {GOAL_MS:g} ms."
    return f"{table}\n\n{words}\n"


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="The loop's lag under large bodies.")
    parser.add_argument("--seconds", type=float, default=5.0, help="each load lasts so long")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    parser.add_argument("--serve", type=Path, help="(a process of its own) serve these models and tell the loop's lag")
    parser.add_argument("--idle", action="store_true", help="(a process of its own) the lag of a loop without work")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.idle:
        idle(arguments.seconds)
    else:
        from tinymodels import write_picture_models

        with tempfile.TemporaryDirectory() as folder:
            write_picture_models(Path(folder))
            text = measured(Path(folder), arguments.seconds)
        write_down("Large bodies", text.removesuffix("\n"), arguments.append)


if __name__ == "__main__":
    main()
