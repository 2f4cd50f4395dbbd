"""Two versions of a model that should draw the same: their time by turns, and what differs. `make bench-versions`.

    python benchmarks/versions.py models/faces-32/5 models/faces-32/6 [--rounds 40] [--append benchmarks/RESULTS.md]

One thread, CPU time, medians; the two take turns within each round. Latents are those of other seeds in each round.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.feeds import drawing
from benchmarks.race import table
from benchmarks.server import write_down
from service.manifest import Manifest
from service.package import read_package

ROWS = (1, 2, 4, 8)


class Version:
    """One of the two, in a session of one thread."""

    def __init__(self, folder: Path) -> None:
        self.manifest: Manifest = read_package(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._folder = folder
        path = folder / drawing(folder, self.manifest, range(1))[0].file
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def draw(self, seeds: range) -> tuple[np.ndarray, float]:
        """The images, and the CPU time that they took in milliseconds."""
        _, feeds = drawing(self._folder, self.manifest, seeds)
        began = time.process_time()
        images = self._session.run(None, feeds)[0]
        return images, (time.process_time() - began) * 1000


def compared(old: Version, new: Version, rounds: int) -> list[list[str]]:
    """A line for each number of images a run."""
    lines = []
    for rows in ROWS:
        spent: tuple[list[float], list[float]] = ([], [])
        differing = values = 0
        for turn in range(rounds):
            seeds = range(turn * rows, (turn + 1) * rows)
            (before, before_ms), (after, after_ms) = old.draw(seeds), new.draw(seeds)
            spent[0].append(before_ms / rows)
            spent[1].append(after_ms / rows)
            differing += int(np.count_nonzero(before != after))
            values += before.size
        one, two = (float(np.median(times)) for times in spent)
        lines.append([str(rows), f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}", f"{differing}", f"{values}"])
    return lines


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description="Two versions of a model by turns.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--append", type=Path, help="a Markdown file to append the table to")
    arguments = parser.parse_args()
    old, new = Version(arguments.old), Version(arguments.new)
    names = old.manifest.ref, new.manifest.ref
    columns = ("images a run", f"{names[0]}, CPU-ms an image", names[1], "ratio", "values that differ", "of")
    write_down(f"{names[1]} beside {names[0]}", table(columns, compared(old, new, arguments.rounds)), arguments.append)


if __name__ == "__main__":
    main()
