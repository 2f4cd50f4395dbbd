"""The classifier that judges labels, on shapes that are easy to tell apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.evaluation import agreement, classifier

CLASSES = ("top", "bottom", "left")


def bars(count: int, seed: int, side: int = 12, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A bright bar at the class's edge in noise."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, 3, count).astype(np.int64)
    images = random.randint(0, 120, (count, side, side, channels)).astype(np.uint8)
    edge = side // 3
    for image, label in zip(images, labels, strict=True):
        image[
            (slice(edge), slice(-edge, None), slice(None))[label], (slice(None), slice(None), slice(edge))[label]
        ] += 100
    return images, labels


def trained(cache: Path | None = None, fingerprint: str = "bars", said: list[str] | None = None, **shape: int):
    return classifier(
        bars(600, 1, **shape), bars(200, 2, **shape), CLASSES, fingerprint=fingerprint, cache=cache, epochs=8,
        say=None if said is None else said.append,
    )  # fmt: skip


@pytest.fixture(scope="module")
def judge():
    return trained()


def test_learns_and_states_its_own_accuracy(judge) -> None:
    images, labels = bars(200, 2)
    assert judge.accuracy == pytest.approx((judge(images) == labels).mean()) and judge.accuracy > 0.95


def test_agreement_counts_by_class(judge) -> None:
    images, labels = bars(300, 3)
    right = agreement(judge, images, labels)
    assert right.overall > 0.95 and right.samples == 300 and right.classifier_accuracy == judge.accuracy
    asked = labels.copy()
    asked[labels == 1] = 0  # "top" asked for, "bottom" drawn
    found = agreement(judge, images, asked)
    tops, lefts = (labels == 0).sum(), (labels == 2).sum()
    assert set(found.per_class) == {"top", "left"}
    assert found.per_class["left"] > 0.95
    assert found.per_class["top"] == pytest.approx(tops / (300 - lefts), abs=0.05)
    assert found.overall == pytest.approx((tops + lefts) / 300, abs=0.05)


def test_kept_by_fingerprint(tmp_path: Path) -> None:
    said: list[str] = []
    first = trained(tmp_path, said=said)
    assert len(said) == 8
    second = trained(tmp_path, said=said)
    assert len(said) == 8 and second.accuracy == first.accuracy
    assert np.array_equal(second(bars(100, 5)[0]), first(bars(100, 5)[0]))
    trained(tmp_path, fingerprint="other bars", said=said)
    assert len(said) == 16 and len(list(tmp_path.iterdir())) == 2


def test_is_the_same_every_time_and_moves_no_random_numbers(judge) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = trained()
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(again(bars(200, 9)[0]), judge(bars(200, 9)[0]))


def test_judges_large_colour_images() -> None:
    assert trained(side=48, channels=3).accuracy > 0.95


def test_labels_that_do_not_fit_are_named(judge) -> None:
    images, labels = bars(20, 1)
    with pytest.raises(ValueError, match="labels: want 20 integers"):
        agreement(judge, images, labels[:19])
    with pytest.raises(ValueError, match="labels: want labels from 0 to 2"):
        agreement(judge, images, labels + 1)
    with pytest.raises(ValueError, match="test_labels: want labels from 0 to 2"):
        classifier((images, labels), (images, labels + 1), CLASSES, fingerprint="x")
