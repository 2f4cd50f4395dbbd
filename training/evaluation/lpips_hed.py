"""LPIPS-HED of 8-bit images; see training/perceptual.py for what it is and what it is not."""

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
    if images.shape != targets.shape:
        raise ValueError(f"images are {list(images.shape)}, targets {list(targets.shape)}: want the same")
    parts = [np.zeros(0)]
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        a, b = (from_pixels(torch.from_numpy(np.ascontiguousarray(x[part]))) for x in (images, targets))
        parts.append(perceptual.lpips_hed(a, b, weights).double().numpy())
    return np.concatenate(parts)
