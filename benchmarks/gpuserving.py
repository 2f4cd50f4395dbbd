"""Sections of benchmarks/gpu.py on the engine and the server: plans, memory, lack of memory, HTTP."""

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpuground import (
    MB,
    SIDE,
    Found,
    Ground,
    Tell,
    difference,
    feeds_of,
    first_rows,
    guarded,
    image_of,
    pictures,
    session_of,
    used_mb,
)
from benchmarks.processes import free_port, ganymede, running
from service.engine.engine import Engine, EngineOptions, ModelInfo
from service.engine.recovery import RecoveringSession
from service.engine.session import Arrays, OrtSession
from service.errors import GanymedeError
from service.manifest import GraphSpec, Task

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 16, 64)
READY_S = 60.0
LEAST_BYTES, MOST_BYTES = 1 << 24, 1 << 33
"""The bounds on a device's memory that are tried, doubling, until one row fits."""


# --- engine: plans, the seed promise through the queue, memory -------------------------


def engine(ground: Ground, tell: Tell) -> None:
    """The engine as it serves: what it planned for each model, and what the device holds at each step."""
    asyncio.run(_engine(ground, tell))


async def _engine(ground: Ground, tell: Tell) -> None:
    tell("device_mb_before", used_mb())
    options = EngineOptions(ground.models, providers=(ground.provider,), poll_models_s=None, shrink_after_s=None)
    began_s = time.perf_counter()
    async with Engine(options) as one:
        tell("opened_s", round(time.perf_counter() - began_s, 2))
        tell("refused", one.refused)
        tell("device_mb_loaded", used_mb())
        for info in one.models():
            costs = {str(rows): round(seconds * 1000, 3) for rows, seconds in info.plan.costs}
            notes = list(info.provider_notes)
            tell(info.ref, {"providers": info.providers, "plan": str(info.plan), "run_ms": costs, "notes": notes})
        for info in one.models():
            work = _promise if Task.GENERATE in info.manifest.tasks else _paint
            try:
                tell(f"{info.ref}, work", await work(one, info))
            except Exception:
                tell(f"{info.ref}, work", {"error": traceback.format_exc()})
        tell("device_mb_after_work", used_mb())
        for model in one._open_repository().loaded:
            for name, graph in model.graphs.items():
                for session in dict.fromkeys(graph.sessions):  # as `idle.shrink`, which would keep a failure to itself
                    done = await asyncio.to_thread(guarded, partial(session.shrink, graph.row))
                    tell(f"{model.ref}, shrink of {name}", done or "done")
        tell("device_mb_after_shrink", used_mb())
    gc.collect()
    tell("device_mb_after_unload", used_mb())


async def _promise(one: Engine, info: ModelInfo) -> dict[str, bool]:
    """Whether eight seeds draw the same alone, together, beside others and from a model that was loaded anew."""
    name, eight = info.manifest.name, range(100, 108)
    alone = [(await one.generate(name, seeds=[seed])).images[0].tobytes() for seed in eight]
    together = (await one.generate(name, seeds=eight)).images
    crowd = await asyncio.gather(*(one.generate(name, seeds=[seed]) for seed in range(100, 164)))
    await one.load(name)
    reloaded = (await one.generate(name, seeds=eight)).images
    return {
        "together": [image.tobytes() for image in together] == alone,
        "in_a_crowd": [drawn.images[0].tobytes() for drawn in crowd[:8]] == alone,
        "reloaded": [image.tobytes() for image in reloaded] == alone,
    }


async def _paint(one: Engine, info: ModelInfo) -> Found:
    """One picture through windows and blending, twice."""
    paint = one.upscale if Task.UPSCALE in info.manifest.tasks else one.translate
    took_s, answers = [], []
    for _ in range(2):
        began_s = time.perf_counter()
        answers.append(await (await paint(info.ref, pictures(1, 2 * SIDE, 3)[0])).whole())
        took_s.append(time.perf_counter() - began_s)
    pixels = answers[0].shape[0] * answers[0].shape[1]
    same = answers[0].tobytes() == answers[1].tobytes()
    return {"megapixels_out_per_s": round(pixels / min(took_s) / MB, 2), "same_twice": same}


# --- shortage: a bound on memory that a batch does not fit into -------------------------


def shortage(ground: Ground, tell: Tell) -> None:
    """A batch that does not fit, which must be answered all the same: its pixels beside those drawn without a bound."""
    drawn = ground.generators()
    folder = next((one for one in reversed(ground.folders()) if one not in drawn), ground.folders()[0])
    rows = 256 if folder in drawn else 32
    graph, feeds = feeds_of(folder, rows, SIDE // 2)
    free = session_of(folder, graph, ground.provider)
    expected = np.concatenate([image_of(graph, free.run(first_rows(feeds, 1, row))) for row in range(rows)])
    tell("batch", {"model": folder.parent.name, "rows": rows, "without_a_bound": _whole(free, graph, feeds)})
    del free
    bound, tried = _least_bound(ground, folder, graph, first_rows(feeds, 1))
    tell("bound_mb", round(bound / MB, 1))
    tell("too_little", tried)

    def make(on_cpu: bool) -> OrtSession:
        return session_of(folder, graph, "cpu" if on_cpu else ground.provider, bound)

    session = RecoveringSession(make(False), make, model=folder.parent.name)
    for turn in ("first", "again"):
        began_s = time.perf_counter()
        answer = image_of(graph, session.run(feeds))
        took_s = round(time.perf_counter() - began_s, 3)
        tell(turn, {"took_s": took_s, "provider": session.provider, **difference(answer, expected)})
        tell("after", {"max_rows": session.max_rows, "notes": list(session.notes)})
    tell("engine", asyncio.run(_bounded_engine(ground, folder, bound)))


def _least_bound(ground: Ground, folder: Path, graph: GraphSpec, row: Arrays) -> tuple[int, Found]:
    """The first bound under which a session opens and runs one row; and what the lower ones said."""
    bound = LEAST_BYTES
    tried: Found = {}
    while True:
        try:
            session_of(folder, graph, ground.provider, bound).run(row)
            return bound, tried
        except GanymedeError as error:
            if bound >= MOST_BYTES:
                raise
            tried[f"{bound / MB:.0f}"] = str(error)[:200]
        gc.collect()
        bound *= 2


def _whole(session: OrtSession, graph: GraphSpec, feeds: Arrays) -> str:
    """Whether the batch runs in one piece where memory has no bound."""
    try:
        return f"{len(image_of(graph, session.run(feeds)))} rows in one run"
    except GanymedeError as error:
        return str(error)[:300]


async def _bounded_engine(ground: Ground, folder: Path, bound: int) -> Found:
    """The engine with that bound from the load on, the widest batch being far beyond it."""
    with alone([folder]) as models:
        options = EngineOptions(models, providers=(ground.provider,), poll_models_s=None, device_memory_bytes=bound)
        async with Engine(options) as one:
            if one.refused:
                return {"refused": one.refused}
            (info,) = one.models()
            work = _promise if Task.GENERATE in info.manifest.tasks else _paint
            done = await work(one, info)
            (info,) = one.models()
            notes = list(info.provider_notes)
            return {"providers": info.providers, "plan": str(info.plan), "work": done, "notes": notes}


@contextmanager
def alone(folders: Sequence[Path]) -> Iterator[Path]:
    """A models' folder that holds these models and no other."""
    with tempfile.TemporaryDirectory() as made:
        for folder in folders:
            (Path(made) / folder.parent.name).symlink_to(folder.parent)
        yield Path(made)


# --- server: HTTP from end to end -------------------------


def server(ground: Ground, tell: Tell) -> None:
    """`python -m service bench` against a server on the device, then under the most clients beside others.

    The others: plans that are measured for longer and may be wider, further lanes, the CPU.
    """
    folders = ground.generators()
    names = [folder.parent.name for folder in folders][-2:]
    most, device = CLIENTS[-1:], ("--providers", ground.provider)
    wide = ("--profile-s", f"{ground.seconds / 5:g}", "--max-batch", "256")
    beside = {
        "wider plans": (*device, *wide),
        "three lanes": (*device, "--lanes", "3"),
        "the CPU": ("--providers", "cpu"),
    }
    with alone(folders) as models:
        for name in names:
            tell(name, guarded(partial(_served, ground, models, name, device, CLIENTS)))
        if ground.provider != "cpu":
            for title, flags in beside.items():
                tell(f"{names[0]}, {title}", guarded(partial(_served, ground, models, names[0], flags, most)))


def _served(ground: Ground, models: Path, name: str, flags: Sequence[str], clients: Sequence[int]) -> Found:
    port, began_s, seconds = free_port(), time.perf_counter(), ground.seconds / 16
    url = f"http://127.0.0.1:{port}"
    found: Found = {}
    with running(ganymede(models, port, *flags), {}, ROOT, port, []) as family:
        _wait(url)
        found["ready_s"] = round(time.perf_counter() - began_s, 2)
        told = json.loads(_page(f"{url}/models/{name}"))
        found |= {key: told[key] for key in ("providers", "provider_notes", "plans") if key in told}
        for count in clients:
            command = [sys.executable, "-m", "service", "bench", "--json", "--model", name, "--clients", str(count)]
            command += ["--url", url, "--seconds", str(seconds)]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + seconds)
            found[f"{count} clients"] = json.loads(ended.stdout) if ended.returncode == 0 else ended.stderr[-2000:]
        lines = _page(f"{url}/metrics").decode().splitlines()
        found["memory"] = [line for line in lines if line.startswith("ganymede_device_memory")]
        found["printed"] = family.printed(600)
    return found


def _wait(url: str) -> None:
    """Until the server is ready.

    Raises:
        RuntimeError: it is not within READY_S, or will never be; holds what `/readyz` says.
    """
    end_s, said = time.monotonic() + READY_S, "no answer"
    while time.monotonic() < end_s:
        try:
            _page(f"{url}/readyz")
            return
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            if json.loads(said)["state"] in ("failed", "no-models"):
                break
        except OSError:
            said = "no answer"
        time.sleep(0.05)
    raise RuntimeError(f"not ready: {said}")


def _page(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body
