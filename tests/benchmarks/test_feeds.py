"""A bare loop draws what the server draws."""

import numpy as np
import onnxruntime
import pytest
from tinymodels import TINY_LABELS, write_tiny, write_tiny_style

from benchmarks.feeds import drawing
from service.engine.engine import Engine, EngineOptions
from service.package import read_package


@pytest.mark.parametrize(
    "write, more",
    [
        (write_tiny, {}),
        (write_tiny, {"labels": TINY_LABELS}),
        (write_tiny, {"labels": TINY_LABELS, "weighed": True}),
        (write_tiny_style, {}),
    ],
)
async def test_feeds_draw_the_seeds(tmp_path, write, more):
    folder = write(tmp_path, "tiny", **more)
    graph, feeds = drawing(folder, read_package(folder), range(3, 6))
    session = onnxruntime.InferenceSession(folder / graph.file, providers=["CPUExecutionProvider"])
    images = [session.run(None, {name: rows[i : i + 1] for name, rows in feeds.items()})[0][0] for i in range(3)]
    options = EngineOptions(models=tmp_path, providers=("cpu",), profile_s=0, poll_models_s=None)
    async with Engine(options) as engine:
        drawn = await engine.generate("tiny", seeds=[3, 4, 5])
    np.testing.assert_array_equal(drawn.images, np.stack(images))
