"""The race: the same generators behind Ganymede and behind what else one would serve them with. `make bench-race`.

    python benchmarks/race.py --models models --seconds 1 --rounds 2 [--append benchmarks/RESULTS.md]

One server is up at a time. A round starts each in turn, checks that it draws the very same pixels, and loads it with
1, 16 and 64 closed-loop clients for each model; the next round goes through them backwards, and all rounds are pooled,
so that a drift of the machine hits all alike. CPU time is that of all of a server's processes. Peers with dynamic
batching run with and without it, plain FastAPI in its thread pool and on its loop. The peers' environments are made on
first use in .venv-peers (some minutes).
"""

import argparse
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.load import Period, closed_loop
from benchmarks.peers.drawing import Generators, draws
from benchmarks.processes import NotReady, free_port, ganymede, picture, running
from benchmarks.server import write_down

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".venv-peers"
OURS = "Ganymede"
CLIENTS = (1, 16, 64)
BATCH = 16
"""The peers' batch cap: where the shipped models' cost per row has levelled off; no more can queue at 16 clients."""
CHECKED_SEEDS = (0, 1, 2**32 - 1)
COLUMNS = (
    "model",
    "clients",
    "server",
    "images/s",
    "p50 ms",
    "p99 ms",
    "CPU-ms/image",
    "errors",
    "cores of the load",
    "memory MiB",
)
GOALS = ("model", "clients", "CPU-ms / best that batches", "images/s / best peer", "p99 / best peer", "all met")

CPU_GOAL = 0.5
GOAL = (
    f"at most {CPU_GOAL:g} of the CPU time of the best peer that batches, more images per second than any peer, "
    "a p99 below all of theirs, no errors."
)
NOTE = (
    "CPU-ms/image and memory (PSS) are of all of a server's processes; the load generator runs on the same cores, "
    "and its share is in its own column."
)

Key = tuple[str, int, str]
"""Model, clients, racer's name."""


@dataclass(frozen=True)
class Racer:
    """One server in one configuration.

    Args:
        peer: whose it is; several racers may be one peer's.
        name: what the table calls it.
        can_batch: whether the peer has dynamic batching, whatever this configuration does.
        command: what to run in `benchmarks/peers` with a Python, the models' folder and a port.
        environment: variables beyond those that every peer gets.
        requirements: the peer's own environment, `benchmarks/peers/<it>.txt`; None runs in ours.
    """

    peer: str
    name: str
    can_batch: bool
    command: Callable[[str, Path, int], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    requirements: str | None = None


def _file(name: str) -> Callable[[str, Path, int], Sequence[str]]:
    return lambda python, models, port: [python, name]


def _bento(service: str) -> Callable[[str, Path, int], Sequence[str]]:
    serve = [
        "-m",
        "bentoml",
        "serve",
        f"with_bentoml:{service}",
        "--host",
        "127.0.0.1",
        "--timeout-keep-alive",
        "75",
        "--port",
    ]
    return lambda python, models, port: [python, *serve, str(port)]


# Ray Serve's own advice for many cheap requests: no second event loop for the user's code or the router, buffered logs.
RAY = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
ALONE, BATCHED = {"PEER_BATCH": "1"}, {"PEER_BATCH": str(BATCH)}
RACERS = (
    Racer(OURS, OURS, True, lambda python, models, port: ganymede(models, port)),
    Racer("FastAPI", "FastAPI", False, _file("with_fastapi.py")),
    Racer("FastAPI", "FastAPI, on the loop", False, _file("with_fastapi.py"), {"PEER_ON_LOOP": "1"}),
    Racer("LitServe", "LitServe", True, _file("with_litserve.py"), ALONE, "litserve"),
    Racer("LitServe", "LitServe, batching", True, _file("with_litserve.py"), BATCHED, "litserve"),
    Racer("BentoML", "BentoML", True, _bento("Draw"), ALONE, "bentoml"),
    Racer("BentoML", "BentoML, batching", True, _bento("Front"), BATCHED, "bentoml"),
    Racer("Ray Serve", "Ray Serve", True, _file("with_ray.py"), {**RAY, **ALONE}, "ray"),
    Racer("Ray Serve", "Ray Serve, batching", True, _file("with_ray.py"), {**RAY, **BATCHED}, "ray"),
)
# Nobody reports usage; a start on a busy machine gets its time.
QUIET = {
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def main() -> None:
    """Race and print; ends with status 1 where a server failed to take part."""
    parser = argparse.ArgumentParser(description="Ganymede and its peers on the same generators, in one run.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--only", help="of these models alone, comma-separated")
    parser.add_argument("--seconds", type=float, default=1.0, help="each measurement lasts so long")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--racers", help=f"these alone, separated by semicolons: {'; '.join(r.name for r in RACERS)}")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    arguments = parser.parse_args()
    manifests = arguments.models.glob("*/*/manifest.json")
    models = sorted({path.parent.parent.name for path in manifests if draws(json.loads(path.read_text()))})
    if arguments.only:
        models = chosen(models, arguments.only.split(","), "--only")
    names = [racer.name for racer in RACERS]
    if arguments.racers:
        names = chosen(names, [name.strip() for name in arguments.racers.split(";")], "--racers")
    racers = [racer for racer in RACERS if racer.name in names]
    for racer in racers:
        interpreter(racer)
    results = race(racers, arguments.models.resolve(), models, arguments.rounds, arguments.seconds)
    text = "\n\n".join(
        [
            f"{arguments.rounds} rounds of {arguments.seconds:g} s for each line, pooled. {NOTE}",
            table(COLUMNS, results_rows(results, models, racers)),
            f"{OURS} against its peers, each peer at its better configuration for the figure. Goals: {GOAL}",
            table(GOALS, goal_rows(results.periods, models, racers)),
            *(f"Did not take part: {failure}" for failure in results.failures),
        ]
    )
    write_down("Race", text, arguments.append)
    sys.exit(1 if results.failures else 0)


def chosen(known: Sequence[str], asked: Sequence[str], flag: str) -> list[str]:
    """Those asked for, in the known order; ends the program where one is unknown."""
    if unknown := [name for name in asked if name not in known]:
        raise SystemExit(f"{flag}: {', '.join(map(repr, unknown))} is none of {', '.join(known)}")
    return [name for name in known if name in asked]


def interpreter(racer: Racer) -> str:
    """The Python that the racer runs in; its environment is made when it is missing or its requirements changed."""
    if racer.requirements is None:
        return sys.executable
    wanted, folder = PEERS / f"{racer.requirements}.txt", ENVIRONMENTS / racer.requirements
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.is_file() or stamp.read_text() != wanted.read_text():
        print(f"installing {racer.peer} into {folder.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-r", wanted]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted.read_text())
    return str(python)


@dataclass
class Results:
    """Every line's pooled periods, every racer's memory, and who could not take part and why."""

    periods: dict[Key, Period] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def race(racers: Sequence[Racer], models: Path, names: Sequence[str], rounds: int, seconds: float) -> Results:
    """All rounds; a racer that fails is left out of what follows."""
    results, left = Results(), list(racers)
    expected = Generators(models)
    for number in range(rounds):
        for racer in left[:: -1 if number % 2 else 1]:
            try:
                lap(racer, models, names, expected, seconds, results)
            except NotReady as failure:
                results.failures.append(f"{racer.name}: {failure}")
                left.remove(racer)
    return results


def lap(
    racer: Racer, models: Path, names: Sequence[str], expected: Generators, seconds: float, results: Results
) -> None:
    """Start one racer, check its pictures, measure every model at every number of clients, stop it."""
    port, python = free_port(), interpreter(racer)
    peer = {"PEER_MODELS": str(models), "PEER_PORT": str(port), **QUIET, **racer.environment}
    ours = racer.peer == OURS
    with running(
        racer.command(python, models, port), {} if ours else peer, ROOT if ours else PEERS, port, names
    ) as family:
        for name in names:
            check(racer, port, name, expected)
        for name, clients in itertools.product(names, CLIENTS):
            period = closed_loop(port, bodies(name), clients, seconds, family.cpu_s)
            results.periods.setdefault((name, clients, racer.name), Period()).add(period)
            print(f"{racer.name}, {name}, {clients} clients: {period.rate:.0f} images/s", file=sys.stderr)
        memory = max(results.memory_bytes.get(racer.name, 0), family.memory_bytes())
        results.memory_bytes[racer.name] = memory


def check(racer: Racer, port: int, model: str, expected: Generators) -> None:
    """Hold its pictures of some seeds against ONNX Runtime's own.

    Raises:
        NotReady: another size, or a value that differs by more than the one level that rounding may cost.
    """
    for seed in CHECKED_SEEDS:
        found, wanted = (
            np.asarray(Image.open(io.BytesIO(file)), np.int16)
            for file in (picture(port, model, seed), expected.draw([(model, seed)])[0])
        )
        if found.shape != wanted.shape or np.abs(found - wanted).max() > 1:
            raise NotReady(f"its picture of {model}, seed {seed}, is not what the generator draws")


def bodies(model: str) -> Iterator[bytes]:
    """Requests of one model, no two for the same picture until the server is started anew."""
    return (b'{"model":"%b","seed":%d}' % (model.encode(), seed) for seed in _SEEDS)


_SEEDS = itertools.count(1000)


def results_rows(results: Results, models: Sequence[str], racers: Sequence[Racer]) -> list[list[str]]:
    """One line for each model, number of clients and racer that took part."""
    lines = []
    for model, clients, racer in itertools.product(models, CLIENTS, racers):
        if (period := results.periods.get((model, clients, racer.name))) is not None:
            figures = (period.rate, period.percentile_ms(50), period.percentile_ms(99), period.cpu_ms)
            shown = [f"{figures[0]:.0f}", *(f"{figure:.2f}" for figure in figures[1:])]
            memory = f"{results.memory_bytes.get(racer.name, 0) / 2**20:.0f}"
            lines.append(
                [model, str(clients), racer.name, *shown, str(period.errors), f"{period.client_cores:.2f}", memory]
            )
    return lines


def goal_rows(periods: Mapping[Key, Period], models: Sequence[str], racers: Sequence[Racer]) -> list[list[str]]:
    """Ganymede's ratios to the best peer for each model and number of clients; none where one side is missing."""
    lines = []
    for model, clients in itertools.product(models, CLIENTS):
        ours = periods.get((model, clients, OURS))
        peers = [
            (racer, periods[model, clients, racer.name])
            for racer in racers
            if racer.peer != OURS and periods.get((model, clients, racer.name), Period()).answered
        ]
        batching = [period.cpu_ms for racer, period in peers if racer.can_batch]
        if ours is None or not ours.answered or not peers:
            continue
        cpu = ours.cpu_ms / min(batching) if batching else float("nan")
        rate = ours.rate / max(period.rate for _, period in peers)
        tail = ours.percentile_ms(99) / min(period.percentile_ms(99) for _, period in peers)
        met = cpu <= CPU_GOAL and rate > 1 and tail < 1 and not ours.errors
        lines.append([model, str(clients), f"{cpu:.2f}", f"{rate:.2f}", f"{tail:.2f}", "yes" if met else "no"])
    return lines


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown; figures to the right."""
    rule = ["---:" if lines and _number(cell) else "---" for cell in (lines[0] if lines else columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *lines))


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    main()
