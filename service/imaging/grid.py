"""Several pictures of one size as one."""

import math

import numpy as np
import numpy.typing as npt

GAP_PX = 2
"""White between neighbours, so that pictures on white and on black both end visibly."""


def compose_grid(images: npt.NDArray[np.uint8], columns: int | None = None) -> npt.NDArray[np.uint8]:
    """Lay pictures out in rows, first to last, on white (transparent white for RGBA).

    Args:
        images: uint8 [count, height, width, channels], count at least 1.
        columns: pictures in a row; as square as possible by default.

    Returns:
        uint8 [rows * height + gaps, columns * width + gaps, channels].
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.full(
        (rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, channels), 255, dtype=np.uint8
    )
    if channels == 4:
        canvas[:, :, 3] = 0
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP_PX), (index % columns) * (width + GAP_PX)
        canvas[top : top + height, left : left + width] = image
    return canvas
