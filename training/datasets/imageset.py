"""ImageSet, and `load`: from a name or a path to arrays in memory."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.datasets import prepared
from training.datasets.errors import DataError, UnknownSource
from training.datasets.own import read_own
from training.datasets.public import PUBLIC
from training.datasets.report import DataReport
from training.datasets.resize import fit_all

ROOT = Path("data")
SIDE_MOST = 4096
"""Side of the images, px: beyond it one image alone takes 50 MB, and a set of them no machine's memory."""
_GLANCE = 16
"""Side at which it is told whether images are grey, px."""


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, split for good into training and held-out ones.

    Attributes:
        train: uint8 [N, H, W, C], C is 1 or 3.
        test: uint8 [M, H, W, C], held out: never trained on.
        train_labels: int64 [N], indices into `classes`; None when unlabelled.
        test_labels: int64 [M]; None when unlabelled.
        classes: names by label; empty when unlabelled.
        fingerprint: SHA-256 over these very arrays.
    """

    name: str
    train: NDArray[np.uint8]
    test: NDArray[np.uint8]
    train_labels: NDArray[np.int64] | None
    test_labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    license: str
    source: str
    fingerprint: str


def load(
    source: str,
    *,
    size: int,
    channels: int,
    root: Path = ROOT,
    strict: bool = False,
    test_fraction: float = 0.1,
    report: Callable[[DataReport], None] | None = None,
) -> ImageSet:
    """Load a prepared set by name, or a user's own images by path.

    Args:
        source: the name of a set under `root`, or the path of a folder, a zip or IDX files.
        size: side of the images, px; other sizes are resized with anti-aliasing.
        channels: 1 for grey, 3 for RGB.
        root: the data folder.
        strict: a file that needs a repair or cannot be used is an error.
        test_fraction: share of a user's images that is held out, by content; 0 <= test_fraction < 1. Sets that
            come split keep their split.
        report: called with what was used, repaired and left out.

    Raises:
        DataError: see training.datasets.errors.
    """
    if not 1 <= size <= SIDE_MOST or channels not in (1, 3) or not 0 <= test_fraction < 1:
        raise DataError(
            f"size must be 1 to {SIDE_MOST}, channels 1 or 3, test_fraction in [0, 1); "
            f"got size {size}, channels {channels}, test_fraction {test_fraction}"
        )
    for folder in (root / source, Path(source)):
        if source and prepared.is_prepared(folder):
            images, made = _load_prepared(folder, size, channels)
            break
    else:
        images, made = _load_own(source, size, channels, strict, test_fraction)
    if report is not None:
        report(made)
    return images


def channels_of(source: str, root: Path = ROOT) -> int:
    """1 for a set of grey images, 3 where one of them is in colour. A user's own are read for it, small.

    Raises:
        DataError: see training.datasets.errors.
    """
    for folder in (root / source, Path(source)):
        if source and prepared.is_prepared(folder):
            return int(prepared.read_meta(folder)["channels"])
    images = load(source, size=_GLANCE, channels=3, root=root)
    return 3 if any((part != part[..., :1]).any() for part in (images.train, images.test)) else 1


def _load_prepared(folder: Path, size: int, channels: int) -> tuple[ImageSet, DataReport]:
    arrays, meta = prepared.read(folder)
    mark = str(meta["fingerprint"])
    if arrays["train_images"].shape[1:] != (size, size, channels):
        arrays, mark = _resized(folder, arrays, mark, size, channels)
    images = _image_set(arrays, str(meta["name"]), tuple(meta["classes"]), meta["license"], meta["source"], mark)
    counts = len(images.train), len(images.test)
    return images, DataReport(images.name, sum(counts), *counts, classes=images.classes)


def _resized(
    folder: Path, arrays: dict[str, NDArray[Any]], mark: str, size: int, channels: int
) -> tuple[dict[str, NDArray[Any]], str]:
    """Resize a prepared set's images, or take them from the cache beside it when they were made from the same set."""
    path = folder / "cache" / f"{size}x{channels}.npz"
    labels = {name: array for name, array in arrays.items() if name.endswith("labels")}
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as cache:
                if str(cache["made_from"]) == mark:
                    images = {name: cache[name] for name in ("train_images", "test_images")}
                    return {**images, **labels}, str(cache["fingerprint"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink()  # a cache is only ever worth its reading: made again below
    images = {name: fit_all(arrays[name], size, channels) for name in ("train_images", "test_images")}
    own_mark = prepared.fingerprint({**images, **labels})
    prepared.write_npz(path, {**images, "made_from": np.array(mark), "fingerprint": np.array(own_mark)})
    return {**images, **labels}, own_mark


def _load_own(source: str, size: int, channels: int, strict: bool, test_fraction: float) -> tuple[ImageSet, DataReport]:
    path = Path(source)
    if not source or not path.exists():
        if source in PUBLIC:
            raise UnknownSource(f"{source} is not prepared yet: `python -m training data {source}` fetches it")
        raise UnknownSource(
            f"{source!r} is neither a prepared set nor an existing path; public sets: {', '.join(PUBLIC)}"
        )
    arrays, classes, report = read_own(path, size, channels, strict, test_fraction)
    name = path.resolve().name
    images = _image_set(arrays, name, classes, "unknown", f"own images: {name}", prepared.fingerprint(arrays))
    return images, report


def _image_set(
    arrays: dict[str, NDArray[Any]], name: str, classes: tuple[str, ...], license: str, source: str, mark: str
) -> ImageSet:
    return ImageSet(
        name=name,
        train=arrays["train_images"],
        test=arrays["test_images"],
        train_labels=arrays.get("train_labels"),
        test_labels=arrays.get("test_labels"),
        classes=classes,
        license=license,
        source=source,
        fingerprint=mark,
    )
