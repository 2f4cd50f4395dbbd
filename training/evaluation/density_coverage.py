"""Density and coverage: Naeem et al., "Reliable fidelity and diversity metrics", arXiv:2002.09797."""

import numpy.typing as npt
import torch

from training.evaluation.matrices import pair, squared_distances, squared_radii


def density_coverage(real: npt.ArrayLike, fake: npt.ArrayLike, *, k: int = 5) -> tuple[float, float]:
    """(density, coverage) of fake features [M, d] against real ones [N, d].

    Around every real point lies a ball that reaches to its k-th nearest real neighbour. Density counts in how many
    balls a fake lies, over k: about 1 for real against real, above 1 where fakes crowd where reals are dense. Coverage
    is the share of real points whose ball holds a fake, 0..1: about 1 - 2^-k for real against real at equal counts, and
    low when the generator repeats itself.

    Raises:
        ValueError: bad features, as frechet_distance; or not 1 <= k < N.
    """
    reals, fakes = pair(("real", "fake"), real, fake)
    radii = squared_radii("real", reals, k)
    inside = 0
    covered = torch.zeros(len(reals), dtype=torch.bool)
    for rows, distances in squared_distances(reals, fakes):
        within = distances < radii[rows, None]
        inside += int(within.sum())
        covered[rows] = within.any(1)
    return inside / (k * len(fakes)), float(covered.double().mean())
