"""Uploads: how fast bombs are refused, what 50 megapixels of enlargement take, the loop's lag under large bodies.

    python benchmarks/uploads.py [--seconds 10] [--append benchmarks/RESULTS.md]

Runs a server of its own with tiny convolutional models that it writes; prints three tables. Memory is the process's
resident set, time is the wall's: stop everything else first.
"""

import argparse
import asyncio
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

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/service/imaging")]

CLIENTS = 16
BODY_BYTES = 16 << 20
RESULT = (5776, 8664)
"""Rows and columns of the enlarged picture: 50 megapixels."""


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="Bombs, a large enlargement, large bodies.")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long large bodies are sent")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    parser.add_argument("--serve", type=Path, help="(a process of its own) serve these models and tell the loop's lag")
    parser.add_argument("--bomb", help="(a process of its own) refuse this bomb")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
    elif arguments.bomb:
        refuse(arguments.bomb)
    else:
        text = "\n".join([bombs(), *large(arguments.seconds)])
        print(text)
        if arguments.append:
            with arguments.append.open("a") as file:
                file.write(f"\n## Uploads: {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n\n{text}\n")


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


async def serve(models: Path) -> None:
    """A server that prints its port, and at the end of its input its loop's lag in milliseconds."""
    import uvicorn

    from service.api.app import create_app
    from service.settings import Settings

    settings = Settings(models=models, profile_s=0, lanes=1, threads_per_lane=1, access_log=False, poll_models_s=None)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    lags: list[float] = []

    async def probe() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            lags.append(loop.time() - due)

    async def control() -> None:
        while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.05)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line.strip() == "lag":
                found = np.sort(np.array(lags[1:])) * 1000
                lags.clear()
                told = {str(share): float(np.quantile(found, share)) for share in (0.5, 0.99, 1.0)}
                print(json.dumps(told | {"samples": len(found)}), flush=True)
        server.should_exit = True

    probing = asyncio.create_task(probe())
    await asyncio.gather(server.serve(), control())
    probing.cancel()


def large(seconds: float) -> list[str]:
    """A server's memory and speed over one large enlargement, and its loop's lag under large bodies."""
    from tinymodels import write_picture_models, write_tiny

    with tempfile.TemporaryDirectory() as folder:
        write_picture_models(Path(folder))
        write_tiny(Path(folder), "tiny-rgb")
        command = [sys.executable, __file__, "--serve", folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin and server.stdout
            port = int(server.stdout.readline())
            try:
                wait_ready(port)
                first = enlarged(server.pid, port, Path(folder))
                ask_lag(server)
                return [first, flooded(server, port, seconds)]
            finally:
                server.stdin.close()


def wait_ready(port: int) -> None:
    """Until the models are in."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/readyz")
        if connection.getresponse().status == 200:
            return
        time.sleep(0.1)


def ask_lag(server: "subprocess.Popen[str]") -> dict[str, float]:
    """The lag since the last time, in milliseconds by quantile."""
    assert server.stdin and server.stdout
    server.stdin.write("lag\n")
    server.stdin.flush()
    told: dict[str, float] = json.loads(server.stdout.readline())
    return told


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
    cpu_s, started = spent_s(process), time.perf_counter()
    status, size = post(port, "/upscale?model=tiny-x4", body)
    took_s, cpu_s = time.perf_counter() - started, spent_s(process) - cpu_s
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


def spent_s(process: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def flooded(server: "subprocess.Popen[str]", port: int, seconds: float) -> str:
    """The loop's lag while clients send large bodies and others keep the queue full."""
    from uploads import saved

    side = int((BODY_BYTES / 3) ** 0.5)
    body = saved(np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8), "BMP")
    stop = time.perf_counter() + seconds
    codes: dict[int, int] = {}

    def upload() -> None:
        while time.perf_counter() < stop:
            code, _ = post(port, "/translate?model=tiny-paint&format=jpeg", body, "image/bmp")
            codes[code] = codes.get(code, 0) + 1

    def draw() -> None:
        while time.perf_counter() < stop:
            post(port, "/generate", b'{"model":"tiny-rgb","count":64,"as":"zip"}', "application/json")

    threads = [threading.Thread(target=upload) for _ in range(CLIENTS)] + [
        threading.Thread(target=draw) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, stop - time.perf_counter()))
    lag = ask_lag(server)
    for thread in threads:
        thread.join()
    lines = ["| Clients | body, MiB | answers | lag p50, ms | p99 | largest |", "|---" * 6 + "|"]
    told = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
    figures = " | ".join(f"{lag[share]:.1f}" for share in ("0.5", "0.99", "1.0"))
    lines.append(f"| {CLIENTS} | {len(body) / 2**20:.0f} | {told} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
