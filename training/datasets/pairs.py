"""Pairs of images for image-to-image training: damaged on line, read from folders, or drawn from two unpaired sets.

What a pair looks like depends on the seed, the image's index and its turn alone, so runs resume bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.datasets.degrade import Degradation
from training.datasets.degrade.resolution import resized
from training.datasets.errors import DataError

Images = NDArray[np.uint8]  # [N, H, W, C]
Indices = NDArray[np.int64]


class Pairs(Protocol):
    """What the trainer draws from."""

    def __len__(self) -> int: ...

    def draw(self, indices: Indices, turns: Indices) -> tuple[Images, Images]:
        """Sources [N, h, w, c] and targets [N, H, W, 3] of these images, uint8.

        Args:
            indices: [N], below `len`.
            turns: [N], how many images were shown before each: another turn is another crop, another damage.
        """
        ...


@dataclass(frozen=True)
class Cut:
    """Random crops, the same for both sides of a pair.

    Attributes:
        size: side of the target's crop, px; 0 takes the whole image.
        mirror: flip left to right in half of the cases.
        rotate: turn by a random number of quarter turns: for pictures of which any side may be up.
        shrink: at most this factor smaller first, at random: 2 shows things at half their size, too. Clean images of
            unlike sharpness come out of one set so.
    """

    size: int
    mirror: bool = False
    shrink: float = 1.0
    rotate: bool = False

    def __call__(self, images: Sequence[Images], random: np.random.Generator, scale: int = 1) -> list[Images]:
        """Crops of images [H, W, C]; the first may be `scale` times smaller than the others, then cut on its grid."""
        height, width = images[-1].shape[:2]
        images = list(images)
        if self.size:
            side = self.size
            if self.shrink > 1 and scale == 1:
                side = int(random.integers(side, max(min(int(side * self.shrink), height, width), side) + 1))
            y = int(random.integers(0, (height - side) // scale + 1)) * scale
            x = int(random.integers(0, (width - side) // scale + 1)) * scale
            factors = [scale if image.shape[0] != height else 1 for image in images]
            images = [
                image[y // f : (y + side) // f, x // f : (x + side) // f]
                for image, f in zip(images, factors, strict=True)
            ]
            if side != self.size:
                images = [resized(np.ascontiguousarray(image), self.size, self.size) for image in images]
        if self.mirror and random.random() < 0.5:
            images = [image[:, ::-1] for image in images]
        if self.rotate:
            turns = int(random.integers(4))
            images = [np.rot90(image, turns) for image in images]
        return [np.ascontiguousarray(image) for image in images]


def _random(seed: int, index: int, turn: int) -> np.random.Generator:
    return np.random.default_rng((seed, index, turn))


class DegradedPairs:
    """Clean images, damaged anew each time they are drawn.

    Args:
        clean: [N, H, W, 3] uint8.
        kind: how they are damaged.
        cut: crops of the clean image.
        scale: factor of a degradation that scales; crops must be multiples of it.
        seed: of crops and damage.

    Raises:
        DataError: the crop is larger than the images or no multiple of the scale.
    """

    def __init__(self, clean: Images, kind: Degradation, cut: Cut, *, scale: int = 1, seed: int = 0) -> None:
        _check_side(clean, cut, scale)
        self.clean, self.kind, self.cut, self.scale, self.seed = clean, kind, cut, scale, seed

    def __len__(self) -> int:
        return len(self.clean)

    def draw(self, indices: Indices, turns: Indices) -> tuple[Images, Images]:
        """See Pairs."""
        pairs = [self._pair(int(index), int(turn)) for index, turn in zip(indices, turns, strict=True)]
        return np.stack([source for source, _ in pairs]), np.stack([target for _, target in pairs])

    def _pair(self, index: int, turn: int) -> tuple[Images, Images]:
        random = _random(self.seed, index, turn)
        (clean,) = self.cut([self.clean[index]], random)
        if self.scale > 1:  # a whole image may be no multiple
            clean = clean[: clean.shape[0] // self.scale * self.scale, : clean.shape[1] // self.scale * self.scale]
        made = self.kind.apply(clean, random, *((self.scale,) if self.kind.scales else ()))
        return (clean, made) if self.kind.target else (made, clean)


class StoredPairs:
    """Pairs that are there: sources [N, h, w, C] and targets [N, H, W, 3], H a multiple of h.

    Raises:
        DataError: the counts differ, or the crop does not fit.
    """

    def __init__(self, sources: Images, targets: Images, cut: Cut, *, seed: int = 0) -> None:
        if len(sources) != len(targets):
            raise DataError(f"pairs: {len(sources)} sources for {len(targets)} targets")
        self.scale = targets.shape[1] // sources.shape[1]
        if (sources.shape[1] * self.scale, sources.shape[2] * self.scale) != targets.shape[1:3]:
            raise DataError(f"pairs: targets {targets.shape[1:3]} are no multiple of sources {sources.shape[1:3]}")
        _check_side(targets, cut, self.scale)
        self.sources, self.targets, self.cut, self.seed = sources, targets, cut, seed

    def __len__(self) -> int:
        return len(self.targets)

    def draw(self, indices: Indices, turns: Indices) -> tuple[Images, Images]:
        """See Pairs."""
        pairs = [
            self.cut([self.sources[i], self.targets[i]], _random(self.seed, int(i), int(turn)), self.scale)
            for i, turn in zip(indices, turns, strict=True)
        ]
        return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


class UnpairedSets:
    """Two sets without counterparts: each source comes with a target drawn at random, cropped on its own.

    Args:
        sources: [N, H, W, 3] uint8; targets: [M, H, W, 3] uint8.
    """

    def __init__(self, sources: Images, targets: Images, cut: Cut, *, seed: int = 0) -> None:
        if not len(sources) or not len(targets):
            raise DataError(f"unpaired sets: {len(sources)} sources and {len(targets)} targets, both need some")
        _check_side(sources, cut, 1)
        _check_side(targets, cut, 1)
        self.sources, self.targets, self.cut, self.seed = sources, targets, cut, seed

    def __len__(self) -> int:
        return len(self.sources)

    def draw(self, indices: Indices, turns: Indices) -> tuple[Images, Images]:
        """See Pairs."""
        sources, targets = [], []
        for index, turn in zip(indices, turns, strict=True):
            random = _random(self.seed, int(index), int(turn))
            sources += self.cut([self.sources[index]], random)
            targets += self.cut([self.targets[random.integers(len(self.targets))]], random)
        return np.stack(sources), np.stack(targets)

    def shown(self, side: Images, count: int, seed: int = 0) -> Images:
        """Cuts of `count` of one side's images (or as many as there are), each another, in a fixed random order."""
        indices = np.random.RandomState(seed).permutation(len(side))[:count]
        return np.stack([self.cut([side[index]], _random(self.seed, int(index), 0))[0] for index in indices])


def examples(pairs: Pairs, count: int, seed: int = 0) -> tuple[Images, Images]:
    """`count` pairs (or as many as there are), always the same: images in a fixed random order, at turn 0."""
    if isinstance(pairs, UnpairedSets):
        sources, targets = (pairs.shown(side, count, seed) for side in (pairs.sources, pairs.targets))
        return sources, targets[np.resize(np.arange(len(targets)), len(sources))]
    indices = np.random.RandomState(seed).permutation(len(pairs))[:count].astype(np.int64)
    return pairs.draw(indices, np.zeros(len(indices), np.int64))


def _check_side(images: Images, cut: Cut, scale: int) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise DataError(f"pairs: images are {images.dtype} {list(images.shape)}, must be uint8 [N, H, W, 3]")
    if not len(images):
        raise DataError("pairs: there are no images")
    if cut.size > min(images.shape[1:3]):
        raise DataError(f"size is {cut.size}, but the images have {images.shape[1]} x {images.shape[2]} px")
    if cut.size % scale:
        raise DataError(f"size is {cut.size}, must be a multiple of the scale {scale}")
