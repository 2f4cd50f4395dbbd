"""LPIPS-HED of 8-bit images; see training/perceptual.py for what it is and what it is not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from training import perceptual
from training.layers import from_pixels

Images = npt.NDArray[np.uint8]
BATCH = 4


def lpips_hed(images: Images, targets: Images, weights: Path | None = None) -> npt.NDArray[np.float64]:
    """Of each of images [N, H, W, 3] against its target: [N], 0 for equal images, higher is further.

    Raises:
        ValueError: the shapes differ.
        FeaturesUnavailable: the weights are not prepared.
    """
    return lpips_hed_of([images], targets, weights)[0]


def lpips_hed_of(
    answers: Sequence[Images], targets: Images, weights: Path | None = None
) -> list[npt.NDArray[np.float64]]:
    """`lpips_hed` of several answers to the same targets, whose features are worked out once: half of the time."""
    for images in answers:
        if images.shape != targets.shape:
            raise ValueError(f"images are {list(images.shape)}, targets {list(targets.shape)}: want the same")
    found = [np.zeros(len(targets)) for _ in answers]
    for start in range(0, len(targets), BATCH):
        part = slice(start, start + BATCH)
        wanted = perceptual.directions(_tensor(targets[part]), weights)
        for distances, images in zip(found, answers, strict=True):
            seen = perceptual.directions(_tensor(images[part]), weights)
            distances[part] = perceptual.distance(seen, wanted, weights).double().numpy()
    return found


def _tensor(images: Images) -> torch.Tensor:
    return from_pixels(torch.from_numpy(np.ascontiguousarray(images)))
