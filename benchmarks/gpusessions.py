"""Sections of benchmarks/gpu.py on single sessions: pixels, the seed promise, speed by rows, a provider's options."""

import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.gpuground import (
    SIDE,
    SMALL,
    Found,
    Ground,
    Tell,
    difference,
    feeds_of,
    first_rows,
    guarded,
    image_of,
    session_of,
    timed_ms,
)
from service.engine.providers import OUTPUT_DEVICES, PROVIDERS, DeviceOptions, candidates, provider_list
from service.engine.session import Arrays, OrtSession, check_golden
from service.engine.shapes import ShapedSession
from service.errors import GanymedeError
from service.manifest import GraphSpec, Task
from service.package import read_golden, read_package

Run = Callable[[Arrays], Arrays]

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Rows in a run, of models that draw from latents..."""
PICTURES = (1, 2, 4, 8, 16)
"""... and pictures in a run."""
PATIENCE = 8
"""Times its share of the seconds that one model's speed may take before wider runs are left out."""
VARIANTS: dict[str, dict[str, str]] = {
    "as served": {},
    "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "default": {"cudnn_conv_algo_search": "DEFAULT"},
    "deterministic": {},
    "channels last": {"prefer_nhwc": "1"},
    "TF32": {"use_tf32": "1"},
    "no cuDNN": {"enable_cudnn": "0"},
}
"""Options of CUDA that might change which kernels run, and with them speed and bits; EXHAUSTIVE is the default."""


# --- models: what was got, and its pixels beside the CPU's -------------------------


def models(ground: Ground, tell: Tell) -> None:
    """Provider, recorded answers and agreement with the CPU, by model."""
    tell("device", _device())
    tell("onnxruntime", onnxruntime.__version__)
    for folder in ground.folders():
        tell(folder.parent.name, guarded(partial(_agreement, ground, folder)))


def _agreement(ground: Ground, folder: Path) -> Found:
    manifest = read_package(folder)
    graph, feeds = feeds_of(folder, 64 if Task.GENERATE in manifest.tasks else 2, 2 * SMALL)
    here, cpu = session_of(folder, graph, ground.provider), session_of(folder, graph, "cpu")
    name = next(key for key, spec in manifest.graphs.items() if spec == graph)
    try:
        check_golden(here, read_golden(folder, manifest)[name], model=manifest.ref)
        golden = "as recorded"
    except GanymedeError as error:
        golden = str(error)
    apart = difference(image_of(graph, here.run(feeds)), image_of(graph, cpu.run(feeds)))
    return {"provider": here.provider, "why": here.why, "golden": golden, **apart}


def _device() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except OSError:
        return "no nvidia-smi"


# --- seeds: the same bytes alone, in a batch, in another place, after a reload -------------------------


def seeds(ground: Ground, tell: Tell) -> None:
    """By model: how many rows differ from those drawn alone, by rows in the run; what places and reloads change."""
    for folder in ground.folders():
        tell(folder.parent.name, guarded(partial(_steady_model, ground, folder)))


def _steady_model(ground: Ground, folder: Path) -> Found:
    sizes = [2, 3, 8, 32, 256] if folder in ground.generators() else [2, 8]
    graph, feeds = feeds_of(folder, max(sizes), SMALL)
    session, again = (session_of(folder, graph, ground.provider) for _ in range(2))
    found = steadiness(session.run, graph, feeds, sizes)
    for rows in (1, 8):
        one, other = (image_of(graph, made.run(first_rows(feeds, rows))) for made in (session, again))
        found[f"same_after_reload_{rows}"] = one.tobytes() == other.tobytes()
    return found


def steadiness(run: Run, graph: GraphSpec, feeds: Arrays, sizes: list[int]) -> Found:
    """How many of the first eight rows differ from those alone, by rows in the run; whether their place matters."""
    alone = [image_of(graph, run(first_rows(feeds, 1, row)))[0] for row in range(8)]
    differ, largest = {}, 0
    for size in sizes:
        batch = image_of(graph, run(first_rows(feeds, size)))[: len(alone)]
        apart = [difference(one, other)["largest"] for one, other in zip(batch, alone, strict=False)]
        differ[str(size)], largest = sum(one > 0 for one in apart), max(largest, *apart)
    eight = first_rows(feeds, 8)
    turned = {name: array[::-1] for name, array in eight.items()}
    moved = image_of(graph, run(turned))[::-1].tobytes() == image_of(graph, run(eight)).tobytes()
    return {"rows_that_differ_of_8": differ, "largest": largest, "same_in_another_place": moved}


# --- rates: runs of growing width -------------------------


def rates(ground: Ground, tell: Tell) -> None:
    """ms a run and images (or megapixels of the answer) a second: our session, and ONNX Runtime with plain arrays."""
    points = {folder: SIZES if folder in ground.generators() else PICTURES for folder in ground.folders()}
    window_s = 0.35 * ground.seconds / (2 * sum(map(len, points.values())))
    for folder, sizes in points.items():
        tell(folder.parent.name, guarded(partial(_rates, ground, folder, sizes, window_s)))


def _rates(ground: Ground, folder: Path, sizes: tuple[int, ...], window_s: float) -> list[Found]:
    graph, feeds = feeds_of(folder, max(sizes), SIDE)
    session = session_of(folder, graph, ground.provider)
    end_s = time.monotonic() + PATIENCE * len(sizes) * window_s
    found: list[Found] = []
    for rows in sizes:
        if found and time.monotonic() > end_s:
            break  # a device on which wide runs take long; what is missing was not measured
        found.append(_rate(session, graph, first_rows(feeds, rows), rows, window_s))
    return found


def _rate(session: OrtSession, graph: GraphSpec, feeds: Arrays, rows: int, window_s: float) -> Found:
    names = [tensor.name for tensor in graph.outputs]
    shape = image_of(graph, session.run(feeds)).shape
    ms = timed_ms(lambda: session.run(feeds), window_s)
    plain_ms = timed_ms(lambda: session._session.run(names, dict(feeds)), window_s)
    pixels = rows * shape[1] * shape[2]
    rate = {"images_per_s": round(rows * 1000 / ms, 1), "megapixels_per_s": round(pixels / ms / 1000, 2)}
    return {"rows": rows, "ms": round(ms, 3), "plain_ms": round(plain_ms, 3), **rate}


# --- shapes: what it costs to change between two -------------------------


def shapes(ground: Ground, tell: Tell) -> None:
    """By model, in ms: a shape's first run, its next ones, and its runs in turns with another shape's.

    Of one session, as usual and on CUDA with cuDNN's other algorithms; and of a session for each shape.
    """
    for folder in ground.folders():
        graph, feeds = feeds_of(folder, 8, SMALL)
        for search in ("", "DEFAULT") if ground.provider == "cuda" else ("",):
            make = partial(session_of, folder, graph, ground.provider, search=search)
            tell(f"{folder.parent.name}, {search or 'as usual'}", guarded(partial(_changes, make, feeds)))


def _changes(make: Callable[[], OrtSession], feeds: Arrays) -> Found:
    one, eight = first_rows(feeds, 1), first_rows(feeds, 8)
    session, began_s = make(), time.perf_counter()
    session.run(eight)
    first_ms = (time.perf_counter() - began_s) * 1000
    alone_ms = timed_ms(lambda: session.run(eight), 0.05)
    turns_ms = timed_ms(lambda: (session.run(one), session.run(eight)), 0.3) / 2
    kept = ShapedSession(make(), make, one, sizes=(1, 8), fills=(1, 8), shelf=2, model="shapes")
    kept_ms = timed_ms(lambda: (kept.run(one), kept.run(eight)), 0.05) / 2
    figures = {"first": first_ms, "next": alone_ms, "in_turns": turns_ms, "in_turns_kept": kept_ms}
    return {name: round(ms, 3) for name, ms in figures.items()}


# --- variants: which options change speed and bits -------------------------


def variants(ground: Ground, tell: Tell) -> None:
    """Each of VARIANTS on one generator and one picture model: independence of rows, reloads, ms, the CPU's pixels."""
    named = VARIANTS if ground.provider == "cuda" else {"as served": {}}
    drawn = ground.generators()
    for folder in [*sorted(drawn, key=_values)[-1:], *[one for one in ground.folders() if one not in drawn][-1:]]:
        wide = 256 if folder in drawn else 8
        graph, feeds = feeds_of(folder, wide, SMALL)
        cpu = image_of(graph, session_of(folder, graph, "cpu").run(first_rows(feeds, 8)))
        for name, options in named.items():
            make = partial(bare, ground.provider, folder / graph.file, graph, options, name == "deterministic")
            found = guarded(partial(_variant, make, graph, feeds, cpu, 0.003 * ground.seconds))
            tell(f"{folder.parent.name}, {name}", found)


def _values(folder: Path) -> int:
    """Bytes of one picture of a model that draws from latents."""
    graph, _ = feeds_of(folder, 1, SMALL)
    return int(np.prod([int(size) for tensor in graph.outputs if tensor.kind == "image" for size in tensor.shape[1:]]))


def _variant(make: Callable[[], Run], graph: GraphSpec, feeds: Arrays, cpu: np.ndarray, window_s: float) -> Found:
    run, again = make(), make()
    wide = len(next(iter(feeds.values())))
    found = steadiness(run, graph, feeds, sorted({2, 8, min(32, wide), wide}))
    eight, reloaded = (image_of(graph, one(first_rows(feeds, 8))) for one in (run, again))
    found["same_after_reload"] = eight.tobytes() == reloaded.tobytes()
    found["beside_the_cpu"] = difference(eight, cpu)
    found["ms"] = {
        str(rows): round(timed_ms(partial(run, first_rows(feeds, rows)), window_s), 3) for rows in sorted({1, 8, wide})
    }
    return found


def bare(provider: str, file: Path, graph: GraphSpec, options: dict[str, str], deterministic: bool) -> Run:
    """A run of ONNX Runtime with other options than ours, its outputs bound to the device as ours are."""
    candidates((provider,))  # it finds the libraries
    (first, ours), *rest = provider_list(provider, DeviceOptions())
    made = onnxruntime.SessionOptions()
    made.use_deterministic_compute = deterministic
    session = onnxruntime.InferenceSession(str(file), made, providers=[(first, {**ours, **options}), *rest])
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise RuntimeError(f"fell back to {session.get_providers()[0]}")
    names = [tensor.name for tensor in graph.outputs]

    def run(feeds: Arrays) -> Arrays:
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in names:
            binding.bind_output(name, OUTPUT_DEVICES.get(provider, "cpu"), 0)
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    return run
