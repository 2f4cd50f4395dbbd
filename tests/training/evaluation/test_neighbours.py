"""Precision, recall, density, coverage against prdc, and nearest neighbours."""

import numpy as np
import prdc
import pytest

from training.evaluation import density_coverage, nearest, precision_recall


def points(count: int, seed: int, spread: float = 1.0, dimensions: int = 12) -> np.ndarray:
    return spread * np.random.RandomState(seed).randn(count, dimensions)


@pytest.mark.parametrize("chunk", [1024, 17])
@pytest.mark.parametrize(("real", "fake"), [(200, 200), (150, 90), (90, 260)])
@pytest.mark.parametrize("spread", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("k", [1, 5])
def test_agrees_with_prdc(
    real: int, fake: int, spread: float, k: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.evaluation.matrices.CHUNK", chunk)
    a, b = points(real, 1), points(fake, 2, spread)
    peer = prdc.compute_prdc(a, b, nearest_k=k)
    precision, recall = precision_recall(a, b, k=k)
    density, coverage = density_coverage(a, b, k=k)
    found = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    assert found == pytest.approx({name: float(value) for name, value in peer.items()}, rel=1e-6)


def test_agrees_with_prdc_on_features_with_repeats() -> None:
    """A generator that repeats training images, and a set that holds some twice."""
    a = points(120, 1)
    a[100:] = a[:20]
    b = np.concatenate([a[:40], a[:40], points(40, 3)])
    peer = prdc.compute_prdc(a, b, nearest_k=5)
    assert precision_recall(a, b, k=5) == pytest.approx((peer["precision"], peer["recall"]), rel=1e-6)
    assert density_coverage(a, b, k=5) == pytest.approx((peer["density"], peer["coverage"]), rel=1e-6)


def test_what_the_figures_mean() -> None:
    real = points(400, 1, dimensions=4)
    same = points(400, 2, dimensions=4)
    one_spot = np.repeat(real[:1], 400, 0) + 1e-3 * points(400, 3, dimensions=4)  # real to look at, always the same
    far = same + 100
    assert precision_recall(real, far) == (0, 0) and density_coverage(real, far) == (0, 0)
    precision, recall = precision_recall(real, one_spot)
    assert precision > 0.95 and recall < 0.05
    assert density_coverage(real, one_spot)[1] < 0.1
    assert density_coverage(real, same)[1] == pytest.approx(1 - 2**-5, abs=0.03)
    assert density_coverage(real, same)[0] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_too_large_k_is_refused(metric) -> None:
    with pytest.raises(ValueError, match="k: want 1 <= k < 5"):
        metric(points(5, 1), points(9, 2), k=5)


def test_nearest_tells_copies_from_new_images() -> None:
    train, test = points(500, 1), points(300, 2)
    new = nearest(points(300, 3), train, test)
    assert new.ratio == pytest.approx(1, abs=0.1) and new.copies < 0.05
    copied = nearest(train[200:350] + 1e-3 * points(150, 4), train, test)
    assert copied.ratio < 0.05 and copied.copies == 1
    assert np.array_equal(copied.indices, np.arange(200, 350))


def test_nearest_counts_exact_copies_even_where_held_out_images_repeat_too() -> None:
    train = points(200, 1)
    test = np.concatenate([train[:10], points(190, 2)])
    assert nearest(np.concatenate([train[50:60], points(90, 3)]), train, test).copies == pytest.approx(0.1, abs=0.011)


def test_nearest_refuses_held_out_images_that_were_trained_on() -> None:
    train = points(50, 1)
    with pytest.raises(ValueError, match="test: half"):
        nearest(points(20, 2), train, train[:20])
