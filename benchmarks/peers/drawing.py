"""What every peer draws with: ONNX Runtime and Pillow at level 1, as its users would write it; nothing of Ganymede.

The peers differ in how a request reaches `Generators.draw` and in nothing else, so the race compares servers.
"""

import hashlib
import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

MODELS = Path(os.environ.get("PEER_MODELS", "models"))
PORT = int(os.environ.get("PEER_PORT", "8000"))
CORES = len(os.sched_getaffinity(0))
BATCH = int(os.environ.get("PEER_BATCH", "1"))
"""Most requests drawn in one run; 1 turns the peer's dynamic batching off."""


def draws(manifest: Mapping[str, Any]) -> bool:
    """Whether the model draws images from latents, by one graph: what takes a picture is another race."""
    return "generate" in manifest["tasks"] and len(manifest["graphs"]) == 1


class Generators:
    """The newest version of every model of a folder that draws images from latents."""

    def __init__(self, folder: Path) -> None:
        versions: dict[str, Path] = {}
        for path in sorted(folder.glob("*/*/manifest.json"), key=lambda found: int(found.parent.name)):
            if draws(json.loads(path.read_text())):
                versions[path.parent.parent.name] = path.parent
        self._models = {name: _Generator(path) for name, path in versions.items()}

    def draw(self, asked: Sequence[tuple[str, int]]) -> list[bytes]:
        """PNG files for pairs of model and seed, in their order; the rows of one model share one run.

        Raises:
            KeyError: no such model.
        """
        rows: dict[str, list[int]] = {}
        for index, (model, _) in enumerate(asked):
            rows.setdefault(model, []).append(index)
        files = [b""] * len(asked)
        for model, places in rows.items():
            images = self._models[model].run([asked[place][1] for place in places])
            for place, image in zip(places, images, strict=True):
                files[place] = encode(image)
        return files

    def names(self) -> list[str]:
        """The models' names."""
        return sorted(self._models)


class _Generator:
    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (graph,) = manifest["graphs"].values()
        options = onnxruntime.SessionOptions()
        # One process per core does the parallel work: further threads in each would only fight over the cores.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # A spinning thread burns the core that the other processes need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            folder / graph["file"], options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [tensor["name"] for tensor in graph["inputs"]]
        self._latent_dim = manifest["generate"]["latent_dim"]
        self._classes = len(manifest["generate"]["labels"] or ())
        # A label is an index, or a weight for each class.
        weighed = self._classes and graph["inputs"][1]["dtype"] == "float32"
        self._rows = np.eye(self._classes, dtype=np.float32) if weighed else np.arange(self._classes, dtype=np.int64)
        self._local = threading.local()

    def run(self, seeds: Sequence[int]) -> np.ndarray:
        """Images [N, H, W, C] uint8: z is `RandomState(seed).randn`, the class follows the seed."""
        feeds = {self._inputs[0]: np.stack([self._latent(seed) for seed in seeds])}
        if self._classes:
            feeds[self._inputs[1]] = self._rows[[_label(seed, self._classes) for seed in seeds]]
        return self._session.run(None, feeds)[0]

    def _latent(self, seed: int) -> np.ndarray:
        # Seeding one stream anew gives the numbers of `RandomState(seed)` in a fortieth of the time of making one.
        if not hasattr(self._local, "stream"):
            self._local.stream = np.random.RandomState(0)
        self._local.stream.seed(seed)
        return self._local.stream.randn(self._latent_dim).astype(np.float32)


def encode(image: np.ndarray) -> bytes:
    """A PNG file of an image [H, W, C] uint8: level 1 is the setting of image servers that look at their encoder."""
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _label(seed: int, classes: int) -> int:
    """The class that the service's documentation promises for a seed, so that all servers draw the same picture."""
    return int.from_bytes(hashlib.sha256(b"label:%d" % seed).digest()[:8], "big") % classes
