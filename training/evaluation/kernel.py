"""Kernel distance: unbiased squared maximum mean discrepancy with a cubic polynomial kernel.

Bińkowski et al., "Demystifying MMD GANs", arXiv:1801.01401. On EfficientNet-Lite0 features its name is KID-lite0. Its
expectation does not depend on the sample count, so it leads below 5,000 samples. It is the plain MMD^2 (some print it
times 1,000), and near zero it can be slightly negative.
"""

import numpy as np
import numpy.typing as npt
import torch

from training.evaluation.matrices import CHUNK, pair


def kernel_distance(
    a: npt.ArrayLike, b: npt.ArrayLike, *, subsets: int = 1, subset_size: int | None = None, seed: int = 0
) -> float:
    """Unbiased MMD^2 between features [N, d] and [M, d] under k(x, y) = (x.y / d + 1)^3, in float64.

    Args:
        a, b: features.
        subsets: how many estimates to average.
        subset_size: rows drawn from each set, without replacement, for one estimate; None takes all rows, and then one
            estimate is exact and `subsets` must be 1.
        seed: of the draws.

    Raises:
        ValueError: bad features, as frechet_distance; or subsets or subset_size out of range.
    """
    first, second = pair(("a", "b"), a, b)
    smaller = min(len(first), len(second))
    if subset_size is None:
        if subsets != 1:
            raise ValueError(f"subsets: all rows make one estimate, so want 1, got {subsets}; or give subset_size")
        return _mmd2(first, second)
    if subsets < 1 or not 2 <= subset_size <= smaller:
        raise ValueError(f"want subsets >= 1 and 2 <= subset_size <= {smaller}, got {subsets} and {subset_size}")
    random = np.random.RandomState(seed)
    draws = [
        [torch.from_numpy(random.permutation(len(x))[:subset_size]) for x in (first, second)] for _ in range(subsets)
    ]
    return float(np.mean([_mmd2(first[rows_a], second[rows_b]) for rows_a, rows_b in draws]))


def _mmd2(a: torch.Tensor, b: torch.Tensor) -> float:
    return _mean_kernel(a) + _mean_kernel(b) - 2 * _sum_kernel(a, b) / (len(a) * len(b))


def _mean_kernel(x: torch.Tensor) -> float:
    """Mean of k over pairs of different rows: leaving out a row with itself is what makes the estimate unbiased."""
    itself = float(((x * x).sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_sum_kernel(x, x) - itself) / (len(x) * (len(x) - 1))


def _sum_kernel(x: torch.Tensor, y: torch.Tensor) -> float:
    scale = x.shape[1]
    return sum(float((rows @ y.T).div_(scale).add_(1).pow_(3).sum()) for rows in x.split(CHUNK))
