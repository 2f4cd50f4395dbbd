import io

import numpy as np
import pytest
from PIL import Image

from service.imaging.png import text_chunk
from service.imaging.png_stream import PngStream


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 1), (100, 33, 3), (64, 300, 4), (3, 1000, 3)])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_what_is_written_in_bands_is_read_back(shape, kind):
    rng = np.random.RandomState(sum(shape))
    picture = rng.randint(0, 256, shape).astype(np.uint8)
    if kind == "smooth":
        picture = (np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[:, :, None] + np.arange(shape[2])).astype(
            np.uint8
        )
    writer = PngStream(*shape, [text_chunk("ganymede", "{}")])
    data, top = writer.head(), 0
    while top < shape[0]:
        rows = int(rng.randint(1, 20))
        data += writer.rows(picture[top : top + rows])
        top += rows
    data += writer.end()
    read = Image.open(io.BytesIO(data))
    assert read.text == {"ganymede": "{}"}
    np.testing.assert_array_equal(np.asarray(read).reshape(shape), picture)


def test_rows_that_do_not_fit_or_are_missing_are_refused():
    writer = PngStream(4, 3, 3)
    with pytest.raises(ValueError, match="4 rows"):
        writer.rows(np.zeros((5, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        writer.rows(np.zeros((1, 3, 3), np.float32))
    writer.rows(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="1 rows are missing"):
        writer.end()
    with pytest.raises(ValueError, match="needs"):
        PngStream(4, 3, 2)
