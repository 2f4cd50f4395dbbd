"""Fréchet distance between two sets of features, each taken as a Gaussian.

Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982); used on images by Heusel et
al., arXiv:1706.08500. On EfficientNet-Lite0 features its name is FD-lite0. It is biased upwards at small sample counts:
compare at one fixed count only, beside real against real.
"""

import numpy.typing as npt
import torch

from training.evaluation.matrices import pair


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features [N, d] and [M, d], in float64.

    With S = F^T F for each set, tr((S_a S_b)^(1/2)) is the sum of the singular values of F_a F_b^T. That is exact and
    needs no root of a singular matrix; with fewer samples than dimensions it is cheap too: F is the centred features.

    Raises:
        ValueError: not matrices of at least two rows and the same length of row, or not finite.
    """
    first, second = pair(("a", "b"), a, b)
    factor_a, factor_b = _factor(first), _factor(second)
    means = (first.mean(0) - second.mean(0)).square().sum()
    traces = factor_a.square().sum() + factor_b.square().sum()
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    return max(0.0, float(means + traces - 2 * cross))


def _factor(features: torch.Tensor) -> torch.Tensor:
    """F [min(N, d), d] with F^T F the unbiased covariance."""
    factor: torch.Tensor = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    if len(factor) > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r")[1]
    return factor
