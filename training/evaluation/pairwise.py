"""Outputs against their targets: one table in one run, with the input and the classical tool for the job beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.kernel import kernel_distance
from training.evaluation.lpips_hed import lpips_hed_of
from training.evaluation.psnr import psnr
from training.evaluation.ssim import ssim
from training.features import Lite0Features

Images = npt.NDArray[np.uint8]  # [N, H, W, 3]
Features = npt.NDArray[np.float32]  # [N, d]

TITLES = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips_hed": "LPIPS-HED", "kid_lite0": "KID-lite0"}
BETTER_HIGH = ("psnr", "ssim")


@dataclass(frozen=True)
class PairRow:
    """One way to answer: its name and mean figures against the targets."""

    name: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class PairReport:
    """A model's figures beside the bounds of the same images, by test set (`seen`, and where there is one `unseen`).

    Attributes:
        tables: test set to rows; the first row of each is the model's.
        samples: pairs in each.
    """

    tables: Mapping[str, Sequence[PairRow]]
    samples: int

    def markdown(self) -> str:
        """A table per test set, and what was measured with."""
        lines: list[str] = []
        for title, rows in self.tables.items():
            names = list(rows[0].metrics)
            header = ["", *(TITLES[name] for name in names)]
            lines += [f"{title}:", "", f"| {' | '.join(header)} |", "|---" + "|---:" * len(names) + "|"]
            lines += [
                f"| {row.name} | {' | '.join(_figure(name, row.metrics[name]) for name in names)} |" for row in rows
            ]
            lines.append("")
        lines.append(
            f"{self.samples} held-out pairs, means over pairs. LPIPS-HED and KID-lite0: lower is better; they compare "
            "with nothing published, for other networks made the features."
        )
        return "\n".join(lines) + "\n"

    def entries(self) -> list[dict[str, Any]]:
        """For the manifest's `evaluation`; the floor is what the input (or interpolation) itself scores."""
        rows = next(iter(self.tables.values()))
        return [
            {
                "metric": TITLES[name].split(",")[0],
                "value": value,
                "samples": self.samples,
                "floor": rows[1].metrics[name],
            }
            for name, value in rows[0].metrics.items()
        ]

    def document(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        tables = {title: {row.name: dict(row.metrics) for row in rows} for title, rows in self.tables.items()}
        return {"samples": self.samples, "tables": tables, "table": self.markdown(), "metrics": self.entries()}


def quick(images: Images, targets: Images) -> dict[str, float]:
    """PSNR, SSIM and the mean squared error (levels squared), for a run's progress."""
    sides = min(images.shape[1:3])
    figures = {"psnr": float(_finite(psnr(images, targets)).mean())}
    if sides > 10:
        figures["ssim"] = float(ssim(images, targets).mean())
    figures["error"] = float(np.square(images.astype(np.float64) - targets).mean())
    return figures


def compare_all(
    answers: Mapping[str, Images], targets: Mapping[str, Images], *, paired: bool = True, perceptual: bool = True
) -> list[PairRow]:
    """All figures of each answer [N, H, W, 3] against the targets of the same name, means over N.

    Args:
        answers: by the name of their row; targets: the same object may stand for several, and is then looked at once.
        paired: False leaves only KID-lite0, between the two sets.
        perceptual: False leaves out what needs LPIPS-HED's weights.
    """
    distances: dict[str, float] = {}
    extract, known = Lite0Features(), {}
    for wanted in {id(array): array for array in targets.values()}.values():
        names = [name for name in answers if targets[name] is wanted]
        known[id(wanted)] = extract(wanted)
        if paired and perceptual:
            found = lpips_hed_of([answers[name] for name in names], wanted)
            distances |= {name: float(values.mean()) for name, values in zip(names, found, strict=True)}
    rows = []
    for name, images in answers.items():
        metrics: dict[str, float] = {}
        if paired:
            metrics["psnr"] = float(_finite(psnr(images, targets[name])).mean())
            metrics["ssim"] = float(ssim(images, targets[name]).mean())
            if perceptual:
                metrics["lpips_hed"] = distances[name]
        metrics["kid_lite0"] = _kernel_distance(extract(images), known[id(targets[name])], paired)
        rows.append(PairRow(name, metrics))
    return rows


def _kernel_distance(outputs: Features, targets: Features, paired: bool) -> float:
    """KID of the two sets. The estimate is for independent ones, so an output is not held against its own target:
    outputs of every second pair are compared with targets of the others, and the other way round.
    """
    if not paired or len(outputs) < 4:
        return kernel_distance(outputs, targets)
    return (kernel_distance(outputs[::2], targets[1::2]) + kernel_distance(outputs[1::2], targets[::2])) / 2


def _finite(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Equal images have no finite PSNR: 100 dB stands for it in means."""
    return np.minimum(values, 100.0)


def _figure(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "psnr" else f"{value:.4f}"
