"""Drawn sets: a style composes a picture from artists' parts, resvg rasterises it, node runs both.

Seeds are fixed and every picture depends on its own seed alone, so a set is the same on every machine.
Rendering works in shards that are renamed into place: an interrupted run goes on where it stopped.
"""

import contextlib
import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.datasets.errors import ClientFailed, ClientMissing
from training.datasets.packages import Fetched, Package, unpack_npm

SIZE = 64  # px
SHARD = 250  # pictures: a few seconds of work, so an interruption costs little
PROCESSES = 2
TEST_SEEDS = 1_000_000  # train seeds count from 0, test seeds from here
OVERSAMPLE = 3  # resvg anti-aliases already; three by three more makes thin lines stable at 64 px
BACKGROUND = "#eef1f4"  # one for all drawn sets, so that a translation between them has nothing to do there
RENDER = Path(__file__).with_name("drawn_render.mjs")
RESVG = Package(
    "npm", "@resvg/resvg-wasm", "2.6.2", "ff51acbb5ee0074601b75c3bea9226a18d346752af787f6d2d3adcdd98493d71", 967_004
)


@dataclass(frozen=True)
class Style:
    """One way of drawing.

    Attributes:
        module: the JavaScript module that composes one picture from a seed; its `load` is handed `order`.
        order: what the module is told: crop of the canvas, colours, shares.
        packages: what it needs, RESVG among them.
    """

    module: Path
    order: Mapping[str, Any]
    packages: tuple[Package, ...]


@dataclass(frozen=True)
class Shard:
    """A range of pictures of one split; `target` is its path without suffix."""

    target: Path
    seeds: range

    @property
    def done(self) -> bool:
        """Whether the shard was rendered; the pixels are renamed into place after the attributes are written."""
        return self.target.with_suffix(".rgb").is_file()


def build(
    style: Style, fetched: Sequence[Fetched], work: Path, train: int, test: int, processes: int = PROCESSES
) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Render `train` and `test` pictures.

    Args:
        fetched: the style's packages.
        work: folder for unpacked packages and finished shards; what it holds from an earlier run is used.

    Returns:
        train_images and test_images, uint8 [N, 64, 64, 3], and attributes.jsonl: one line per picture, train before
        test, each in the order of its array.

    Raises:
        ClientMissing: there is no node.
        ClientFailed: drawing failed; node's last words are in the message.
    """
    order = {"size": SIZE, "oversample": OVERSAMPLE, "background": BACKGROUND, **style.order}
    key = hashlib.sha256(json.dumps([order, [item.sha256 for item in fetched]]).encode())
    key.update(RENDER.read_bytes() + style.module.read_bytes())
    folder = work / key.hexdigest()[:16]  # another drawing program or package begins afresh
    folder.mkdir(parents=True, exist_ok=True)
    order |= {"style": str(style.module.resolve()), "modules": str(_install(fetched, folder))}
    shards = {
        split: [
            Shard(folder / f"{split}-{start:06d}-{stop:06d}", range(first + start, first + stop))
            for start in range(0, count, SHARD)
            for stop in [min(start + SHARD, count)]
        ]
        for split, first, count in (("train", 0, train), ("test", TEST_SEEDS, test))
    }
    _render([shard for part in shards.values() for shard in part], order, processes)
    arrays: dict[str, NDArray[Any]] = {}
    lines: list[str] = []
    for split, part in shards.items():
        raw = b"".join(shard.target.with_suffix(".rgb").read_bytes() for shard in part)
        arrays[f"{split}_images"] = np.frombuffer(raw, np.uint8).reshape(-1, SIZE, SIZE, 3)
        texts = [line for shard in part for line in shard.target.with_suffix(".jsonl").read_text().splitlines()]
        lines += [json.dumps({"split": split, "index": i, **json.loads(text)}) for i, text in enumerate(texts)]
    return arrays, ("\n".join(lines) + "\n").encode()


def _install(fetched: Sequence[Fetched], folder: Path) -> Path:
    """Unpack the npm packages side by side, as node looks for them; no install script runs."""
    modules = folder / "node_modules"
    for item in fetched:
        unpack_npm(item.path, modules / item.package.name)
    return modules.resolve()


def _render(shards: Sequence[Shard], order: Mapping[str, Any], processes: int) -> None:
    """Render the shards that are not done, in several node processes, with one progress bar."""
    left = [shard for shard in shards if not shard.done]
    if not left:
        return
    if shutil.which("node") is None:
        raise ClientMissing("the pictures are drawn by a program that needs `node` (Node.js 18 or later): install it")
    total = sum(len(shard.seeds) for shard in shards)
    drawn = total - sum(len(shard.seeds) for shard in left)
    with tqdm(total=total, initial=drawn, unit="picture", desc="drawing") as bar:
        threads: list[threading.Thread] = []
        running = [_start(left[part::processes], order) for part in range(min(processes, len(left)))]
        try:
            threads = [threading.Thread(target=_follow, args=(process, bar), daemon=True) for process in running]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for process in running:
                if process.wait() != 0:
                    words = process.stderr.read() if process.stderr else ""
                    raise ClientFailed(f"drawing failed: {words.strip()[-600:]}")
        finally:
            for process in running:
                process.kill()
                process.wait()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            for process in running:
                _close(process)


def _start(shards: Sequence[Shard], order: Mapping[str, Any]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    process = subprocess.Popen(["node", str(RENDER)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    work = [{"target": str(shard.target.resolve()), "seeds": list(shard.seeds)} for shard in shards]
    with contextlib.suppress(BrokenPipeError):  # it died at once: its exit status and last words are reported later
        process.stdin.write(json.dumps({**order, "shards": work}))
        process.stdin.close()
    return process


def _close(process: "subprocess.Popen[str]") -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def _follow(process: "subprocess.Popen[str]", bar: "tqdm[Any]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        bar.update(int(line))
