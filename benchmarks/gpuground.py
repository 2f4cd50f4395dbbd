"""What the sections of benchmarks/gpu.py stand on: models, what to feed them, sessions, differences, times."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feeds import drawing
from service.engine.memory import device_memory
from service.engine.providers import DeviceOptions
from service.engine.session import Arrays, OrtSession
from service.manifest import GraphSpec, Task
from service.package import read_package

Found = dict[str, Any]
Tell = Callable[[str, object], None]
"""Takes what a section has found under a name; JSON must be able to hold it."""
MB = 1e6
SMALL, SIDE = 64, 256
"""Pixels of the pictures that are compared, and of those whose speed is measured: the engine's windows."""


@dataclass(frozen=True)
class Ground:
    """What is measured.

    Args:
        models: the folder of models.
        provider: our name of the provider that must be got.
        seconds: to measure for, over all sections.
    """

    models: Path
    provider: str
    seconds: float

    def folders(self) -> list[Path]:
        """The newest version of each model."""
        found = sorted((path.parent for path in self.models.glob("*/*/manifest.json")), key=lambda one: int(one.name))
        return sorted({folder.parent.name: folder for folder in found}.values())

    def generators(self) -> list[Path]:
        """Those that draw from latents."""
        return [folder for folder in self.folders() if Task.GENERATE in read_package(folder).tasks]


def feeds_of(folder: Path, rows: int, side: int) -> tuple[GraphSpec, Arrays]:
    """The graph that draws, and what to feed it: so many seeds' rows, or so many pictures of that side in pixels."""
    manifest = read_package(folder)
    if Task.GENERATE in manifest.tasks:
        return drawing(folder, manifest, range(rows))
    (graph,) = manifest.graphs.values()
    return graph, {tensor.name: pictures(rows, side, int(tensor.shape[-1])) for tensor in graph.inputs}


def pictures(rows: int, side: int, channels: int) -> np.ndarray:
    """[rows, side, side, channels] uint8: soft waves with a little noise, no two alike."""
    rng = np.random.RandomState(side)
    y, x = np.mgrid[:side, :side] / side
    phase = rng.rand(rows, 1, 1, channels) * 6
    waves = 100 * np.sin(9 * x[None, :, :, None] + 5 * y[None, :, :, None] ** 2 + phase)
    made: np.ndarray = np.clip(128 + waves + 8 * rng.randn(rows, side, side, channels), 0, 255).astype(np.uint8)
    return made


def session_of(
    folder: Path, graph: GraphSpec, provider: str, memory_bytes: int | None = None, search: str = ""
) -> OrtSession:
    """A session as the engine makes it."""
    device = DeviceOptions(memory_bytes, search=search)
    return OrtSession(folder / graph.file, graph, model=folder.parent.name, providers=(provider,), device=device)


def first_rows(feeds: Arrays, rows: int, start: int = 0) -> Arrays:
    """So many rows of each input."""
    return {name: array[start : start + rows] for name, array in feeds.items()}


def image_of(graph: GraphSpec, answers: Arrays) -> np.ndarray:
    """The pictures among the answers."""
    return answers[next(tensor.name for tensor in graph.outputs if tensor.kind == "image")]


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """How far two arrays of bytes are apart."""
    distance = np.abs(one.astype(np.int16) - other.astype(np.int16))
    beyond = float((distance > 1).mean())
    return {"largest": int(distance.max()), "equal_share": float((distance == 0).mean()), "beyond_one_share": beyond}


def guarded(look: Callable[[], object]) -> object:
    """What it answers, or its traceback: one model that fails costs no other's figures."""
    try:
        return look()
    except Exception:
        return {"error": traceback.format_exc()}


def used_mb() -> float | None:
    """What the first NVIDIA device holds for all processes; None without one."""
    memory = device_memory(0)
    return None if memory is None else round(memory.used_bytes / MB, 1)


def timed_ms(run: Callable[[], object], window_s: float) -> float:
    """The median ms of a run over the window, three runs at least, after a first one that may choose and allocate."""
    run()
    took_s: list[float] = []
    end = time.perf_counter() + window_s
    while len(took_s) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        took_s.append(time.perf_counter() - began)
    return float(np.median(took_s)) * 1000
