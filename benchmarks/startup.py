"""How long a server takes from its start to its first ready answer, and what memory it holds then.

    PYTHONPATH=. python benchmarks/startup.py --models models --runs 7 [--append benchmarks/RESULTS.md]

Each row is one folder of models, started several times as a user would start it, each time a new process. `cached`: the
plan was measured by an earlier start and kept (`--cache`); `cold`: it is measured anew. Seconds count from before the
process is made until `/readyz` answers 200, with the modules' bytecode written before, as it is in the image and after
a first start. CPU seconds are the process's own until then: on a machine that is shared with other work they mean more
than the former. Memory is the kernel's VmRSS at that moment, and its highest, VmHWM.
"""

import argparse
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server import write_down

COLUMNS = ("models", "plan", "starts", "ready s, least", "median", "CPU s, least", "RSS MB", "highest MB")
PATIENCE_S = 120.0
LOOK_S = 0.01
MB = 1e6


@dataclass(frozen=True)
class Start:
    """One start of a server, until it was ready."""

    ready_s: float
    cpu_s: float
    resident_bytes: int
    highest_bytes: int


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="Seconds until ready and memory, with one model and with all.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--one", help="the model that is served alone; the smallest by default")
    parser.add_argument("--runs", type=int, default=7, help="starts of each kind")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    one = arguments.one or smallest(arguments.models)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        alone, bytecode = Path(scratch) / "models", Path(scratch) / "bytecode"
        alone.mkdir()
        (alone / one).symlink_to((arguments.models / one).resolve())
        everything = f"all {len(list(arguments.models.glob('*/*/manifest.json')))}"
        for name, models in ((one, alone), (everything, arguments.models)):
            cache = Path(scratch) / f"cache of {name}"
            started(models, cache, bytecode)  # measures the plans; also what the disk holds is in memory from here on
            for plan, folder in (("cached", cache), ("cold", None)):
                rows.append(row(name, plan, [started(models, folder, bytecode) for _ in range(arguments.runs)]))
    text = table(rows)
    write_down("Start", text, arguments.append)


def smallest(models: Path) -> str:
    """The name of the model with the smallest files."""
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.glob("*/*.onnx"))
        for folder in models.iterdir()
        if list(folder.glob("*/manifest.json"))
    }
    if not sizes:
        raise SystemExit(f"{models} holds no model")
    return min(sizes, key=lambda name: sizes[name])


def environment(bytecode: Path) -> dict[str, str]:
    """This process's, but modules are compiled once into that folder, whatever is set here."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return environ | {"PYTHONPYCACHEPREFIX": str(bytecode)}


def started(models: Path, cache: Path | None, bytecode: Path) -> Start:
    """Start a server, wait until it is ready, look, and end it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    command = [sys.executable, "-m", "service", "serve", "--models", str(models), "--port", str(port)]
    command += ["--log-level", "warning", *(["--cache", str(cache)] if cache else [])]
    began_s = time.perf_counter()
    process = subprocess.Popen(command, env=environment(bytecode))
    try:
        while not ready(port):
            if process.poll() is not None or time.perf_counter() - began_s > PATIENCE_S:
                raise SystemExit(f"a server with {models} did not become ready")
            time.sleep(LOOK_S)
        ready_s = time.perf_counter() - began_s
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        resident, highest = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return Start(ready_s, cpu_s(process.pid), resident, highest)
    finally:
        process.kill()
        process.wait()


def ready(port: int) -> bool:
    """Whether `/readyz` answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def cpu_s(pid: int) -> float:
    """Seconds that a process has computed so far, its own and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row(name: str, plan: str, starts: Sequence[Start]) -> list[str]:
    """The starts of one kind as a line under COLUMNS."""
    seconds = [start.ready_s for start in starts]
    return [
        name,
        plan,
        str(len(starts)),
        f"{min(seconds):.2f}",
        f"{statistics.median(seconds):.2f}",
        f"{min(start.cpu_s for start in starts):.2f}",
        f"{max(start.resident_bytes for start in starts) / MB:.0f}",
        f"{max(start.highest_bytes for start in starts) / MB:.0f}",
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown under COLUMNS."""
    lines = [COLUMNS, ["---", "---"] + ["---:"] * (len(COLUMNS) - 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
