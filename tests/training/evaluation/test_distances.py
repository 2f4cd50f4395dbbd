"""Fréchet and kernel distance against torchmetrics and against their formulas, on the same features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from training.evaluation import frechet_distance, kernel_distance


class Given(torch.nn.Module):
    """A feature extractor whose images are the features already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def features(count: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features of uneven scale, as a network's are."""
    random = np.random.RandomState(seed)
    mix = np.random.RandomState(99).randn(dimensions, dimensions) / dimensions**0.5 * np.linspace(0.1, 2, dimensions)
    return random.randn(count, dimensions) @ mix + shift


def general_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it is written, with a matrix square root."""
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * np.real(root)))


@pytest.mark.parametrize("counts", [(300, 300), (200, 500), (64, 65)])
def test_frechet_is_the_general_formula(counts: tuple[int, int]) -> None:
    a, b = features(counts[0], 24, 1), features(counts[1], 24, 2, shift=0.1)
    assert frechet_distance(a, b) == pytest.approx(general_frechet(a, b), rel=1e-9)


@pytest.mark.parametrize("counts", [(20, 20), (20, 90), (12, 40)])
def test_frechet_with_fewer_samples_than_dimensions(counts: tuple[int, int]) -> None:
    """Singular covariances, where a matrix square root loses digits: the eigenvalues of S_a S_b tell the same."""
    a, b = features(counts[0], 48, 1), features(counts[1], 48, 2, shift=0.1)
    values = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0)
    traces = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * np.sqrt(values).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [30, 400])
def test_frechet_agrees_with_torchmetrics(count: int) -> None:
    a, b = features(count, 40, 3), features(count, 40, 4, shift=0.2)
    peer = FrechetInceptionDistance(feature=Given(40), normalize=True).set_dtype(torch.float64)
    peer.update(torch.from_numpy(a), real=True)
    peer.update(torch.from_numpy(b), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(peer.compute()), rel=1e-6)


def test_frechet_of_known_gaussians() -> None:
    a = features(500, 6, 5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(24, rel=1e-9)  # six means moved by 2
    assert frechet_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(4 * np.trace(np.cov(a.T)), rel=1e-9)


def test_kernel_agrees_with_torchmetrics_on_all_samples() -> None:
    a, b = features(150, 40, 3), features(150, 40, 4, shift=0.2)
    peer = KernelInceptionDistance(feature=Given(40), subsets=1, subset_size=150, normalize=True).set_dtype(
        torch.float64
    )
    peer.update(torch.from_numpy(a), real=True)
    peer.update(torch.from_numpy(b), real=False)
    assert kernel_distance(a, b) == pytest.approx(float(peer.compute()[0]), rel=1e-6)
    assert kernel_distance(a, b, subset_size=150) == pytest.approx(kernel_distance(a, b), rel=1e-9)


def test_kernel_is_its_formula_at_unequal_counts_and_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.kernel.CHUNK", 7)
    a, b = features(23, 5, 1), features(31, 5, 2)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    within = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(within[0] + within[1] - 2 * across, rel=1e-9)


def test_kernel_is_unbiased_where_frechet_is_not() -> None:
    """Over many small samples of one distribution the kernel distance averages to nothing, the other does not."""
    draws = [(features(40, 8, 2 * i), features(40, 8, 2 * i + 1)) for i in range(60)]
    kernels = np.array([kernel_distance(a, b) for a, b in draws])
    assert abs(kernels.mean()) < 3 * kernels.std() / 60**0.5
    assert kernels.min() < 0
    large = frechet_distance(features(4000, 8, 1), features(4000, 8, 2))
    assert np.mean([frechet_distance(a, b) for a, b in draws]) > 10 * large


def test_kernel_subsets_estimate_the_exact_value_and_repeat() -> None:
    a, b = features(300, 8, 1), features(300, 8, 2, shift=0.5)
    estimate = kernel_distance(a, b, subsets=40, subset_size=100)
    assert estimate == kernel_distance(a, b, subsets=40, subset_size=100)
    assert estimate != kernel_distance(a, b, subsets=40, subset_size=100, seed=1)
    assert estimate == pytest.approx(kernel_distance(a, b), rel=0.2)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_what_cannot_be_compared_is_named(distance) -> None:
    good = features(10, 4, 0)
    with pytest.raises(ValueError, match="length 4 and 3 differ"):
        distance(good, good[:, :3])
    with pytest.raises(ValueError, match=r"b: want features \[N >= 2, d\], got shape \[1, 4\]"):
        distance(good, good[:1])
    with pytest.raises(ValueError, match="a: features must be finite"):
        distance(np.where(good == good.max(), np.nan, good), good)


@pytest.mark.parametrize(
    "arguments", [{"subsets": 3}, {"subset_size": 11}, {"subset_size": 1}, {"subsets": 0, "subset_size": 5}]
)
def test_kernel_refuses_impossible_subsets(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="subset"):
        kernel_distance(features(10, 4, 0), features(12, 4, 1), **arguments)
