"""How near the server comes to what the machine can do, and what batching costs a lone client. `make bench-bound`.

    python benchmarks/bound.py --models models --seconds 1.5 --rounds 3 [--append benchmarks/RESULTS.md]

The bare loop: threads of one process that run ONNX Runtime and write each picture with the server's own encoder and
marks, at the best plan that a sweep over sessions, threads in each and rows in a run finds; no HTTP and no queue. It
has the cores to itself, while the server shares them with the load. The null route: FastAPI and uvicorn as Ganymede
runs them, answering a constant picture or zip of the same size. What is compared takes turns within each round.
"""

import argparse
import io
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.feeds import drawing
from benchmarks.load import Period, closed_loop
from benchmarks.processes import Family, free_port, ganymede, generated, picture, running
from benchmarks.race import bodies, table
from benchmarks.server import write_down
from service.imaging import Provenance, encode
from service.manifest import Manifest, Task
from service.manifest import Provenance as Origin
from service.package import read_package

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (16, 64)
IMAGES = 8
BATCHES = (1, 2, 4, 8, 16, 32)
SEEDS = 256
DCGAN = "bound-dcgan-64"
PARTS = ("dcgan", "null", "many", "batching")
LOOP_GOAL, NULL_GOAL, LONE_GOAL = 0.85, 0.80, 1.03
BOTH = (
    "Both: all cores busy, each request taking of them what it takes at the null route, the load's part included, and "
    "its images what they take in the bare loop."
)


def main() -> None:
    """Measure the parts that are asked for and print their tables."""
    parser = argparse.ArgumentParser(description="Ganymede beside a bare loop, a null route and itself unbatched.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--only", help="of these models alone, comma-separated")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="each measurement lasts so long")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    arguments = parser.parse_args()
    parts, folders = arguments.parts.split(","), generators(arguments.models.resolve())
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    if arguments.only:
        folders = {name: folder for name, folder in folders.items() if name in arguments.only.split(",")}
    if not folders:
        raise SystemExit(f"--models: {arguments.models} has no model that generates, or none of --only")
    measure = {"dcgan": against_loop, "null": against_null, "many": with_many, "batching": against_unbatched}
    texts = [measure[part](folders, arguments.rounds, arguments.seconds) for part in PARTS if part in parts]
    text = "\n\n".join(texts)
    write_down("Bounds", text, arguments.append)


def generators(models: Path) -> dict[str, Path]:
    """Name -> folder of the newest version of each model that generates."""
    folders = sorted((path.parent for path in models.glob("*/*/manifest.json")), key=lambda path: int(path.name))
    return {folder.parent.name: folder for folder in folders if Task.GENERATE in read_package(folder).tasks}


# --- figure 2: the bare loop on a DCGAN -------------------------


def against_loop(_: dict[str, Path], rounds: int, seconds: float) -> str:
    """A DCGAN of 64 px, made for this: one image a request against the bare loop."""
    with tempfile.TemporaryDirectory() as made:
        folder, parameters = build_dcgan(Path(made))
        loop = BareLoop(folder)
        plan = loop.best(seconds)
        lines = compared({DCGAN: folder}, {DCGAN: plan}, rounds, seconds, bodies, 1)
    title = f"One image a request on a DCGAN of {parameters / 1e6:.2f} M parameters at 64 px; goal {LOOP_GOAL:g}."
    return f"{title} Bare loop: {plan}.\n\n{table(('model', 'clients', 'images/s', 'bare loop', 'ratio'), lines)}"


def build_dcgan(models: Path, width: int = 32, most: int = 512) -> tuple[Path, int]:
    """Export an untrained DCGAN of 64 px through training's own export; its folder and the number of parameters."""
    return build(models, DCGAN, "dcgan", "paper", generator_width=width, max_channels=most)


def build(models: Path, name: str, kind: str, recipe_name: str, **changes: Any) -> tuple[Path, int]:
    """Export an untrained generator of a family through training's own export.

    Args:
        models: where to.
        name: of the model.
        kind: the family.
        recipe_name: one of its recipes.
        changes: fields of the recipe.

    Returns:
        Its folder, and the number of parameters.
    """
    import torch  # here: the other parts need no torch

    from training.export import write_export
    from training.families import FAMILIES

    torch.manual_seed(0)
    family = FAMILIES[kind]
    recipe = family.recipes[recipe_name].replaced(**changes)
    nets = family.nets(recipe).eval().requires_grad_(False)
    (spec,) = family.exports(nets, recipe, ())
    samples = io.BytesIO()
    Image.new("L", (1, 1)).save(samples, "PNG")
    provenance = Origin(recipe=recipe.to_json(), dataset="none: untrained", images_seen=0, commit="", seed=0)
    folder = write_export(
        models, name, family, spec, provenance, card_text="Untrained.\n", samples_png=samples.getvalue(),
        data_license="Apache-2.0",
    )  # fmt: skip
    return folder, sum(weights.numel() for weights in nets["generator"].parameters())


@dataclass(frozen=True)
class LoopPlan:
    """How the bare loop uses the cores, and how many images per second the sweep saw at that."""

    sessions: int
    threads: int
    batch: int
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.sessions} sessions x {self.threads} threads, {self.batch} rows a run"


class BareLoop:
    """ONNX Runtime and the encoder alone on one model: as many threads as sessions, each with a session of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._manifest = folder, read_package(folder)
        self._graph, self._feeds = drawing(folder, self._manifest, range(SEEDS))

    def best(self, seconds: float) -> LoopPlan:
        """The fastest plan of the sweep: each gets a fifth of a measurement's time."""
        cores = len(os.sched_getaffinity(0))
        splits = {(cores, 1), (1, cores), (max(1, cores // 2), 2 if cores > 1 else 1)}
        plans = [LoopPlan(*split, batch) for split in sorted(splits) for batch in BATCHES]
        found = [LoopPlan(plan.sessions, plan.threads, plan.batch, self.rate(plan, seconds / 5)) for plan in plans]
        return max(found, key=lambda plan: plan.rate)

    def rate(self, plan: LoopPlan, seconds: float) -> float:
        """Images per second under this plan."""
        sessions = [self._session(plan.threads) for _ in range(plan.sessions)]
        for session in sessions:
            self._draw(session, 0, plan.batch)  # the first run allocates
        end = time.perf_counter() + seconds

        def draw(session: onnxruntime.InferenceSession) -> tuple[int, float]:
            began, count = time.perf_counter(), 0
            while (now := time.perf_counter()) < end or not count:
                self._draw(session, count % (SEEDS - plan.batch), plan.batch)
                count += plan.batch
            return count, now - began

        with ThreadPoolExecutor(plan.sessions) as pool:
            return sum(count / elapsed for count, elapsed in pool.map(draw, sessions))

    def _session(self, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if threads == 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(
            self._folder / self._graph.file, options, providers=["CPUExecutionProvider"]
        )

    def _draw(self, session: onnxruntime.InferenceSession, first: int, rows: int) -> None:
        images = session.run(None, {name: values[first : first + rows] for name, values in self._feeds.items()})[0]
        for row, image in enumerate(images):
            recipe = {"model": self._manifest.ref, "seed": first + row, "label": None, "truncation": 1.0}
            encode(image, "png", Provenance(recipe))


def compared(
    folders: dict[str, Path],
    plans: dict[str, LoopPlan],
    rounds: int,
    seconds: float,
    requests: Callable[[str], Iterator[bytes]],
    images: int,
    with_null: bool = False,
) -> list[list[str]]:
    """The server beside the bare loop, in turns; one line for each model and number of clients.

    Args:
        with_null: beside a null route too, and what both take together; see `with_many`.
    """
    loops = {name: BareLoop(folder) for name, folder in folders.items()}
    bare: dict[str, list[float]] = {name: [] for name in folders}
    served, null = ({(name, clients): Period() for name in folders for clients in CLIENTS} for _ in range(2))
    models, port = next(iter(folders.values())).parents[1], free_port()
    with ExitStack() as stack:
        family = stack.enter_context(running(ganymede(models, port), {}, ROOT, port, list(folders)))
        answers = {f"{name}.zip": generated(port, next(requests(name))) for name in folders if with_null}
        null_port, other = stack.enter_context(null_route(answers)) if with_null else (0, family)
        for _ in range(rounds):
            for name in folders:
                bare[name].append(loops[name].rate(plans[name], seconds))
                for clients in CLIENTS:
                    load = (clients, seconds)
                    served[name, clients].add(closed_loop(port, requests(name), *load, family.cpu_s))
                    if with_null:
                        null[name, clients].add(closed_loop(null_port, requests(name), *load, other.cpu_s))
    lines = []
    for (name, clients), period in served.items():
        refuse_errors(period, f"{name}, {clients} clients")
        rate, bound = period.rate * images, float(np.mean(bare[name]))
        line = [name, str(clients), f"{rate:.0f}", f"{bound:.0f}", f"{rate / bound:.2f}"]
        if with_null:
            refuse_errors(null[name, clients], f"the null route, {clients} clients")
            both = both_together(null[name, clients], images, bound)
            line += [f"{null[name, clients].rate * images:.0f}", f"{both:.0f}", f"{rate / both:.2f}"]
        lines.append(line)
    return lines


def both_together(null: Period, images: int, bare: float) -> float:
    """Images per second at which all cores are busy, where each request takes of them what it takes at the null route,
    load included, and its images what they take in the bare loop."""
    cores = len(os.sched_getaffinity(0))
    request_s = (null.server_cpu_s + null.client_cpu_s) / null.answered
    return cores / (request_s / images + cores / bare)


@contextmanager
def null_route(answers: Mapping[str, bytes]) -> Iterator[tuple[int, Family]]:
    """The port and the processes of a null route.

    Args:
        answers: by `<model>.png` or `<model>.zip`.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as made:
        files = [Path(made) / name for name in answers]
        for file in files:
            file.write_bytes(answers[file.name])
        command = [sys.executable, str(ROOT / "benchmarks" / "null_route.py"), str(port), *map(str, files)]
        with running(command, {}, ROOT, port, [file.stem for file in files]) as family:
            yield port, family


# --- figure 2: the null route, and several images a request -------------------------


def against_null(folders: dict[str, Path], rounds: int, seconds: float) -> str:
    """Requests per second beside a route that draws nothing; the bare loop's rate tells where drawing is the limit."""
    small = {name: folder for name, folder in folders.items() if side(read_package(folder)) <= 28}
    columns = (
        "model", "clients", "requests/s", "null route", "ratio", "bare loop", "of the lower one", "both", "of both",
    )  # fmt: skip
    plans = {name: BareLoop(folder).best(seconds) for name, folder in small.items()}
    lines = [
        line for name, folder in small.items() for line in _beside_null(name, folder, plans[name], rounds, seconds)
    ]
    title = f"One image a request on the models of at most 28 px beside a null route; goal {NULL_GOAL:g}."
    title = f"{title} Where the bare loop is the lower one, no server reaches the null route."
    return f"{title} {BOTH}\n\n{table(columns, lines)}"


def _beside_null(name: str, folder: Path, plan: LoopPlan, rounds: int, seconds: float) -> list[list[str]]:
    loop, bare = BareLoop(folder), []
    ours, null = ({clients: Period() for clients in CLIENTS} for _ in range(2))
    port = free_port()
    with ExitStack() as stack:
        family = stack.enter_context(running(ganymede(folder.parents[1], port), {}, ROOT, port, [name]))
        null_port, other = stack.enter_context(null_route({f"{name}.png": picture(port, name, 0)}))
        for _ in range(rounds):
            bare.append(loop.rate(plan, seconds))
            for clients in CLIENTS:
                ours[clients].add(closed_loop(port, bodies(name), clients, seconds, family.cpu_s))
                null[clients].add(closed_loop(null_port, bodies(name), clients, seconds, other.cpu_s))
    lines, bound = [], float(np.mean(bare))
    for clients in CLIENTS:
        refuse_errors(ours[clients], f"{name}, {clients} clients")
        refuse_errors(null[clients], f"the null route, {clients} clients")
        rate, top = ours[clients].rate, null[clients].rate
        both = both_together(null[clients], 1, bound)
        figures = (f"{rate:.0f}", f"{top:.0f}", f"{rate / top:.2f}", f"{bound:.0f}", f"{rate / min(top, bound):.2f}")
        lines.append([name, str(clients), *figures, f"{both:.0f}", f"{rate / both:.2f}"])
    return lines


def with_many(folders: dict[str, Path], rounds: int, seconds: float) -> str:
    """Several images a request, as a zip, beside the bare loop, the null route, and both together."""
    plans = {name: BareLoop(folder).best(seconds) for name, folder in folders.items()}
    lines = compared(folders, plans, rounds, seconds, zips, IMAGES, with_null=True)
    title = f"{IMAGES} images a request as a zip; the bare loop writes the pictures alone. Goal {LOOP_GOAL:g}."
    chosen = "; ".join(f"{name}: {plan}" for name, plan in plans.items())
    columns = ("model", "clients", "images/s", "bare loop", "ratio", "null route", "both", "of both")
    return f"{title} Bare loop: {chosen}. The null route answers a constant zip. {BOTH}\n\n{table(columns, lines)}"


def zips(model: str) -> Iterator[bytes]:
    """Requests for IMAGES pictures each, no picture twice."""
    for first in itertools.count(0, IMAGES):
        yield b'{"model":"%b","seeds":"%d-%d","as":"zip"}' % (model.encode(), first, first + IMAGES - 1)


# --- figure 3: batching on and off at one client -------------------------


def against_unbatched(folders: dict[str, Path], rounds: int, seconds: float) -> str:
    """The p50 of one client with batching over that without: two servers side by side that take short turns."""
    models, ports = next(iter(folders.values())).parents[1], (free_port(), free_port())
    periods = {(name, port): Period() for name in folders for port in ports}
    with (
        running(ganymede(models, ports[0]), {}, ROOT, ports[0], list(folders)) as on,
        running(ganymede(models, ports[1], "--max-batch", "1"), {}, ROOT, ports[1], list(folders)) as off,
    ):
        for turn in range(rounds * 2):
            for name in folders:
                for port, family in list(zip(ports, (on, off), strict=True))[:: -1 if turn % 2 else 1]:
                    periods[name, port].add(closed_loop(port, bodies(name), 1, seconds / 2, family.cpu_s, 0.1))
    lines = []
    for name in folders:
        with_it, without = (periods[name, port] for port in ports)
        refuse_errors(with_it, f"{name}, batching")
        refuse_errors(without, f"{name}, no batching")
        p50 = with_it.percentile_ms(50), without.percentile_ms(50)
        lines.append([name, f"{p50[0]:.3f}", f"{p50[1]:.3f}", f"{p50[0] / p50[1]:.3f}"])
    title = f"One client, batching on beside `--max-batch 1`; goal {LONE_GOAL:g}."
    return f"{title}\n\n{table(('model', 'p50 ms on', 'p50 ms off', 'ratio'), lines)}"


def side(manifest: Manifest) -> int:
    """The longer side of a model's pictures, px."""
    shapes = [tensor.shape for graph in manifest.graphs.values() for tensor in graph.outputs if tensor.kind == "image"]
    return max(int(size) for shape in shapes for size in shape[1:3])


def refuse_errors(period: Period, what: str) -> None:
    """A figure that leaves requests out is none.

    Raises:
        SystemExit: a request was not answered with 200, or none was sent.
    """
    if period.errors or not period.answered:
        raise SystemExit(f"{what}: {dict(period.ends)}")


if __name__ == "__main__":
    main()
