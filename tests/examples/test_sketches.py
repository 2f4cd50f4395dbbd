"""The sketches that the README offers to `sketch-to-colour` look like what such a model was trained on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "sketches"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_sketch_is_thin_dark_lines_on_white_at_the_size_of_the_drawn_faces(number: int) -> None:
    with Image.open(FOLDER / f"{number}.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
        pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    assert (pixels[:4] == 255).all() and (pixels[:, :2] == 255).all()
    grey = pixels[..., 0]
    assert grey.min() < 40 and (grey == 255).mean() > 0.6
    assert 0.05 < (grey < 128).mean() < 0.25
