"""One table in one run: a model's images beside what bounds them, at one sample count in one feature space."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from training.evaluation.agreement import Agreement, agreement, classifier
from training.evaluation.evaluator import NEIGHBOURS, Evaluator, Extractor, Features, Images, draw
from training.evaluation.nearest import Nearest, nearest

SAMPLES = 5000  # Below it the Fréchet distance's bias hides what it measures; above it every row costs minutes more.
BLURS_PX = (0.7, 1.5)
LOOKED_THROUGH = 5000
"""Training images that are looked through for copies. Larger sets are not: features of all of them take minutes, and a
generator that repeats so many images is far from what these networks can hold."""


class LabelledImages(Protocol):
    """What a report reads of a set of images; training.datasets.ImageSet is one."""

    @property
    def train(self) -> Images: ...
    @property
    def test(self) -> Images: ...
    @property
    def train_labels(self) -> npt.NDArray[np.int64] | None: ...
    @property
    def test_labels(self) -> npt.NDArray[np.int64] | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """One set of images against the reference: its metrics by name, as Evaluator returns them."""

    name: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvaluationReport:
    """A model's figures and their bounds, from one run.

    Attributes:
        model: the generated images.
        floor: real training images: what a perfect generator would score.
        blurred: held-out real images blurred by a Gaussian of BLURS_PX, in that order.
        untrained: an untrained generator's images.
        samples: images on each side of every comparison.
        space: the feature space's name.
        agreement: of images with asked labels; None where none were asked for.
        nearest: how close the model's images come to training images; None for more than LOOKED_THROUGH of those.
        path_lengths: perceptual path length by latent space, where it was measured.
    """

    model: Row
    floor: Row
    blurred: tuple[Row, ...]
    untrained: Row
    samples: int
    space: str
    agreement: Agreement | None = None
    nearest: Nearest | None = None
    path_lengths: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Row, ...]:
        """From the best that can be expected to the worst."""
        return (self.floor, self.model, *self.blurred, self.untrained)

    @property
    def coverage_of_floor(self) -> float:
        """The model's coverage over that of real against real; nan where that is 0."""
        floor = self.floor.metrics["coverage"]
        return self.model.metrics["coverage"] / floor if floor else float("nan")

    def markdown(self) -> str:
        """The table, and below it what it was measured with."""
        floor = self.floor.metrics["coverage"]
        names = list(self.floor.metrics)
        header = ["", *(_title(name) for name in names), "coverage / real"]
        lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
        for row in self.rows:
            relative = f"{row.metrics['coverage'] / floor:.2f}" if floor else "-"
            figures = [_figure(name, row.metrics[name]) for name in names]
            lines.append(f"| {' | '.join([row.name, *figures, relative])} |")
        lines += [
            "",
            f"{self.samples:,} images against {self.samples:,} held-out real ones, k = {NEIGHBOURS}. {self._caution()}",
        ]
        if self.agreement is not None:
            lines += ["", *self._agreement_lines(self.agreement)]
        if self.nearest is not None:
            lines += ["", _memory_line(self.nearest)]
        if self.path_lengths:
            told = ", ".join(f"{value:,.2f} in {space}" for space, value in self.path_lengths.items())
            lines += ["", f"Perceptual path length (full, LPIPS-HED: comparable with no paper's): {told}."]
        return "\n".join(lines) + "\n"

    def entries(self) -> list[dict[str, Any]]:
        """For the manifest's `evaluation`: metric, value, samples, and the floor of real against real."""
        found = [
            {"metric": _title(name), "value": value, "samples": self.samples, "floor": self.floor.metrics[name]}
            for name, value in self.model.metrics.items()
        ]
        if self.agreement is not None:
            found.append(
                {
                    "metric": "label agreement",
                    "value": self.agreement.overall,
                    "samples": self.agreement.samples,
                    "floor": self.agreement.classifier_accuracy,
                }
            )
        return found

    def document(self) -> dict[str, Any]:
        """Everything as JSON can hold it; `table` is markdown() and `metrics` entries()."""
        return {
            "space": self.space,
            "samples": self.samples,
            "rows": {row.name: dict(row.metrics) for row in self.rows},
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "coverage_of_floor": self.coverage_of_floor,
            "nearest": self.nearest and {"ratio": self.nearest.ratio, "copies": self.nearest.copies},
            "path_lengths": dict(self.path_lengths),
            "table": self.markdown(),
            "metrics": self.entries(),
        }

    def _caution(self) -> str:
        which = "KID leads: FD is biased upwards at so few samples. " if self.samples < SAMPLES else ""
        return f"{which}Not comparable with FID and KID in papers: another network made the features ({self.space})."

    @staticmethod
    def _agreement_lines(judged: Agreement) -> list[str]:
        per_class = ", ".join(f"{name} {share:.1%}" for name, share in judged.per_class.items())
        return [
            f"Label agreement {judged.overall:.1%} of {judged.samples:,} images (the classifier's own accuracy on "
            f"held-out real images: {judged.classifier_accuracy:.1%}). By class: {per_class}."
        ]


def sample_count(imageset: LabelledImages, samples: int = SAMPLES) -> int:
    """How many images of each kind a report compares: `samples`, or as many as half of the held-out images allow."""
    return min(samples, len(imageset.test) // 2, len(imageset.train))


def report(
    fakes: Images,
    imageset: LabelledImages,
    *,
    untrained: Images,
    samples: int = SAMPLES,
    labels: npt.NDArray[np.int64] | None = None,
    cache: Path | None = None,
    extractor: Extractor | None = None,
    path_lengths: Mapping[str, float] | None = None,
    say: Callable[[str], None] | None = None,
) -> EvaluationReport:
    """Measure a model and its bounds.

    The held-out images are parted at random, the same way every time: one half is the reference of every row, images of
    the other half are blurred. So no row holds an image that it is compared with, and each compares N images with the
    same N.

    Args:
        fakes: generated images, uint8 [at least N, H, W, C], N = sample_count(imageset, samples), with labels as
            frequent as in the set.
        imageset: the real images, at the same size and channels.
        untrained: images of the same generator before training, at least N.
        samples: images on each side; fewer where the set holds fewer.
        labels: int64, the label that each of `fakes` was asked for; all of them are judged by a classifier that is
            trained on the set's real images.
        cache: folder for features of real images and for the classifier.
        extractor: images to features, as Evaluator takes it.
        path_lengths: the generator's, measured beforehand, to stand in the report.
        say: told of progress, one line each.

    Raises:
        ValueError: too few images, wrong sizes, or labels for a set that has none.
    """
    say = say or (lambda _: None)
    count = sample_count(imageset, samples)
    if labels is not None and (imageset.train_labels is None or imageset.test_labels is None):
        raise ValueError("labels: the set of images has none, so agreement cannot be judged")
    if count <= NEIGHBOURS:
        raise ValueError(f"imageset: want more than {2 * NEIGHBOURS + 1} held-out images, got {len(imageset.test)}")
    held_out = draw(imageset.test, 2 * count)
    evaluator = Evaluator(held_out[:count], samples=count, cache=cache, extractor=extractor)
    evaluator.check("fakes", fakes)
    evaluator.check("untrained", untrained)

    def real(name: str, images: Images) -> Row:
        say(f"{name}: {count} images")
        return Row(name, evaluator.compare(evaluator.real_features(images)))

    def generated(name: str, images: Images) -> tuple[Row, Features]:
        say(f"{name}: {count} images")
        features = evaluator.features(images)
        return Row(name, evaluator.compare(features)), features

    model, seen = generated("this model", fakes)
    return EvaluationReport(
        model=model,
        floor=real("real (training images)", draw(imageset.train, count)),
        blurred=tuple(
            real(f"real (held out), blurred by {sigma} px", blurred(held_out[count:], sigma)) for sigma in BLURS_PX
        ),
        untrained=generated("untrained generator", untrained)[0],
        samples=count,
        space=evaluator.space,
        agreement=None if labels is None else _judge(fakes, labels, imageset, cache, say),
        nearest=_nearest(seen, imageset.train, evaluator, say),
        path_lengths=path_lengths or {},
    )


def _nearest(seen: Features, train: Images, evaluator: Evaluator, say: Callable[[str], None]) -> Nearest | None:
    if len(train) > LOOKED_THROUGH:
        return None
    say(f"looking for copies of {len(train)} training images")
    return nearest(seen, evaluator.real_features(train), evaluator.reference)


def _memory_line(found: Nearest) -> str:
    return (
        f"Nearest training image: {found.ratio:.2f} times as far as from held-out real images; "
        f"{found.copies:.1%} lie as close as the nearest 1 % of those (1 % is usual, much more says copies)."
    )


def blurred(images: Images, sigma_px: float) -> Images:
    """Images [N, H, W, C] blurred by a Gaussian of standard deviation `sigma_px`, edges mirrored, rounded to uint8."""
    soft = gaussian_filter(images.astype(np.float32), (0, sigma_px, sigma_px, 0))
    result: Images = np.rint(soft).clip(0, 255).astype(np.uint8)
    return result


def _judge(
    fakes: Images,
    labels: npt.NDArray[np.int64],
    imageset: LabelledImages,
    cache: Path | None,
    say: Callable[[str], None],
) -> Agreement:
    assert imageset.train_labels is not None and imageset.test_labels is not None  # report has looked
    judge = classifier(
        (imageset.train, imageset.train_labels),
        (imageset.test, imageset.test_labels),
        imageset.classes,
        fingerprint=imageset.fingerprint,
        cache=cache,
        say=say,
    )
    return agreement(judge, fakes, labels)


def _title(name: str) -> str:
    """`kid_lite0` as people write it: `KID-lite0`."""
    kind, _, space = name.partition("_")
    return f"{kind.upper()}-{space}" if space else name


def _figure(name: str, value: float) -> str:
    return f"{value:.5f}" if name.startswith("kid") else f"{value:.2f}" if name.startswith("fd") else f"{value:.3f}"
