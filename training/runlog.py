"""A run's directory: recipe.json, stats.jsonl, sample grids, TensorBoard events, and progress in the terminal."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside and rename, so that no reader sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """[N, H, W, C] uint8 as one picture [rows, columns] with white gaps, [H', W', C] uint8."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = (index // columns) * (h + gap) + gap, (index % columns) * (w + gap) + gap
        sheet[y : y + h, x : x + w] = image
    return sheet


def save_png(path: Path, image: np.ndarray, zoom: int = 1) -> None:
    """Save [H, W, C] uint8 as PNG, each pixel `zoom` pixels wide."""
    write_atomically(path, png(image, zoom))


def png(image: np.ndarray, zoom: int = 1, *, optimize: bool = False) -> bytes:
    """[H, W, C] uint8 as a PNG file, each pixel `zoom` pixels wide; `optimize` takes time to make it smaller."""
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    if zoom > 1:
        picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=optimize)
    return data.getvalue()


@dataclass(frozen=True)
class Event:
    """What a monitor noticed in a run. `evidence` holds the figures that made it speak."""

    monitor: str
    severity: str
    message: str
    evidence: Mapping[str, float]


class RunLog:
    """Writes one run's directory.

    Args:
        directory: made if missing.
        tensorboard: also write events where the package is installed.
        out: where progress goes; a terminal gets one line that is rewritten, a file one line a tick.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = True, out: TextIO | None = None) -> None:
        self.directory = directory
        self.out = out if out is not None else sys.stderr
        (directory / "samples").mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.say("tensorboard is not installed: no events are written")
            else:
                self._writer = SummaryWriter(str(directory / "tensorboard"))
        self._started, self._started_kimg = time.monotonic(), 0.0

    def recipe(self, facts: Mapping[str, Any]) -> None:
        """Write recipe.json: the recipe, family, data set, seed, versions."""
        write_atomically(self.directory / "recipe.json", json.dumps(facts, indent=1).encode() + b"\n")

    def resume(self, kimg: float) -> None:
        """Drop what stats.jsonl holds beyond the checkpoint, so that a resumed run tells one story."""
        self._started_kimg = kimg
        path = self.directory / "stats.jsonl"
        if path.is_file():
            rows = [line for line in path.read_text().splitlines() if _kimg(line) <= kimg]
            write_atomically(path, "".join(row + "\n" for row in rows).encode())

    def stats(self, kimg: float, values: Mapping[str, float], *, kind: str = "train") -> None:
        """Append one row to stats.jsonl and TensorBoard."""
        # JSON knows no NaN: what is not finite is null.
        figures = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        row = {"kimg": round(kimg, 3), "kind": kind, **figures}
        with (self.directory / "stats.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, round(kimg * 1000))

    def event(self, kimg: float, event: Event) -> None:
        """Append what a monitor noticed to stats.jsonl and say it."""
        with (self.directory / "stats.jsonl").open("a") as file:
            file.write(json.dumps({"kimg": round(kimg, 3), "kind": "event", **asdict(event)}) + "\n")
        self.say(f"{event.severity}: {event.monitor}: {event.message}")

    def samples(self, kimg: float, images: np.ndarray, columns: int = 8, zoom: int = 2) -> None:
        """Save a grid of [N, H, W, C] uint8 as samples/<kimg>.png."""
        save_png(self.directory / "samples" / f"{kimg:09.1f}.png", grid(images, columns), zoom=zoom)

    def progress(
        self, kimg: float, total_kimg: float | None, values: Mapping[str, float], left_s: float | None = None
    ) -> None:
        """One line: how far, how fast, how long yet, and the latest figures.

        Args:
            total_kimg: the run's length, or None for one that goes by the clock and has `left_s` yet.
        """
        elapsed = time.monotonic() - self._started
        rate = (kimg - self._started_kimg) / elapsed if elapsed > 0 else 0.0
        left = float("inf") if left_s is None else left_s
        if total_kimg is not None and rate > 0:
            left = max(0.0, total_kimg - kimg) / rate
        figures = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
        whole = "" if total_kimg is None else f"/{total_kimg:.{0 if total_kimg >= 10 else 1}f}"
        line = f"{kimg:8.1f}{whole} kimg  {rate * 1000:5.0f} img/s  {_clock(left)} left  {figures}"
        if self.out.isatty():
            self.out.write(f"\r\x1b[2K{line[:200]}")
            self.out.flush()
        else:
            self.say(line)

    def say(self, text: str) -> None:
        """A line of its own."""
        self.out.write(("\r\x1b[2K" if self.out.isatty() else "") + text + "\n")
        self.out.flush()

    def close(self) -> None:
        """Flush and close the events file."""
        if self._writer is not None:
            self._writer.close()


def _kimg(line: str) -> float:
    try:
        return float(json.loads(line)["kimg"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "--:--:--"
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
