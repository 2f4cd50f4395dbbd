"""A user's own images: a folder, nested folders as classes, a zip of either, or IDX files.

Nothing here depends on file names but the classes: images are ordered, split and told apart by their pixels, so
renaming, moving or copying files changes neither the set nor which images are held out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.datasets import idx
from training.datasets.decode import Refused, decode
from training.datasets.errors import BadFiles, BrokenSet, NothingUsable
from training.datasets.files import Item, items
from training.datasets.report import DataReport
from training.datasets.resize import fit, fit_all

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """One usable image: the SHA-256 of its upright RGB pixels at full size, and its fitted form [H, W, C]."""

    name: str
    digest: str
    pixels: NDArray[np.uint8]
    label: str | None
    grey: bool
    repairs: tuple[str, ...]


def read_own(
    source: Path, size: int, channels: int, strict: bool, test_fraction: float
) -> tuple[Arrays, tuple[str, ...], DataReport]:
    """Read a user's images.

    Returns:
        The arrays of the prepared form, the class names (empty when unlabelled), and the report.

    Raises:
        NothingUsable, BrokenSet; BadFiles when `strict` and the report is not clean.
    """
    report = DataReport(str(source))
    images = _idx_path(source)
    if images is not None:
        arrays, classes = _read_idx(source, images, size, channels, test_fraction, report)
    else:
        arrays, classes = _read_images(source, size, channels, test_fraction, report)
    report.train, report.test, report.classes = len(arrays["train_images"]), len(arrays["test_images"]), classes
    report.used = report.train + report.test
    if strict and not report.clean:
        raise BadFiles(f"strict: not every file is usable as it is\n{report.text()}")
    return arrays, classes, report


def held_out(digests: Sequence[str], fraction: float) -> NDArray[np.bool_]:
    """Decide from content alone which images are held out.

    An image's digest is read as a number in [0, 1) and held out below `fraction`, so an image keeps its side when
    others come or go. Where that would leave one side empty, the nearest digest changes sides.
    """
    values = np.array([int(digest[:12], 16) / 16**12 for digest in digests])
    out = values < fraction
    if fraction > 0:
        if not out.any():
            out = values == values.min(initial=1.0)  # all of that digest: the inputs of one target stay together
        elif out.all():
            out = values != values.max(initial=0.0)
        if out.all():  # there is but one
            out[:] = False
    return out


def _read_images(
    source: Path, size: int, channels: int, test_fraction: float, report: DataReport
) -> tuple[Arrays, tuple[str, ...]]:
    with items(source, report) as found:
        samples = _read_samples(found, size, channels, report)
    if not samples:
        raise NothingUsable(f"{source} holds no usable image\n{report.text()}")
    samples.sort(key=lambda sample: sample.digest)
    for sample in sorted(samples, key=lambda sample: sample.name):
        for kind in sample.repairs:
            report.repair(kind, sample.name)
        if len({sample.grey for sample in samples}) == 2 and sample.grey == (channels == 3):
            report.repair("grey" if sample.grey else "colour", sample.name)
    classes = tuple(sorted({sample.label for sample in samples if sample.label is not None}))
    labels = np.array([classes.index(sample.label) for sample in samples], np.int64) if classes else None
    out = held_out([sample.digest for sample in samples], test_fraction)
    return _split(np.stack([sample.pixels for sample in samples]), labels, out), classes


def _read_samples(found: Sequence[Item], size: int, channels: int, report: DataReport) -> list[Sample]:
    """Decode every file; what cannot be used is named in the report."""
    samples: list[Sample] = []
    for item in tqdm(found, desc="read", unit="file", disable=None, leave=False):
        try:
            samples.append(_read_sample(item, size, channels))
        except Refused as refused:
            report.leave_out(refused.kind, item.name)
    return _without_duplicates(_labelled(samples, report), report)


def _read_sample(item: Item, size: int, channels: int) -> Sample:
    decoded = decode(item.read())
    image = decoded.image
    digest = hashlib.sha256(f"{image.width}x{image.height} ".encode() + image.tobytes()).hexdigest()
    off_size = image.width != image.height or image.width < size
    repairs = decoded.repairs + (("off-size",) if off_size else ())
    return Sample(item.name, digest, fit(image, size, channels), None, decoded.grey, repairs)


def _labelled(samples: Sequence[Sample], report: DataReport) -> list[Sample]:
    """Give every image the name of its first folder as a class; folders around everything do not count."""
    paths = [sample.name.split("/") for sample in samples]
    while paths and all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    if all(len(path) == 1 for path in paths):
        return list(samples)
    labelled = []
    for sample, path in zip(samples, paths, strict=True):
        if len(path) == 1:
            report.leave_out("no-class", sample.name)
        else:
            labelled.append(Sample(sample.name, sample.digest, sample.pixels, path[0], sample.grey, sample.repairs))
    return labelled


def _without_duplicates(samples: Sequence[Sample], report: DataReport) -> list[Sample]:
    """Keep one of each set of equal pixels, before and after fitting, so that no copy lies on both sides of the split.

    Of exact copies the first by name stays; of images that only become equal by fitting, the smallest digest, for
    the split goes by the digest and must not depend on names.
    """
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.digest in first:
            report.leave_out("duplicate", sample.name)
        else:
            first[sample.digest] = sample
    fitted: dict[bytes, Sample] = {}
    for sample in sorted(first.values(), key=lambda sample: sample.digest):
        if fitted.setdefault(sample.pixels.tobytes(), sample) is not sample:
            report.leave_out("duplicate", sample.name)
    return list(fitted.values())


def _split(images: NDArray[Any], labels: NDArray[Any] | None, out: NDArray[np.bool_]) -> Arrays:
    arrays: Arrays = {"train_images": images[~out], "test_images": images[out]}
    if labels is not None:
        arrays |= {"train_labels": labels[~out], "test_labels": labels[out]}
    return arrays


def _idx_path(source: Path) -> Path | None:
    """Return the IDX image file that `source` is or holds, or None."""
    if source.is_dir():
        return idx.find_parts(source).get("train-images-idx3-ubyte")
    return source if "idx" in source.name and source.suffix != ".zip" else None


def _read_idx(
    source: Path, images_path: Path, size: int, channels: int, test_fraction: float, report: DataReport
) -> tuple[Arrays, tuple[str, ...]]:
    """Read IDX files; a t10k part is the test part as it stands, else the images are split by content."""
    images, labels = _idx_pair(images_path)
    parts = idx.find_parts(source) if source.is_dir() else {}
    if "t10k-images-idx3-ubyte" in parts:
        test, test_labels = _idx_pair(parts["t10k-images-idx3-ubyte"])
        if (labels is None) != (test_labels is None):
            raise BrokenSet(f"{source}: only one of the train and t10k parts has labels")
        arrays: Arrays = {
            "train_images": _fit_idx(images, size, channels),
            "test_images": _fit_idx(test, size, channels),
        }
        if labels is not None and test_labels is not None:
            arrays |= {"train_labels": labels, "test_labels": test_labels}
    else:
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        order = sorted({digest: index for index, digest in reversed(list(enumerate(digests)))}.items())
        keep = np.array([index for _, index in order], np.int64)
        for index in sorted(set(range(len(images))) - set(keep.tolist())):
            report.leave_out("duplicate", f"image {index}")
        out = held_out([digest for digest, _ in order], test_fraction)
        arrays = _split(_fit_idx(images[keep], size, channels), None if labels is None else labels[keep], out)
    used = [arrays[key] for key in ("train_labels", "test_labels") if key in arrays and len(arrays[key])]
    return arrays, tuple(str(label) for label in range(1 + max(int(part.max()) for part in used))) if used else ()


def _idx_pair(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Read images [N, H, W] and, where the file beside it holds them, labels [N]."""
    images = _read_idx_file(path)
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise BrokenSet(f"{path}: IDX images must have three dimensions (N, height, width), not {images.shape}")
    if not len(images):
        raise NothingUsable(f"{path} holds no image")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    other = beside.with_name(beside.name.removesuffix(".gz")) if beside.suffix == ".gz" else Path(f"{beside}.gz")
    for candidate in (beside, other):
        if candidate != path and candidate.is_file():
            labels = _read_idx_file(candidate)
            if labels.shape != images.shape[:1]:
                raise BrokenSet(f"{candidate}: {labels.shape} labels for {len(images)} images")
            return images, labels.astype(np.int64)
    return images, None


def _read_idx_file(path: Path) -> NDArray[np.uint8]:
    try:
        return idx.decode(path.read_bytes(), str(path))
    except OSError as problem:
        raise BrokenSet(f"{path}: cannot be read ({problem})") from problem


def _fit_idx(images: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    if images.shape[1] == images.shape[2]:
        return fit_all(images[..., None].copy(), size, channels)
    return np.stack([fit(Image.fromarray(image), size, channels) for image in images])
