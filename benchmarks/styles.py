"""What a StyleGAN's image costs through HTTP, and how an animation of sixty frames is made. `make bench-styles`.

    python benchmarks/styles.py --seconds 3 --rounds 3 [--append benchmarks/RESULTS.md]

The generator is an untrained one of the modern recipe at 64 px. Beside the server stands a bare loop in one thread: for
each image one run of the mapping, one of the synthesis, and the server's own encoder; its CPU time and the server's are
compared, not their rates, since the load shares the cores. Server and loop take turns.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.bound import build, refuse_errors
from benchmarks.load import Period, closed_loop
from benchmarks.processes import free_port, ganymede, running
from benchmarks.race import bodies, table
from benchmarks.server import write_down
from service.engine.latents import latents_from_seeds, noise_from_seeds
from service.engine.pipelines.styles import space_of, spread
from service.imaging import Provenance, encode
from service.package import read_package

ROOT = Path(__file__).resolve().parents[1]
NAME = "styles-64"
CLIENTS = (1, 16)
GOAL = 1.15
FRAMES = 60


class Bare:
    """Mapping, synthesis and encoder in this thread, an image at a time."""

    def __init__(self, folder: Path) -> None:
        self._manifest = read_package(folder)
        self._space = space_of(self._manifest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._mapping, self._synthesis = (
            onnxruntime.InferenceSession(
                folder / self._manifest.graphs[name].file, options, providers=["CPUExecutionProvider"]
            )
            for name in (self._space.mapping, self._space.synthesis)
        )
        self._inputs = {tensor.kind: tensor.name for tensor in self._manifest.graphs[self._space.synthesis].inputs}
        self._seed = 0

    def cpu_ms(self, seconds: float) -> float:
        """CPU time of an image, in milliseconds."""
        spec = self._manifest.generate
        assert spec is not None
        noise = noise_from_seeds([0], spec.latent_dim, self._space.noise_dim)
        end, began, count = time.perf_counter() + seconds, time.process_time(), 0
        while time.perf_counter() < end or not count:
            z = latents_from_seeds([self._seed], spec.latent_dim)
            (w,) = self._mapping.run([self._space.w], {self._mapping.get_inputs()[0].name: z})
            feeds = {self._inputs["latent"]: spread(w, self._space.layers), self._inputs["noise"]: noise}
            image = self._synthesis.run(None, feeds)[0][0]
            recipe = {"model": self._manifest.ref, "seed": self._seed, "label": None, "truncation": 1.0}
            encode(image, "png", Provenance(recipe))
            self._seed, count = self._seed + 1, count + 1
        return (time.process_time() - began) / count * 1000


def main() -> None:
    """Measure both and print the tables."""
    parser = argparse.ArgumentParser(description="A StyleGAN through HTTP beside a bare loop.")
    parser.add_argument("--seconds", type=float, default=3.0, help="each measurement lasts so long")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder, parameters = build(Path(made), NAME, "stylegan", "modern", generator_width=32, precision="fp32")
        port = free_port()
        with running(ganymede(Path(made), port), {}, ROOT, port, [NAME]) as family:
            periods = {clients: Period() for clients in CLIENTS}
            bare, loop = [], Bare(folder)
            requests = bodies(NAME)
            for _ in range(arguments.rounds):
                bare.append(loop.cpu_ms(arguments.seconds))
                for clients in CLIENTS:
                    periods[clients].add(closed_loop(port, requests, clients, arguments.seconds, family.cpu_s))
            motion = animation(port)
    title = f"An untrained StyleGAN (modern recipe, 64 px, {parameters / 1e6:.2f} M parameters)."
    text = "\n\n".join((title, costs(periods, float(np.mean(bare))), motion))
    write_down("A StyleGAN through HTTP", text, arguments.append)


def costs(periods: dict[int, Period], bare_ms: float) -> str:
    """The table of CPU times an image."""
    lines = [["bare loop", "", f"{bare_ms:.2f}", "1.00", ""]]
    for clients, period in periods.items():
        refuse_errors(period, f"{clients} clients")
        cost = period.server_cpu_s / period.answered * 1000
        lines.append(["server", str(clients), f"{cost:.2f}", f"{cost / bare_ms:.2f}", f"{period.rate:.0f}"])
    columns = ("what", "clients", "CPU-ms an image", "of the bare loop", "images/s")
    return f"One image a request, each of another seed; goal {GOAL:g}.\n\n{table(columns, lines)}"


def animation(port: int) -> str:
    """Sixty frames between two seeds as they are made: when they came, and how many rows were run for them."""
    url = f"http://127.0.0.1:{port}"
    asked = {"model": NAME, "seeds": "7,8", "frames": FRAMES, "as": "ndjson", "format": "png"}
    before, came_s = rows(url), []
    began = time.perf_counter()
    with httpx.stream("POST", f"{url}/interpolate", json=asked, timeout=60) as response:
        if response.status_code != 200:
            raise SystemExit(f"POST /interpolate answered {response.status_code}")
        for line in response.iter_lines():
            if "b64" in json.loads(line):
                came_s.append(time.perf_counter() - began)
    ran, runs = (now - then for now, then in zip(rows(url), before, strict=True))
    lines = [
        ["frames", str(len(came_s))],
        ["the first came after, ms", f"{came_s[0] * 1000:.1f}"],
        ["the last came after, ms", f"{came_s[-1] * 1000:.1f}"],
        [
            "rows run: two key frames through the mapping, each frame through the synthesis",
            f"{ran:.0f}",
        ],
        ["runs that they took", f"{runs:.0f}"],
    ]
    return f"An animation of {FRAMES} frames between two seeds, frame by frame.\n\n{table(('what', 'found'), lines)}"


def rows(url: str) -> tuple[float, float]:
    """Rows and runs of all of the model's graphs so far."""
    found = dict.fromkeys(("ganymede_rows_total", "ganymede_runs_total"), 0.0)
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.name in found and sample.labels["model"].startswith(NAME):
                found[sample.name] += sample.value
    ran, runs = found.values()
    return ran, runs


if __name__ == "__main__":
    main()
