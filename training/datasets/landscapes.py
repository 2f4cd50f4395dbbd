"""Landscape photographs in the public domain, from the art of the game Endless Sky.

The package holds 273 photographs. 178 of them are taken, in the public domain by its copyright file (morguefile,
Unsplash, NASA, USGS). Left out: 92 under CC-BY-SA, which are `lava5` and those with a photographer in their file name,
and `loc0` to `loc2`, whose names say that they come from elsewhere than the file states for them.
"""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets.errors import ChecksumMismatch, FetchError
from training.datasets.own import held_out
from training.datasets.packages import Fetched, Package, read_members
from training.datasets.resize import fit

SIZE = 128  # px
PATCH = 240  # px: 1440 x 720 falls into 6 x 3 of them without remainder
PATCHES = 18
TEST_FRACTION = 0.1
PHOTOS = {  # scene: how many photographs, numbered from 0
    "badlands": 9, "beach": 7, "canyon": 10, "city": 13, "desert": 8, "dune": 6, "fields": 10, "fog": 8, "forest": 6,
    "hills": 5, "lava": 7, "mountain": 10, "nasa": 10, "sea": 10, "sky": 10, "snow": 11, "space": 8, "station": 5,
    "valley": 10, "water": 10,
}  # fmt: skip
NAMES = {f"{scene}{i}": scene for scene, count in PHOTOS.items() for i in range(count)}
NAMES |= {f"canyon0{i}": "canyon" for i in range(1, 6)} | {"earthrise": "space"}
del NAMES["lava5"]
CLASSES = tuple(sorted(PHOTOS))

PACKAGE = Package(
    "apt",
    "endless-sky-high-dpi",
    "0.9.8-1",
    "44170b9aad0ecc8f5a39d8c6b1af233100cfc6bc0bab2352d62fb014b5099164",
    135_643_966,
    exact=False,
)
PAYLOAD = {
    "images/land": "a3bc57ec72eb06a04dac0d614c2a4a6b7eec159d8364687aea7162522715945b"
}  # over the SHA-256 of the 178 files, in the order of their names


def build(fetched: Fetched) -> dict[str, NDArray[Any]]:
    """Cut three overlapping squares from every photograph; all three go to the same side of the split.

    Returns:
        The arrays of the prepared form, images uint8 [N, 128, 128, 3], labels by scene.
    """
    return _cut(fetched, squares, 3)


def build_patches(fetched: Fetched) -> dict[str, NDArray[Any]]:
    """Cut every photograph into its 18 patches, at full resolution; all go to the same side of the split.

    Returns:
        The arrays of the prepared form, images uint8 [N, 240, 240, 3], labels by scene.
    """
    return _cut(fetched, patches, PATCHES)


def _cut(fetched: Fetched, cut: Callable[[bytes], NDArray[np.uint8]], each: int) -> dict[str, NDArray[Any]]:
    """The arrays of the prepared form: `cut` makes `each` squares of a photograph's bytes."""
    paths = {f"images/land/{name}@2x.jpg": scene for name, scene in sorted(NAMES.items())}
    members = read_members(fetched.path, list(paths))
    missing = sorted(set(paths) - set(members))
    if missing:
        raise FetchError(f"{fetched.path.name} holds no {missing[0]} ({len(missing)} of {len(paths)} are missing)")
    digests = [hashlib.sha256(members[path]).hexdigest() for path in paths]
    found = hashlib.sha256("".join(digests).encode()).hexdigest()
    if found != PAYLOAD["images/land"]:
        raise ChecksumMismatch(
            f"photographs in {fetched.path.name}: SHA-256 is {found}, pinned is {PAYLOAD['images/land']}"
        )
    out = held_out(digests, TEST_FRACTION)
    arrays: dict[str, NDArray[Any]] = {}
    for split, side in (("train", False), ("test", True)):
        chosen = [path for path, held in zip(paths, out, strict=True) if held == side]
        arrays[f"{split}_images"] = np.concatenate([cut(members[path]) for path in chosen])
        labels = np.array([CLASSES.index(paths[path]) for path in chosen], np.int64)
        arrays[f"{split}_labels"] = np.repeat(labels, each)
    return arrays


def squares(raw: bytes) -> NDArray[np.uint8]:
    """Return the left, middle and right square of a wide photograph, uint8 [3, 128, 128, 3]."""
    image = Image.open(io.BytesIO(raw), formats=["JPEG"]).convert("RGB")
    side = image.height
    lefts = (0, (image.width - side) // 2, image.width - side)
    return np.stack([fit(image.crop((left, 0, left + side, side)), SIZE, 3) for left in lefts])


def patches(raw: bytes) -> NDArray[np.uint8]:
    """Return a photograph's patches, row by row, uint8 [18, 240, 240, 3]; other sizes are brought to 1440 x 720."""
    image = Image.open(io.BytesIO(raw), formats=["JPEG"]).convert("RGB")
    if image.size != (6 * PATCH, 3 * PATCH):
        image = image.resize((6 * PATCH, 3 * PATCH), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, np.uint8).reshape(3, PATCH, 6, PATCH, 3)
    return np.ascontiguousarray(pixels.swapaxes(1, 2)).reshape(PATCHES, PATCH, PATCH, 3)
