"""The app behind Ray Serve beside the plain server: throughput of one and two replicas, and what the hop costs.

    python benchmarks/cluster.py --models models --seconds 3 --rounds 2 [--append benchmarks/RESULTS.md]

Each replica has one lane of one thread, and the plain server as many lanes as there are replicas. One server is up at a
time; a round starts each in turn, the next goes through them backwards, and all rounds are pooled. Two models: a
generator that costs at least `--cpu-ms` an image, and a small one, of which the hop is most. CPU time is that of all
processes: Ray's proxy (or HAProxy), controller, scheduler and dashboard too. Nobody is held to a core, so two replicas
share the cores with Ray's own processes and with the load. `make bench-ray` sets up Ray's environment, `.venv-ray`.
"""

import argparse
import itertools
import json
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.graphs import write_heavy
from benchmarks.load import Period, closed_loop
from benchmarks.processes import Family, NotReady, free_port, ganymede, running
from benchmarks.race import QUIET, bodies, table
from benchmarks.server import write_down

ROOT = Path(__file__).resolve().parents[1]
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
"""HAProxy sends requests straight to the replicas. It listens on all addresses of the machine, whatever it is told."""
CLIENTS = (1, 16)
REST_S = 3.0
"""A server without requests is watched for so long: what it costs to be there."""
WARM_S = 1.0
LOOKS = 400
"""A replica that so many scrapes have not met is not there."""
COLUMNS = (
    "model", "clients", "server", "images/s", "p50 ms", "p99 ms", "CPU-ms/image", "errors", "cores of the load",
)  # fmt: skip
HOPS = ("model", "server", "beside", "p50 ms, plain", "p50 ms, Ray", "the hop, ms", "the hop, CPU-ms/image")
GAINS = ("model", "server", "images/s / plain, one lane", "images/s / plain, as many lanes")
RESTS = ("server", "cores at rest", "memory MiB")


@dataclass(frozen=True)
class Case:
    """One server.

    Args:
        name: what the tables call it.
        replicas: of Ray; as many lanes of the plain server.
        ray: whether Ray serves it.
        environment: further variables.
    """

    name: str
    replicas: int
    ray: bool
    environment: Mapping[str, str] = field(default_factory=dict)


CASES = (
    Case("plain, 1 lane", 1, False),
    Case("Ray, 1 replica", 1, True),
    Case("Ray, 1 replica, HAProxy", 1, True, HAPROXY),
    Case("plain, 2 lanes", 2, False),
    Case("Ray, 2 replicas", 2, True),
    Case("Ray, 2 replicas, HAProxy", 2, True, HAPROXY),
)
"""Ray's own proxy, which is its default and written in Python; and HAProxy, which comes with `ray[serve]`."""

Key = tuple[str, int, str]
"""Model, clients, case's name."""


@dataclass
class Results:
    """Periods of every line, and of every server the cores that it took and the memory that it had without requests."""

    periods: dict[Key, Period] = field(default_factory=dict)
    rest_cores: dict[str, list[float]] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="The app behind Ray Serve beside the plain server.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="digits-28", help="the small one")
    parser.add_argument("--cpu-ms", type=float, default=15.0, help="of the other one, CPU-ms an image at least")
    parser.add_argument("--ray", type=Path, default=Path(".venv-ray"), help="the environment with Ray")
    parser.add_argument("--seconds", type=float, default=3.0, help="each measurement lasts so long")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    arguments = parser.parse_args()
    serve = (arguments.ray / "bin" / "serve").absolute()
    if not serve.is_file():
        raise SystemExit(f"{serve} is not there: `make bench-ray` sets it up")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        heavy, cpu_ms = write_heavy(folder / "models", arguments.cpu_ms)
        shutil.copytree(arguments.models / arguments.model, folder / "models" / arguments.model)
        names = [heavy.partition("@")[0], arguments.model]
        results = Results()
        for number in range(arguments.rounds):
            for case in CASES[:: -1 if number % 2 else 1]:
                lap(case, serve, folder, names, arguments.seconds, results)
    write_down("Ray Serve beside the plain server", report(results, names, cpu_ms, arguments), arguments.append)
    sys.exit(1 if any(period.errors for period in results.periods.values()) else 0)


def lap(case: Case, serve: Path, folder: Path, models: Sequence[str], seconds: float, results: Results) -> None:
    """Start one server, watch it rest, measure every model at every number of clients, end it."""
    port = free_port()
    lanes = 1 if case.ray else case.replicas
    # The plans that the first server measures hold for all: none may batch more than another.
    ours = {"GANYMEDE_CACHE": str(folder / "cache"), "GANYMEDE_LANES": str(lanes), "GANYMEDE_THREADS_PER_LANE": "1"}
    command = ganymede(folder / "models", port)
    if case.ray:
        written = folder / "serve.json"  # which is YAML, too
        written.write_text(json.dumps(configuration(case, port)))
        command = [str(serve), "run", "--app-dir", str(ROOT), str(written)]
        ours |= {"GANYMEDE_MODELS": str(folder / "models"), "GANYMEDE_ACCESS_LOG": "false", "PYTHONPATH": str(ROOT)}
    with running(command, {**QUIET, **ours, **case.environment}, ROOT, port, models) as family:
        everyone(case.replicas if case.ray else 1, port)
        rest(case, family, results)
        for model, clients in itertools.product(models, CLIENTS):
            period = closed_loop(port, bodies(model), clients, seconds, family.cpu_s, WARM_S)
            results.periods.setdefault((model, clients, case.name), Period()).add(period)
            print(f"{case.name}, {model}, {clients} clients: {period.rate:.0f} images/s", file=sys.stderr)


def configuration(case: Case, port: int) -> dict[str, object]:
    """What `serve run` reads. Ray's access log is off, as ours is, and its proxy listens to this machine alone."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": "ganymede",
                "route_prefix": "/",
                "import_path": "deploy.ray_app:app",
                "args": {"min_replicas": case.replicas, "max_replicas": case.replicas},
            }
        ],
    }


def everyone(replicas: int, port: int) -> None:
    """Return when so many processes have answered.

    Raises:
        NotReady: fewer did.
    """
    met = set()
    for _ in range(LOOKS):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            met.update(re.findall(rb"^process_start_time_seconds (\S+)", answer.read(), re.M))
        if len(met) == replicas:
            return
        time.sleep(0.05)
    raise NotReady(f"{len(met)} replicas answered, and not {replicas}")


def rest(case: Case, family: Family, results: Results) -> None:
    """What it takes without requests."""
    before, began = family.cpu_s(), time.perf_counter()
    time.sleep(REST_S)
    spent = (family.cpu_s() - before) / (time.perf_counter() - began)
    results.rest_cores.setdefault(case.name, []).append(spent)
    results.memory_bytes[case.name] = max(results.memory_bytes.get(case.name, 0), family.memory_bytes())


def report(results: Results, models: Sequence[str], cpu_ms: float, arguments: argparse.Namespace) -> str:
    """The Markdown."""
    return "\n\n".join(
        [
            f"{arguments.rounds} rounds of {arguments.seconds:g} s for each line, pooled; {models[0]} costs "
            f"{cpu_ms:.1f} CPU-ms in ONNX Runtime alone. CPU and memory (PSS) are of all of a server's processes; the "
            "load shares the cores. HAProxy: `RAY_SERVE_ENABLE_HA_PROXY=1` in place of Ray's own proxy.",
            table(COLUMNS, list(lines_of(results, models))),
            "The hop, of one client: Ray less the plain server with as many lanes.",
            table(HOPS, list(hops(results.periods, models))),
            f"Throughput, of {CLIENTS[-1]} clients:",
            table(GAINS, list(gains(results.periods, models))),
            table(RESTS, list(rests(results))),
        ]
    )


def lines_of(results: Results, models: Sequence[str]) -> Iterator[list[str]]:
    """As COLUMNS has it."""
    for model, clients, case in itertools.product(models, CLIENTS, CASES):
        found = results.periods[model, clients, case.name]
        times = [f"{found.percentile_ms(percent):.2f}" for percent in (50, 99)]
        spent = [f"{found.cpu_ms:.2f}", str(found.errors), f"{found.client_cores:.2f}"]
        yield [model, str(clients), case.name, f"{found.rate:.1f}", *times, *spent]


def beside(case: Case) -> Case:
    """The plain server with as many lanes as a case has replicas."""
    return next(other for other in CASES if not other.ray and other.replicas == case.replicas)


def hops(periods: Mapping[Key, Period], models: Sequence[str]) -> Iterator[list[str]]:
    """As HOPS has it."""
    for model, case in itertools.product(models, CASES):
        if case.ray:
            plain, ray = (periods[model, CLIENTS[0], server.name] for server in (beside(case), case))
            times = plain.percentile_ms(50), ray.percentile_ms(50), ray.percentile_ms(50) - plain.percentile_ms(50)
            figures = [f"{figure:.2f}" for figure in (*times, ray.cpu_ms - plain.cpu_ms)]
            yield [model, case.name, beside(case).name, *figures]


def gains(periods: Mapping[Key, Period], models: Sequence[str]) -> Iterator[list[str]]:
    """As GAINS has it."""
    for model, case in itertools.product(models, CASES):
        rate, one, same = (periods[model, CLIENTS[-1], server.name].rate for server in (case, CASES[0], beside(case)))
        yield [model, case.name, f"{rate / one:.2f}", f"{rate / same:.2f}"]


def rests(results: Results) -> Iterator[list[str]]:
    """As RESTS has it; the mean over the rounds."""
    for case in CASES:
        cores = results.rest_cores[case.name]
        yield [case.name, f"{sum(cores) / len(cores):.3f}", f"{results.memory_bytes[case.name] / 2**20:.0f}"]


if __name__ == "__main__":
    main()
