"""Perceptual path length: how evenly pictures change along ways through the latent space.

Karras, Laine and Aila, "A Style-Based Generator Architecture for Generative Adversarial Networks", 2018,
arXiv:1812.04948, section 4.1: the mean, over random places on ways between random latents, of the perceptual distance
of the pictures a small step apart, over the step squared. Ends are drawn at random and so are places (the paper's
"full"). Distances are LPIPS-HED, so figures compare with each other and with no paper's.
"""

import numpy as np
import torch
from torch import Tensor

from training import perceptual
from training.latentspace import LatentSpace, Space, between

STEP = 1e-3
"""Of a way, from one picture to the next. Ten times the paper's, whose differences float32 rounds by per cents."""
KEPT = (0.01, 0.99)
"""Distances outside of these quantiles are left out, as in the paper's own figures."""
FIRST_SEED = 2**30
"""Latents of a measurement are those of seeds from here on, which nobody looks at."""
BATCH = 16


def path_length(latents: LatentSpace, space: Space, *, samples: int = 1000, classes: int = 0, seed: int = 0) -> float:
    """Perceptual path length in z (arcs) or w (lines), at truncation 1.

    Args:
        latents: of the generator.
        space: `z`, or `w` where the generator has styles.
        samples: places, at least 2.
        classes: of a conditional generator, taken in turn; both ends of a way have the same.
        seed: of the places.

    Raises:
        ValueError: fewer than 2 samples.
        FeaturesUnavailable: the features' weights are not prepared here.
    """
    if samples < 2:
        raise ValueError(f"samples: want at least 2, got {samples}")
    t = torch.rand(samples, generator=torch.Generator().manual_seed(seed)) * (1 - STEP)
    distances = []
    for start in range(0, samples, BATCH):
        rows = range(start, min(start + BATCH, samples))
        here, there = (
            latents.points([FIRST_SEED + end * samples + row for row in rows], space).double() for end in (0, 1)
        )
        labels = torch.tensor([row % classes for row in rows]) if classes else None
        part = t[rows.start : rows.stop].double()
        near, far = (
            _seen(latents.draw(between(here, there, at, space).float(), space, labels)) for at in (part, part + STEP)
        )
        distances.append(perceptual.lpips_hed(near, far).numpy() / STEP**2)
    found = np.concatenate(distances)
    low, high = np.quantile(found, KEPT)
    return float(found[(found >= low) & (found <= high)].mean())


def _seen(images: Tensor) -> Tensor:
    """RGB, as the features want it: grey over three channels."""
    return images.float().expand(-1, 3, -1, -1)
