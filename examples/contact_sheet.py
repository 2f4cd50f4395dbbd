"""Draw one picture with samples of every model, through the engine and without HTTP.

    python examples/contact_sheet.py models sheet.png

The README's picture was made so from a folder of digits-28, faces-32 and fashion-28 alone.

Seeds count from 0, none left out; a conditional model has one column per class.
"""

import argparse
import asyncio
from pathlib import Path

import numpy as np
from PIL import Image

from service.engine.engine import Engine, EngineOptions
from service.manifest import Task

ROWS, COLUMNS = 4, 10
TILE_PX, GAP_PX = 64, 4


async def contact_sheet(models: Path) -> Image.Image:
    """ROWS x COLUMNS samples of each model that generates, one block below the other, in the models' order by name."""
    blocks = []
    async with Engine(EngineOptions(models=models, profile_s=0)) as engine:
        for model in engine.models():
            if Task.GENERATE not in model.manifest.tasks or model.manifest.generate is None:
                continue
            classes = model.manifest.generate.labels
            labels = [column % len(classes) for _ in range(ROWS) for column in range(COLUMNS)] if classes else None
            drawn = await engine.generate(model.manifest.ref, seeds=range(ROWS * COLUMNS), labels=labels)
            blocks.append([_tile(image) for image in drawn.images])
    return _sheet(blocks)


def _tile(image: np.ndarray) -> Image.Image:
    """[H, W, C] uint8 as RGB, TILE_PX wide, its pixels not smoothed."""
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).convert("RGB")
    return picture.resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST)


def _sheet(blocks: list[list[Image.Image]]) -> Image.Image:
    step = TILE_PX + GAP_PX
    height = len(blocks) * ROWS * step + (len(blocks) - 1) * 2 * GAP_PX
    sheet = Image.new("RGB", (COLUMNS * step - GAP_PX, max(height - GAP_PX, 1)), "white")
    for block, tiles in enumerate(blocks):
        for index, tile in enumerate(tiles):
            row, column = divmod(index, COLUMNS)
            sheet.paste(tile, (column * step, (block * ROWS + row) * step + block * 2 * GAP_PX))
    return sheet


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description="Samples of every model in one picture.")
    parser.add_argument("models", type=Path, help="the models' folder")
    parser.add_argument("out", type=Path, help="the picture to write, e.g. samples.png")
    arguments = parser.parse_args()
    asyncio.run(contact_sheet(arguments.models)).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
