"""Uploads: how fast bombs are refused, what 50 megapixels of enlargement take, the loop's lag under large bodies.

    PYTHONPATH=. python benchmarks/uploads.py [--seconds 10] [--append benchmarks/RESULTS.md]

Runs servers of its own with tiny convolutional models that it writes; prints three tables. Memory is the process's
resident set, time is the wall's: stop everything else first. The third table is told by `bodies.py`.
"""

import argparse
import http.client
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import bodies
from benchmarks.server import write_down

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/service/imaging")]

RESULT = (5776, 8664)
"""Rows and columns of the enlarged picture: 50 megapixels."""


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="Bombs, a large enlargement, large bodies.")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each load of large bodies lasts")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    parser.add_argument("--bomb", help="(a process of its own) refuse this bomb")
    arguments = parser.parse_args()
    if arguments.bomb:
        refuse(arguments.bomb)
    else:
        text = "\n".join([bombs(), *large(arguments.seconds)])
        write_down("Uploads", text, arguments.append)


def bombs() -> str:
    """Each in a fresh process: milliseconds and resident memory gained until it is refused."""
    from test_decode import bombs as made

    lines = ["| Bomb | bytes | ms | RSS gained, MiB |", "|---|---|---|---|"]
    for name in made():
        command = [sys.executable, __file__, "--bomb", name]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        lines.append(f"| {name} | {told['bytes']} | {told['ms']:.2f} | {told['kib'] / 1024:.1f} |")
    return "\n".join(lines) + "\n"


def refuse(name: str) -> None:
    """Refuse one bomb, and print what that took."""
    from test_decode import bombs as made

    from service.errors import ImageTooLarge
    from service.imaging.decode import inspect
    from service.imaging.limits import Limits

    data, limits = made()[name], Limits()
    before, started = resident_kib(os.getpid()), time.perf_counter()
    try:
        inspect(data, limits)
    except ImageTooLarge:
        ms = (time.perf_counter() - started) * 1000
        print(json.dumps({"bytes": len(data), "ms": ms, "kib": max(0, peak_kib() - before)}))


def resident_kib(process: int) -> int:
    """The resident set of a process now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def peak_kib() -> int:
    """The largest resident set of this process since it began to measure."""
    return resident_kib(os.getpid())


def large(seconds: float) -> list[str]:
    """A server's memory and speed over one large enlargement, and a loop's lag under large bodies."""
    from tinymodels import write_picture_models

    with tempfile.TemporaryDirectory() as folder:
        write_picture_models(Path(folder))
        with bodies.serving(Path(folder)) as (server, port):
            first = enlarged(server.pid, port, Path(folder))
        return [first, bodies.measured(Path(folder), seconds)]


def post(port: int, path: str, body: bytes, kind: str = "image/png") -> tuple[int, int]:
    """Status and bytes of an answer, read piece by piece."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"content-type": kind, "x-request-timeout-ms": "600000"}
    connection.request("POST", path, body, headers)
    reply = connection.getresponse()
    size = 0
    while piece := reply.read(1 << 16):
        size += len(piece)
    connection.close()
    return reply.status, size


def enlarged(process: int, port: int, folder: Path) -> str:
    """50 megapixels by four: seconds and memory, beside a bare loop of ONNX Runtime over the same tiles."""
    from uploads import saved, smooth

    from service.engine.reach import geometry
    from service.engine.tiling import spans
    from service.onnxgraph import read_graph

    picture = smooth(RESULT[0] // 4, RESULT[1] // 4)
    body = saved(picture, "PNG")
    post(port, "/upscale?model=tiny-x4", saved(picture[:64, :64], "PNG"))
    before, peak, done = resident_kib(process), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, resident_kib(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu_s, started = bodies.spent_s(process), time.perf_counter()
    status, size = post(port, "/upscale?model=tiny-x4", body)
    took_s, cpu_s = time.perf_counter() - started, bodies.spent_s(process) - cpu_s
    done.set()
    watcher.join()
    path = folder / "tiny-x4/1/generator.onnx"
    reach = geometry(read_graph(path), ["image"], "output")
    rows, columns = spans(picture.shape[0], 128, reach.height), spans(picture.shape[1], 128, reach.width)
    bare_s = bare_loop(path, picture, [(row, column) for row in rows for column in columns])
    lines = [
        "| 50 MP by x4 | seconds | MP/s | bare loop | CPU s | bare loop | RSS gained, MiB | file, MiB |",
        "|---" * 8 + "|",
    ]
    mp = RESULT[0] * RESULT[1] / 1e6
    gained = (peak - before) / 1024
    speeds = f"{took_s:.1f} | {mp / took_s:.2f} | {mp / bare_s[0]:.2f} | {cpu_s:.1f} | {bare_s[1]:.1f}"
    tiles = f"{len(rows) * len(columns)} tiles, {status}"
    lines.append(f"| {tiles} | {speeds} | {gained:.0f} | {size / 2**20:.0f} |")
    return "\n".join(lines) + "\n"


def bare_loop(path: Path, picture: np.ndarray, tiles: list) -> tuple[float, float]:
    """Seconds and CPU seconds of the same runs without a server."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    started, cpu_s = time.perf_counter(), time.process_time()
    for row, column in tiles:
        session.run(None, {"image": picture[None, row.start : row.stop, column.start : column.stop]})
    return time.perf_counter() - started, time.process_time() - cpu_s


if __name__ == "__main__":
    main()
