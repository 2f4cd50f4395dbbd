"""What `train` and `evaluate` do for image-to-image families."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training import export as exporting
from training import perceptual
from training.datasets import DataError, DataReport, PairOptions, PairSet, load_pairs
from training.datasets.pairs import Pairs, UnpairedSets, examples
from training.datasets.prepared import write_npz
from training.evaluation.classical import answers
from training.evaluation.pairwise import PairReport, PairRow, compare_all, quick
from training.family import Family
from training.monitors.blow_up import BlowUp
from training.recipe import Recipe
from training.runlog import RunLog, write_atomically
from training.trainer import Trainer, TrainOptions, translate

JUDGED = 64
"""Training pairs that choose the best checkpoint."""
SHOWN = 12
"""Held-out pairs in the sample grids and on the card."""
TINT_IMAGES = 64
"""Training targets that the classical tints learn from."""


def say_report(report: DataReport) -> None:
    """To stderr, so that stdout stays for results."""
    print(report.text(), file=sys.stderr)


def pair_trainer(
    family: Family, recipe: Recipe, args: argparse.Namespace, options: TrainOptions
) -> tuple[PairSet, Trainer]:
    """The data that `args` names and a trainer over it; the run keeps held-out examples in `examples.npz`."""
    find_weights(args.data_root)
    if recipe.perceptual_weight:
        perceptual.load_vgg(perceptual.LOSS_BLOCKS)  # what is missing is said before the data is read
    family.nets(recipe)  # and so is what does not go together
    data = load_pairs(
        args.data, _pair_options(recipe, args.seed), family.pairing, root=Path(args.data_root), strict=args.strict,
        report=say_report,
    )  # fmt: skip
    log = RunLog(Path(args.run))
    shown = examples(data.test, SHOWN)
    write_npz(log.directory / "examples.npz", {"sources": shown[0], "targets": shown[1]})
    judged, wanted = examples(data.train, min(options.evaluate_samples, JUDGED), seed=1)
    judging = args.evaluate_kimg > 0 and not data.unpaired
    trainer = Trainer(
        family, recipe, data.train, None, log, replace(options, best_by="error"),
        evaluate=(lambda images: quick(images, wanted)) if judging else None, judged=judged,
        monitors=[BlowUp()], device=args.device, examples=shown,
    )  # fmt: skip
    return data, trainer


def evaluate_pairs(run: exporting.TrainedRun, args: argparse.Namespace) -> int:
    """Judge a run's outputs on held-out images beside the input and the classical tools; writes evaluation.json."""
    find_weights(args.data_root)
    recipe, recorded = run.recipe, run.facts["data"]
    data = load_pairs(
        args.data or recorded["source"], _pair_options(recipe, run.facts["seed"]), run.family.pairing,
        root=Path(args.data_root),
    )  # fmt: skip
    if args.data is None and data.fingerprint != recorded["fingerprint"]:
        raise DataError(
            f"{recorded['source']} has changed since the run was trained on it; name it with --data if meant"
        )
    count = min(args.samples, len(data.test))
    if count < 2:
        raise DataError(f"needs at least 2 --samples and held-out pairs; there are {args.samples} and {len(data.test)}")
    tables: dict[str, list[PairRow]] = {}
    beside = [_comparable(run, Path(folder)) for folder in args.beside]
    if data.unpaired:
        tables |= _unpaired_tables(run, data.test, count)
    else:
        tints = examples(data.train, TINT_IMAGES)[1]
        sets = {"Held out": data.test}
        if data.unseen is not None:
            sets["Held out, damage by a generator that training never saw"] = data.unseen
        for title, pairs in sets.items():
            tables[title] = _table(run, beside, pairs, count, tints)
    document = PairReport(tables, count).document()
    document |= {"checkpoint": run.digest, "kimg": run.images_seen / 1000, "minutes": run.seconds / 60}
    write_atomically(run.directory / "evaluation.json", json.dumps(document, indent=1).encode() + b"\n")
    write_atomically(run.directory / "evaluation.md", document["table"].encode())
    print(document["table"])
    return 0


def _comparable(run: exporting.TrainedRun, folder: Path) -> exporting.TrainedRun:
    """Another run that answers the same inputs.

    Raises:
        DataError: it was made for other ones.
    """
    other = exporting.read_run(folder)
    for name in ("degradation", "scale", "output"):
        ours, theirs = getattr(run.recipe, name), getattr(other.recipe, name)
        if ours != theirs:
            raise DataError(f"--beside {folder}: its recipe's {name} is {theirs!r}, this run's {ours!r}")
    return other


def _title(run: exporting.TrainedRun) -> str:
    recipe = run.recipe
    alone = not recipe.adversarial_weight and not recipe.perceptual_weight
    what = f"{recipe.pixel_loss.upper()} alone" if alone else run.directory.name
    return f"{what}, {run.images_seen / 1000:.0f} kimg"


def _output(run: exporting.TrainedRun, sources: np.ndarray) -> np.ndarray:
    return translate(run.nets["generator"], sources, 2**run.recipe.downsamplings)


def _table(
    run: exporting.TrainedRun, beside: Sequence[exporting.TrainedRun], pairs: Pairs, count: int, tints: np.ndarray
) -> list[PairRow]:
    recipe = run.recipe
    sources, targets = examples(pairs, count)
    rows = {"this model": _output(run, sources), **answers(recipe.degradation, sources, tints, recipe.scale)}
    rows |= {_title(other): _output(other, sources) for other in beside}
    return _rows({name: (images, targets) for name, images in rows.items()}, paired=True)


def _unpaired_tables(run: exporting.TrainedRun, pairs: Pairs, count: int) -> dict[str, list[PairRow]]:
    """Each direction's outputs against the other set, beside the untouched inputs; then what the cycle gives back."""
    assert isinstance(pairs, UnpairedSets)
    # Each image once: those that were drawn twice would lie nearer to themselves than others do.
    a, b = (pairs.shown(side, count) for side in (pairs.sources, pairs.targets))
    generator, multiple = run.nets["generator"], 2**run.recipe.downsamplings
    tables = {}
    cycles: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for there, back, sources, targets in (("a2b", "b2a", a, b), ("b2a", "a2b", b, a)):
        outputs = translate(getattr(generator, there), sources, multiple)
        shown = {"this model": (outputs, targets), "the input itself": (sources, targets)}
        tables[f"Held out, {there}"] = _rows(shown, paired=False)
        cycles[f"{there} and back"] = (translate(getattr(generator, back), outputs, multiple), sources)
    tables["Cycle: there and back, against the image itself"] = _rows(cycles, paired=True)
    return tables


def _rows(shown: Mapping[str, tuple[np.ndarray, np.ndarray]], *, paired: bool) -> list[PairRow]:
    print(f"judging {', '.join(shown)}", file=sys.stderr)
    answered = {name: images for name, (images, _) in shown.items()}
    wanted = {name: targets for name, (_, targets) in shown.items()}
    return compare_all(answered, wanted, paired=paired, perceptual=perceptual.WEIGHTS.is_file())


def find_weights(data_root: str) -> None:
    """Have perceptual losses and metrics look for their weights among the prepared sets."""
    perceptual.WEIGHTS = Path(data_root) / "hed-vgg" / "weights.npz"


def _pair_options(recipe: Recipe, seed: int) -> PairOptions:
    return PairOptions(
        size=recipe.size, load_size=recipe.load_size, scale=recipe.scale, degradation=recipe.degradation,
        mirror=recipe.mirror, rotate=recipe.rotate, shrink=recipe.shrink, seed=seed,
    )  # fmt: skip
