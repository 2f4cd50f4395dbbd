"""The evaluator: what it compares, what it keeps, what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from training.evaluation import Evaluator, density_coverage, frechet_distance, kernel_distance, precision_recall
from training.features import Lite0Features


class Pixels:
    """Pixels as features; counts what it is asked to compute."""

    space = "pixels"
    fingerprint = "pixels-1"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32) / 255


def images(count: int, seed: int, brightness: int = 256) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, brightness, (count, 4, 4, 1)).astype(np.uint8)


def test_gives_every_metric_of_the_features() -> None:
    real, fake = images(60, 1), images(60, 2, 200)
    extractor = Pixels()
    figures = Evaluator(real, samples=60, extractor=extractor)(fake)
    a, b = extractor(real), extractor(fake)
    assert figures == pytest.approx(
        {
            "kid_pixels": kernel_distance(a, b),
            "fd_pixels": frechet_distance(a, b),
            **dict(zip(("precision", "recall"), precision_recall(a, b), strict=True)),
            **dict(zip(("density", "coverage"), density_coverage(a, b), strict=True)),
        }
    )
    assert figures["kid_pixels"] > 0 and 0 < figures["coverage"] < 1


def test_compares_the_same_number_on_both_sides() -> None:
    extractor = Pixels()
    evaluator = Evaluator(images(50, 1), samples=20, extractor=extractor)
    first = evaluator(images(30, 2))
    assert set(extractor.seen) == {20}
    assert evaluator(images(30, 2)[:20]) == first
    assert Evaluator(images(50, 1), samples=80, extractor=extractor).samples == 50


def test_the_reference_is_drawn_from_the_whole_set_and_always_the_same() -> None:
    real = np.arange(100, dtype=np.uint8).repeat(16).reshape(100, 4, 4, 1)  # sorted, as sets often are
    drawn = [Evaluator(real, samples=30, extractor=Pixels()).reference for _ in range(2)]
    assert np.array_equal(*drawn)
    values = {round(float(row[0]) * 255) for row in drawn[0]}
    assert len(values) == 30 and min(values) < 20 and max(values) > 80


def test_features_of_the_reference_are_computed_once(tmp_path: Path) -> None:
    extractor = Pixels()
    evaluator = Evaluator(images(20, 1), samples=20, cache=tmp_path / "deep" / "cache", extractor=extractor)
    first = evaluator(images(20, 2))
    evaluator(images(20, 3))
    assert len(extractor.seen) == 3  # the reference and two sets of fakes
    again = Pixels()
    assert (
        Evaluator(images(20, 1), samples=20, cache=tmp_path / "deep" / "cache", extractor=again)(images(20, 2)) == first
    )
    assert len(again.seen) == 1  # the reference came from the folder
    assert [path.suffix for path in (tmp_path / "deep" / "cache").iterdir()] == [".npy"]  # and fakes are not kept


def test_other_images_or_another_extractor_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    Evaluator(images(20, 1), samples=20, cache=tmp_path, extractor=Pixels()).reference  # noqa: B018
    other = Pixels()
    Evaluator(images(20, 7), samples=20, cache=tmp_path, extractor=other).reference  # noqa: B018
    assert len(other.seen) == 1
    newer = Pixels()
    newer.fingerprint = "pixels-2"
    Evaluator(images(20, 1), samples=20, cache=tmp_path, extractor=newer).reference  # noqa: B018
    assert len(newer.seen) == 1
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"no array"])
def test_a_damaged_cache_is_computed_again(tmp_path: Path, damage) -> None:
    sound = Evaluator(images(20, 1), samples=20, cache=tmp_path, extractor=Pixels()).reference
    (kept,) = tmp_path.iterdir()
    raw = kept.read_bytes()
    kept.write_bytes(damage(raw))
    assert np.array_equal(Evaluator(images(20, 1), samples=20, cache=tmp_path, extractor=Pixels()).reference, sound)
    assert kept.read_bytes() == raw


def test_a_plain_function_is_an_extractor_and_its_features_are_not_written(tmp_path: Path) -> None:
    evaluator = Evaluator(
        images(20, 1), samples=20, cache=tmp_path, extractor=lambda x: x.reshape(len(x), -1).astype(np.float32)
    )
    assert "kid_custom" in evaluator(images(20, 2)) and not list(tmp_path.iterdir())


def test_the_default_space_is_lite0() -> None:
    evaluator = Evaluator(images(12, 1), samples=12)
    figures = evaluator(images(12, 2, 60))
    assert list(figures) == ["kid_lite0", "fd_lite0", "precision", "recall", "density", "coverage"]
    assert figures["kid_lite0"] == pytest.approx(
        kernel_distance(evaluator.reference, Lite0Features()(images(12, 2, 60))), rel=1e-6
    )


def test_what_cannot_be_measured_is_named() -> None:
    with pytest.raises(ValueError, match="reference: want uint8"):
        Evaluator(images(20, 1).astype(np.float32), samples=20)
    with pytest.raises(ValueError, match="samples: want more than 5, got 5"):
        Evaluator(images(20, 1), samples=5)
    evaluator = Evaluator(images(20, 1), samples=20, extractor=Pixels())
    with pytest.raises(ValueError, match="fakes: want at least 20 images, got 19"):
        evaluator(images(19, 2))
    with pytest.raises(ValueError, match=r"fakes: images are \[4, 4, 3\], the reference's \[4, 4, 1\]"):
        evaluator(images(20, 2).repeat(3, 3))
