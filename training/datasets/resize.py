"""Brings pixels to the size and the channels that a recipe asks for, with anti-aliasing."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm


def fit(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """Crop an image to its central square and resize it.

    Args:
        size: side of the result, px.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB.

    Returns:
        uint8 [size, size, channels].
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    image = image.convert("L" if channels == 1 else "RGB")
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(size, size, channels)


def fit_pair(
    one: Image.Image, two: Image.Image, one_size: int, two_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The central square of two pictures of the same thing, RGB [size, size, 3] each.

    It is cut from the first, at whole pixels, and from the second at the same place, whatever their ratio is: cut on
    their own, a picture and its enlargement would lie up to a pixel apart.
    """
    side = min(one.size)
    left, top = (one.width - side) // 2, (one.height - side) // 2
    across, down = two.width / one.width, two.height / one.height
    right, bottom = min((left + side) * across, two.width), min((top + side) * down, two.height)  # a bit may be lost
    box = (left * across, top * down, right, bottom)
    cut = two.convert("RGB")
    if all(edge == round(edge) for edge in box) and box[2] - box[0] == box[3] - box[1] == two_size:
        cut = cut.crop(box)
    else:
        cut = cut.resize((two_size, two_size), Image.Resampling.LANCZOS, box=box)
    return fit(one, one_size, 3), np.asarray(cut, np.uint8)


def fit_all(images: NDArray[Any], size: int, channels: int) -> NDArray[np.uint8]:
    """Resize uint8 [N, H, W, 1 or 3] to uint8 [N, size, size, channels]; returned as it is when nothing changes."""
    if images.shape[1:] == (size, size, channels):
        return images
    out = np.empty((len(images), size, size, channels), np.uint8)
    for index, array in enumerate(tqdm(images, desc=f"resize to {size}", unit="image", disable=None, leave=False)):
        out[index] = fit(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), size, channels)
    return out
