"""The example runs as its docstring says, on real tiny models, and shows what the engine draws."""

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from service.engine.engine import Engine, EngineOptions

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "contact_sheet.py"


def test_the_first_tile_is_seed_0_of_the_first_model(tiny_models, tmp_path):
    out = tmp_path / "sheet.png"
    subprocess.run([sys.executable, str(SCRIPT), str(tiny_models), str(out)], check=True, cwd=SCRIPT.parents[1])
    sheet = np.asarray(Image.open(out))

    async def first():
        async with Engine(EngineOptions(models=tiny_models, profile_s=0)) as engine:
            model = engine.models()[0]
            labels = 0 if model.manifest.generate.labels else None
            return (await engine.generate(model.manifest.ref, seeds=[0], labels=labels)).images[0], len(engine.models())

    image, models = asyncio.run(first())
    tile = sheet[:64, :64]
    expected = np.repeat(np.repeat(image, 64 // image.shape[0], 0), 64 // image.shape[1], 1)
    assert np.array_equal(tile, np.broadcast_to(expected, tile.shape))
    assert sheet.shape[0] > models * 4 * 64
