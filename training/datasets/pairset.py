"""PairSet, and `load_pairs`: from what the command line names to pairs to train on and pairs held out."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets import prepared
from training.datasets.decode import Refused, decode
from training.datasets.degrade import degradation
from training.datasets.errors import BadFiles, DataError, NothingUsable, UnknownSource
from training.datasets.files import Item, items
from training.datasets.imageset import ROOT, load
from training.datasets.own import held_out
from training.datasets.pairs import Cut, DegradedPairs, Pairs, StoredPairs, UnpairedSets
from training.datasets.report import PAIR_FOLDERS, DataReport
from training.datasets.resize import fit_pair

Images = NDArray[np.uint8]
Pairing = Literal["none", "paired", "unpaired"]


@dataclass(frozen=True)
class PairSet:
    """Pairs to train on and pairs held out for good.

    Attributes:
        train: random crops.
        test: whole images, undamaged or damaged always in the same way.
        unseen: the held-out images under the degradation's test-only generator; None where it has none.
        unpaired: sources and targets have nothing to do with each other.
    """

    name: str
    train: Pairs
    test: Pairs
    unseen: Pairs | None
    unpaired: bool
    license: str
    source: str
    fingerprint: str


@dataclass(frozen=True)
class PairOptions:
    """What the recipe says about the data.

    Attributes:
        size: side of the target's training crops, px.
        load_size: side to which images are brought first; 0 is a prepared set's own, else `size`.
        scale: target side over source side.
        degradation: makes the sources from clean images; "" reads pairs.
        mirror, rotate, shrink: see Cut.
        seed: of crops and damage.
    """

    size: int
    load_size: int = 0
    scale: int = 1
    degradation: str = ""
    mirror: bool = False
    rotate: bool = False
    shrink: float = 1.0
    seed: int = 0


def load_pairs(
    source: str, options: PairOptions, pairing: Pairing, *, root: Path = ROOT, strict: bool = False,
    test_fraction: float = 0.1, report: Callable[[DataReport], None] | None = None,
) -> PairSet:  # fmt: skip
    """Pairs for an image-to-image family.

    Args:
        source: with a degradation the name or path of clean images; else a folder (or zip) of two folders `input` and
            `target` (or `a` and `b`) with files of the same names, or of pictures with input and target side by side;
            unpaired: two names or paths with a comma between, or one folder of two folders.
        pairing: what the family trains on; not `none`.
        root, strict, test_fraction, report: as `load`.

    Raises:
        DataError: see training.datasets.errors.
    """
    if pairing == "unpaired":
        return _unpaired(source, options, root, strict, test_fraction, report)
    if options.degradation:
        return _degraded(source, options, root, strict, test_fraction, report)
    return _stored(Path(source), options, strict, test_fraction, report)


def _degraded(
    source: str, options: PairOptions, root: Path, strict: bool, test_fraction: float,
    report: Callable[[DataReport], None] | None,
) -> PairSet:  # fmt: skip
    kind = degradation(options.degradation)
    if kind.test_only:
        raise DataError(f"degradation {kind.name!r} is kept for tests: training on it would make them worthless")
    if kind.scales != (options.scale > 1):
        right = "needs a scale of 2 or more" if kind.scales else "goes with scale 1"
        raise DataError(f"degradation {kind.name!r} {right}, scale is {options.scale}")
    side = _side(source, options, root)
    images = load(
        source, size=side, channels=3, root=root, strict=strict, test_fraction=test_fraction, report=report
    )  # fmt: skip
    test = DegradedPairs(images.test, kind, Cut(0), scale=options.scale, seed=options.seed)
    unseen = None
    if kind.unseen:
        unseen = DegradedPairs(images.test, degradation(kind.unseen), Cut(0), scale=options.scale, seed=options.seed)
    train = DegradedPairs(
        images.train,
        kind,
        Cut(options.size, options.mirror, options.shrink, options.rotate),
        scale=options.scale,
        seed=options.seed,
    )
    return PairSet(
        f"{images.name}, {kind.name}", train, test, unseen, False, images.license, images.source, images.fingerprint
    )


def _side(source: str, options: PairOptions, root: Path) -> int:
    """Side to which images are brought: as asked, or a prepared set's own."""
    if options.load_size:
        return options.load_size
    for folder in (root / source, Path(source)):
        if source and prepared.is_prepared(folder):
            return max(int(prepared.read_meta(folder)["size"]), options.size)
    return options.size


def _unpaired(
    source: str, options: PairOptions, root: Path, strict: bool, test_fraction: float,
    report: Callable[[DataReport], None] | None,
) -> PairSet:  # fmt: skip
    parts = [part.strip() for part in source.split(",")]
    if len(parts) == 1 and Path(source).is_dir():
        folders = sorted(path for path in Path(source).iterdir() if path.is_dir() and not path.name.startswith("."))
        parts = [str(folder) for folder in folders]
    if len(parts) != 2 or not all(parts):
        raise UnknownSource(f"{source!r}: want two sets with a comma between, or a folder of exactly two folders")
    a, b = (
        load(part, size=_side(part, options, root), channels=3, root=root, strict=strict,
             test_fraction=test_fraction, report=report)
        for part in parts
    )  # fmt: skip
    cut = Cut(options.size, options.mirror, options.shrink, options.rotate)
    mark = hashlib.sha256(f"{a.fingerprint} {b.fingerprint}".encode()).hexdigest()
    terms = a.license if a.license == b.license else f"{a.license}; {b.license}"
    return PairSet(
        f"{a.name} and {b.name}", UnpairedSets(a.train, b.train, cut, seed=options.seed),
        UnpairedSets(a.test, b.test, Cut(0), seed=options.seed), None, True, terms, f"{a.source}; {b.source}", mark,
    )  # fmt: skip


def _stored(
    source: Path, options: PairOptions, strict: bool, test_fraction: float,
    report: Callable[[DataReport], None] | None,
) -> PairSet:  # fmt: skip
    if not source.exists():
        raise UnknownSource(f"{source}: no such folder or zip of pairs; or name a degradation that makes them on line")
    found = DataReport(str(source))
    side = options.load_size or options.size
    if side % options.scale:
        raise DataError(f"load_size is {side}, must be a multiple of the scale {options.scale}")
    with items(source, found) as files:
        sources, targets, digests, originals = _read_pairs(files, side // options.scale, side, found)
    if not digests:
        raise NothingUsable(f"{source} holds no usable pair\n{found.text()}")
    out = held_out(originals, test_fraction)
    found.train, found.test, found.used = int((~out).sum()), int(out.sum()), len(digests)
    if strict and not found.clean:
        raise BadFiles(f"strict: not every file is usable as it is\n{found.text()}")
    if report is not None:
        report(found)
    cut = Cut(options.size, options.mirror, options.shrink, options.rotate)
    test = StoredPairs(sources[out], targets[out], Cut(0), seed=options.seed) if out.any() else None
    train = StoredPairs(sources[~out], targets[~out], cut, seed=options.seed)
    name, mark = source.resolve().name, hashlib.sha256("".join(digests).encode()).hexdigest()
    return PairSet(name, train, test or train, None, False, "unknown", f"own pairs: {name}", mark)


def _read_pairs(
    files: list[Item], source_side: int, target_side: int, report: DataReport
) -> tuple[Images, Images, list[str], list[str]]:
    """Sources, targets, their digests, and those of the targets as they came, in the order of the digests.

    Names decide what belongs together, nothing else. By the target as it came a pair is held out or not: at whatever
    size it is trained, and with all inputs of that target.
    """
    pairs: dict[str, tuple[Images, Images]] = {}
    originals: dict[str, str] = {}
    for name, source, target in _matched(files, report):
        try:
            one, two = _halves(source) if target is None else (_image(source), _image(target))
        except Refused as refused:
            report.leave_out(refused.kind, name)
            continue
        pair = fit_pair(one, two, source_side, target_side)
        digest = hashlib.sha256(b"".join(part.tobytes() for part in pair)).hexdigest()
        if digest in pairs:
            report.leave_out("duplicate", name)
        pairs.setdefault(digest, pair)
        originals.setdefault(digest, hashlib.sha256(f"{two.size} ".encode() + two.tobytes()).hexdigest())
    digests = sorted(pairs)
    if not digests:
        return np.empty(0, np.uint8), np.empty(0, np.uint8), [], []
    sources, targets = (np.stack([pairs[digest][side] for digest in digests]) for side in (0, 1))
    return sources, targets, digests, [originals[digest] for digest in digests]


def _matched(files: list[Item], report: DataReport) -> list[tuple[str, Item, Item | None]]:
    """(name, source, target); the target is None for a picture that holds both side by side."""
    split = [item.name.split("/") for item in files]
    for left, right in PAIR_FOLDERS:
        # A single folder around everything does not count.
        sides: dict[str, dict[str, Item]] = {left: {}, right: {}}
        for item, parts in zip(files, split, strict=True):
            for depth in range(min(2, len(parts) - 1)):
                if parts[depth] in sides:
                    stem = "/".join(parts[depth + 1 :]).rsplit(".", 1)[0]
                    sides[parts[depth]][stem] = item
                    break
        if sides[left] and sides[right]:
            for stem in sorted(sides[left].keys() ^ sides[right].keys()):
                report.leave_out("no-counterpart", (sides[left].get(stem) or sides[right][stem]).name)
            both = sorted(sides[left].keys() & sides[right].keys())
            return [(stem, sides[left][stem], sides[right][stem]) for stem in both]
    return [(item.name, item, None) for item in files]


def _image(item: Item) -> Image.Image:
    return decode(item.read()).image


def _halves(source: Item) -> tuple[Image.Image, Image.Image]:
    """The two halves of a picture that is twice as wide as it is high, input left.

    Raises:
        Refused: it has another shape.
    """
    image = _image(source)
    if image.width != 2 * image.height:
        raise Refused("not-side-by-side")
    side = image.height
    return image.crop((0, 0, side, side)), image.crop((side, 0, 2 * side, side))
