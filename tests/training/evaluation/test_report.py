"""The report: every row at the same count against the same reference, and what it renders."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from training.evaluation import EvaluationReport, report, sample_count
from training.evaluation.report import blurred


class Edges:
    """The steepest steps between neighbouring pixels as features: few numbers that see blur."""

    space = "edges"
    fingerprint = "edges-1"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images)
        steps = np.abs(np.diff(images.astype(np.float32) / 255, axis=2)).reshape(len(images), -1)
        return np.sort(steps, axis=1)[:, -12:]


@dataclass(frozen=True)
class Images:
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    fingerprint: str = "squares"


def squares(count: int, seed: int, fill: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """Sharp squares at random places; the label is the half that they are in."""
    random = np.random.RandomState(seed)
    images = random.randint(0, 30, (count, 12, 12, 1)).astype(np.uint8)
    corners = random.randint(0, 9, (count, 2))
    for image, (y, x) in zip(images, corners, strict=True):
        image[y : y + 3, x : x + 3] = fill
    return images, (corners[:, 1] > 4).astype(np.int64)


@pytest.fixture(scope="module")
def imageset() -> Images:
    (train, train_labels), (test, test_labels) = squares(400, 1), squares(201, 2)
    return Images(train, test, train_labels, test_labels, ("left", "right"))


def noise(count: int) -> np.ndarray:
    return np.random.RandomState(3).randint(0, 256, (count, 12, 12, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(imageset: Images) -> EvaluationReport:
    fakes, labels = squares(150, 4)
    return report(fakes, imageset, untrained=noise(150), labels=labels, extractor=Edges())


def test_bounds_are_ordered(made: EvaluationReport) -> None:
    assert made.rows == (made.floor, made.model, *made.blurred, made.untrained)
    floor, model, slight, strong, untrained = (row.metrics["kid_edges"] for row in made.rows)
    assert max(floor, model) < slight < strong < untrained
    assert abs(floor) < 0.1 * strong
    assert made.untrained.metrics["coverage"] == 0 < made.model.metrics["coverage"]
    assert made.coverage_of_floor == made.model.metrics["coverage"] / made.floor.metrics["coverage"]


def test_every_row_compares_as_many_images_and_none_with_itself(imageset: Images) -> None:
    extractor = Edges()
    made = report(squares(150, 4)[0], imageset, untrained=noise(150), samples=60, extractor=extractor)
    assert made.samples == sample_count(imageset, 60) == 60
    # Last the training images, which are looked through for copies.
    assert [len(images) for images in extractor.seen] == [60] * 6 + [400]
    held_out = {image.tobytes() for image in imageset.test}
    references = [images for images in extractor.seen if {image.tobytes() for image in images} <= held_out]
    assert len(references) == 1
    reference = {image.tobytes() for image in references[0]}
    others = np.stack([image for image in imageset.test if image.tobytes() not in reference])
    for sigma in (0.7, 1.5):
        allowed = {image.tobytes() for image in blurred(others, sigma)}
        assert sum({image.tobytes() for image in images} <= allowed for images in extractor.seen) == 1


def test_counts_shrink_to_the_set(imageset: Images) -> None:
    assert sample_count(imageset) == 100  # half of 201 held-out images
    assert sample_count(Images(imageset.train[:40], imageset.test)) == 40
    assert sample_count(imageset, 30) == 30


def test_agreement_judges_all_labelled_images(made: EvaluationReport, imageset: Images) -> None:
    assert made.agreement is not None and made.agreement.samples == 150
    assert made.agreement.overall > 0.9 and made.agreement.classifier_accuracy > 0.9
    fakes, labels = squares(150, 4)
    wrong = report(fakes, imageset, untrained=noise(150), labels=1 - labels, extractor=Edges())
    assert wrong.agreement is not None and wrong.agreement.overall < 0.1
    assert report(fakes, imageset, untrained=noise(150), extractor=Edges()).agreement is None


def test_markdown_is_one_table_with_every_row(made: EvaluationReport) -> None:
    text = made.markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(made.rows)
    assert len({line.count("|") for line in table}) == 1
    assert table[0].split(" | ")[1:3] == ["KID-edges", "FD-edges"]
    for row, line in zip(made.rows, table[2:], strict=True):
        assert line.startswith(f"| {row.name} | {row.metrics['kid_edges']:.5f} | {row.metrics['fd_edges']:.2f} |")
    assert re.search(r"100 images against 100 held-out real ones", text)
    assert "KID leads" in text and "Not comparable with FID" in text
    assert made.agreement is not None and f"{made.agreement.classifier_accuracy:.1%}" in text


def test_entries_fit_the_manifest(made: EvaluationReport) -> None:
    from service.manifest import Evaluation

    entries = {entry.metric: entry for entry in (Evaluation(**one) for one in made.entries())}
    kernel = entries["KID-edges"]
    assert (kernel.value, kernel.floor, kernel.samples) == (
        made.model.metrics["kid_edges"], made.floor.metrics["kid_edges"], 100,
    )  # fmt: skip
    assert set(entries) == {"KID-edges", "FD-edges", "precision", "recall", "density", "coverage", "label agreement"}
    assert made.agreement is not None and entries["label agreement"].floor == made.agreement.classifier_accuracy


def test_document_is_json(made: EvaluationReport) -> None:
    document = json.loads(json.dumps(made.document()))
    assert document["metrics"] == made.entries() and document["table"] == made.markdown()
    assert document["rows"][made.floor.name] == made.floor.metrics


def test_real_features_and_the_classifier_are_kept(imageset: Images, tmp_path: Path) -> None:
    fakes, labels = squares(150, 4)
    said: list[str] = []
    first, second = Edges(), Edges()
    one = report(fakes, imageset, untrained=noise(150), labels=labels, cache=tmp_path, extractor=first, say=said.append)
    spoken = len(said)
    two = report(
        fakes, imageset, untrained=noise(150), labels=labels, cache=tmp_path, extractor=second, say=said.append
    )
    assert one == two
    assert len(first.seen) == 7 and len(second.seen) == 2  # only generated images are looked at again
    assert any("classifier" in line for line in said[:spoken]) and not any(
        "classifier" in line for line in said[spoken:]
    )


def test_blur_is_gaussian_and_within_each_channel() -> None:
    dot = np.zeros((1, 21, 21, 3), np.uint8)
    dot[0, 10, 10, 0] = 255
    soft = blurred(dot, 1.5)[0].astype(float)
    assert soft[..., 1:].max() == 0 and soft[10, 10, 0] == pytest.approx(255 / (2 * np.pi * 1.5**2), abs=0.6)
    assert soft[10, 12, 0] == pytest.approx(soft[10, 10, 0] * np.exp(-4 / (2 * 1.5**2)), abs=1)


def test_what_cannot_be_reported_is_named(imageset: Images) -> None:
    fakes = squares(150, 4)[0]
    with pytest.raises(ValueError, match="fakes: want at least 100 images, got 99"):
        report(fakes[:99], imageset, untrained=noise(150), extractor=Edges())
    with pytest.raises(ValueError, match="untrained: images are"):
        report(fakes, imageset, untrained=noise(150)[:, 1:], extractor=Edges())
    with pytest.raises(ValueError, match="labels: the set of images has none"):
        bare = Images(imageset.train, imageset.test)
        report(fakes, bare, untrained=noise(150), labels=np.zeros(150, np.int64), extractor=Edges())
    with pytest.raises(ValueError, match="imageset: want more than 11 held-out images, got 9"):
        report(fakes, Images(imageset.train, imageset.test[:9]), untrained=noise(150), extractor=Edges())


def test_small_sets_are_searched_for_copies(imageset):
    found = report(imageset.train[:60], imageset, untrained=noise(100), samples=60, extractor=Edges())
    assert found.nearest is not None and found.nearest.ratio == 0 and found.nearest.copies == 1.0
    assert "100.0% lie as close" in found.markdown()
    assert found.document()["nearest"] == {"ratio": 0.0, "copies": 1.0}
    fresh = report(imageset.test, imageset, untrained=noise(100), samples=60, extractor=Edges())
    assert fresh.nearest is not None and fresh.nearest.copies < 0.2 and 0.5 < fresh.nearest.ratio < 2


def test_large_sets_are_not_and_path_lengths_stand_where_given(imageset, monkeypatch):
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["training.evaluation.report"], "LOOKED_THROUGH", 399)
    found = report(
        imageset.train, imageset, untrained=noise(100), samples=60, extractor=Edges(), path_lengths={"z": 3.2, "w": 1}
    )
    assert found.nearest is None and "Nearest" not in found.markdown()
    assert "3.20 in z, 1.00 in w." in found.markdown() and found.document()["path_lengths"] == {"z": 3.2, "w": 1}
