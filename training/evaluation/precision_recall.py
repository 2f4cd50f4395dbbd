"""Improved precision and recall: Kynkäänniemi et al., arXiv:1904.06991."""

import numpy.typing as npt
import torch

from training.evaluation.matrices import pair, squared_distances, squared_radii


def precision_recall(real: npt.ArrayLike, fake: npt.ArrayLike, *, k: int = 5) -> tuple[float, float]:
    """(precision, recall) of fake features [M, d] against real ones [N, d]; each in 0..1, higher is better.

    Around every point lies a ball that reaches to its k-th nearest neighbour within its own set. Precision is the share
    of fakes inside the ball of some real point (do they look real?), recall the share of real points inside the ball of
    some fake (is everything there that is real?). Both rise with k and with the sample counts, and a single outlier has
    a huge ball: compare at one count, and read them beside density and coverage.

    Raises:
        ValueError: bad features, as frechet_distance; or not 1 <= k < both counts.
    """
    reals, fakes = pair(("real", "fake"), real, fake)
    real_radii, fake_radii = squared_radii("real", reals, k), squared_radii("fake", fakes, k)
    realistic = torch.zeros(len(fakes), dtype=torch.bool)
    recalled = torch.zeros(len(reals), dtype=torch.bool)
    for rows, distances in squared_distances(reals, fakes):
        realistic |= (distances < real_radii[rows, None]).any(0)
        recalled[rows] = (distances < fake_radii).any(1)
    return float(realistic.double().mean()), float(recalled.double().mean())
