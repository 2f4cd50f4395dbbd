"""`python -m training evaluate`: a run, or an exported model, beside its bounds on held-out images."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from service.manifest import TensorSpec
from training import export as exporting
from training import perceptual
from training.arguments import count
from training.checkpoint import CheckpointError
from training.datasets import DataError, ImageSet, load
from training.families import FAMILIES
from training.family import Family
from training.latentspace import LatentSpace
from training.pairruns import evaluate_pairs, find_weights
from training.recipe import Recipe, RecipeError
from training.runlog import write_atomically
from training.sampler import labels_like
from training.trainer import generate
from training.unrounded import ExportedGenerator

DataOf = Callable[[exporting.TrainedRun, argparse.Namespace], ImageSet]


def evaluation_run(argv: Sequence[str], data_of: DataOf) -> int:
    """See the module.

    Args:
        data_of: the run's data set, or the one that is asked for instead.
    """
    parser = argparse.ArgumentParser(prog="python -m training evaluate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="the run's directory; the figures go there, too, and into the card on export")
    what.add_argument("--model", help="an exported version that draws: models/faces-32/6; the figures are only shown")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"), help="of the run")
    parser.add_argument(
        "--samples", type=count(1), default=5000, help="images on each side; fewer where fewer are held out"
    )
    parser.add_argument(
        "--beside", action="append", default=[], metavar="RUN", help="another run on the same pairs, in the same table"
    )
    parser.add_argument("--data", help="the data set, where it is not the one of the training")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--threads", type=count(1), default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.model:
        print(_evaluate_model(Path(args.model), args)["table"])
        return 0
    run = exporting.read_run(Path(args.run), args.checkpoint)
    if run.family.pairing != "none":
        return evaluate_pairs(run, args)
    document = _judged(
        run.nets["generator"], run.family, run.recipe, run.facts["seed"], data_of(run, args),
        run.directory.parent / "features", args,
    )  # fmt: skip
    document |= {"checkpoint": run.digest, "kimg": run.images_seen / 1000, "minutes": run.seconds / 60}
    write_atomically(run.directory / "evaluation.json", json.dumps(document, indent=1).encode() + b"\n")
    write_atomically(run.directory / "evaluation.md", document["table"].encode())
    print(document["table"])
    return 0


def _evaluate_model(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of what an exported model draws.

    Raises:
        CheckpointError: it does not draw from latents, or its manifest does not say how it was made.
    """
    generator = ExportedGenerator(folder, args.threads).eval()
    manifest = generator.manifest
    try:
        family, recipe = FAMILIES[manifest.family or ""], Recipe.from_json(manifest.provenance.recipe)
    except (KeyError, RecipeError) as error:
        raise CheckpointError(f"{folder}: its family and recipe are not ours, and give no bound ({error})") from error
    image = _image_of(generator)
    data = load(
        args.data or manifest.provenance.dataset, size=int(image.shape[1]), channels=int(image.shape[3]),
        root=Path(args.data_root),
    )  # fmt: skip
    return _judged(generator, family, recipe, manifest.provenance.seed, data, Path(args.data_root) / "features", args)


def _image_of(generator: ExportedGenerator) -> TensorSpec:
    graphs = generator.manifest.graphs.values()
    images = [tensor for graph in graphs for tensor in graph.outputs if tensor.kind == "image"]
    return max(images, key=lambda tensor: int(tensor.shape[1]))


def _judged(
    generator: nn.Module, family: Family, recipe: Recipe, seed: int, data: ImageSet, cache: Path,
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """The report on a generator in inference mode.

    Raises:
        DataError: too few images.
    """
    from training.evaluation import report, sample_count
    from training.evaluation.evaluator import NEIGHBOURS

    count = sample_count(data, args.samples)
    if count <= NEIGHBOURS:
        need = f"more than {NEIGHBOURS} --samples and {2 * NEIGHBOURS + 1} held-out images"
        raise DataError(f"needs {need}; there are {args.samples} and, in {data.name}, {len(data.test)}")
    labels = None
    if recipe.classes:
        assert data.train_labels is not None  # a conditional run's data has them
        labels = labels_like(count, data.train_labels, recipe.classes)
    return report(
        generate(generator, recipe, range(count), labels), data,
        untrained=_untrained(family, recipe, seed, count, labels), samples=args.samples, labels=labels, cache=cache,
        path_lengths=_path_lengths(generator, recipe, args.data_root),
        say=lambda line: print(line, file=sys.stderr),
    ).document()  # fmt: skip


def _path_lengths(generator: nn.Module, recipe: Recipe, data_root: str) -> Mapping[str, float]:
    """By space; none without the features' weights."""
    from training.evaluation.path_length import path_length

    find_weights(data_root)
    if not perceptual.WEIGHTS.is_file():
        print("no perceptual path length: `python -m training data hed-vgg` fetches its features", file=sys.stderr)
        return {}
    latents = LatentSpace(generator, recipe.latent_dim)
    print(f"perceptual path length in {' and '.join(latents.spaces)}", file=sys.stderr)
    return {space: path_length(latents, space, classes=recipe.classes) for space in latents.spaces}


def _untrained(family: Family, recipe: Recipe, seed: int, count: int, labels: np.ndarray | None) -> np.ndarray:
    """Images of the same nets before any step: the bound that every training must beat."""
    torch.manual_seed(seed + 1)
    generator = family.nets(recipe)["generator"]
    exporting.recompute_statistics(generator, recipe)
    return generate(generator.eval(), recipe, range(count), labels)
