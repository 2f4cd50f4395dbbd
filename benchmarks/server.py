"""The whole server beside its bound: `make bench` measures every shipped model and writes a table.

    python benchmarks/server.py --models models --seconds 5 [--append benchmarks/RESULTS.md]

The bound is a bare loop in one process: one thread per core, each drawing one image with ONNX Runtime and encoding it
with the server's own PNG writer, no HTTP and no queue. Server and bound are measured in the same run, one after the
other, so their ratio means something even where absolute figures of a shared machine do not.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnxruntime

from benchmarks.feeds import drawing
from service import imaging
from service.bench import Plan, measure
from service.manifest import Manifest, Task
from service.package import read_package

CLIENTS = (1, 16, 64)
COLUMNS = ("model", "clients", "images/s", "of the bound", "p50 ms", "p99 ms", "CPU-ms/image")


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="Every model's throughput and latency beside a bare loop.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--seconds", type=float, default=5.0, help="each measurement lasts so long")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    folders = sorted(path.parent for path in arguments.models.glob("*/*/manifest.json"))
    manifests = [(folder, read_package(folder)) for folder in folders]
    rows: list[list[str]] = []
    with serving(arguments.models) as url:
        for folder, manifest in manifests:
            if Task.GENERATE in manifest.tasks:
                rows += measured(url, folder, manifest, arguments.seconds)
    text = table(rows)
    write_down("Server beside the bare loop", text, arguments.append)


def measured(url: str, folder: Path, manifest: Manifest, seconds: float) -> list[list[str]]:
    """One row per number of clients; the bound is measured between the first and the last of them."""
    bound = bare_loop(folder, manifest, seconds)
    rows = [[manifest.ref, "bare loop", f"{bound:.0f}", "1.00", "", "", ""]]
    for clients in CLIENTS:
        plan = Plan(url, manifest.ref, seconds, clients, None, 1, "png", None)
        found = json.loads(json.dumps(asyncio.run(measure(plan))))
        rate = found["images_per_s"]
        cpu = f"{found['server_cpu_ms_per_image']:.2f}" if "server_cpu_ms_per_image" in found else ""
        latency = [f"{found[name]:.2f}" for name in ("p50_ms", "p99_ms")]
        rows.append([manifest.ref, str(clients), f"{rate:.0f}", f"{rate / bound:.2f}", *latency, cpu])
    return rows


def bare_loop(folder: Path, manifest: Manifest, seconds: float) -> float:
    """Images per second of ONNX Runtime and the PNG writer alone, a one-thread session on every core."""
    cores = len(os.sched_getaffinity(0))
    graph, rows = drawing(folder, manifest, range(64))

    def draw(_: int) -> int:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / graph.file, options, providers=["CPUExecutionProvider"])
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            row = count % 64
            feeds = {name: values[row : row + 1] for name, values in rows.items()}
            imaging.encode(session.run(None, feeds)[0][0], "png")
            count += 1
        return count

    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(draw, range(cores))) / seconds


@contextmanager
def serving(models: Path, *flags: str) -> Iterator[str]:
    """A server of its own on a free port, ready when this yields its URL.

    Args:
        flags: of `serve`, beside those that every benchmark has.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--models", str(models), "--port", str(port)]
    process = subprocess.Popen([*command, "--no-access-log", "--drain-delay-s", "0", *flags])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            raise SystemExit("the server did not become ready within a minute")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def machine() -> str:
    """What the figures were taken on: processor, cores, Python, ONNX Runtime, commit."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} x {model}, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, {commit}"


def write_down(title: str, text: str, path: Path | None) -> None:
    """Print a benchmark's text; with a path, also append it to that Markdown file under the title and the machine."""
    print(text)
    if path:
        with path.open("a") as file:
            file.write(f"\n## {title}: {machine()}\n\n{text}\n")


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown under COLUMNS."""
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
