"""Tiny image-to-image runs for the training tests: real trainer, real files, 16 px."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tinytraining import facts_of

from training import checkpoint
from training.datasets.degrade import DEGRADATIONS
from training.datasets.pairs import Cut, DegradedPairs, StoredPairs, UnpairedSets, examples
from training.datasets.prepared import write_npz
from training.families import FAMILIES
from training.recipe import Recipe
from training.runlog import RunLog
from training.trainer import Trainer, TrainOptions

SIDE = 16
CASES = [(name, recipe) for name, family in FAMILIES.items() if family.pairing != "none" for recipe in family.recipes]


def shrunk_pairs(family: str, recipe: str = "modern", **changes) -> Recipe:
    """A recipe at a size that trains in milliseconds; everything that makes it what it is stays."""
    small = {"size": SIDE, "generator_width": 8, "discriminator_width": 8, "max_channels": 16, "residual_blocks": 2}
    small |= {"batch_size": 4, "total_kimg": 0.08, "shrink": 1.0, "load_size": 0}
    whole = FAMILIES[family].recipes[recipe]
    small |= {"downsamplings": min(whole.downsamplings, 2), "pool": min(whole.pool, 5)}
    return whole.replaced(**{**small, **changes})


def tiny_pairs(family: str, recipe: Recipe, count: int = 12, size: int = SIDE):
    """Soft patches of random colour with the damage that the recipe asks for."""
    small = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(each).resize((SIDE, SIDE))) for each in small])
    cut = Cut(size)
    if FAMILIES[family].pairing == "unpaired":
        return UnpairedSets(images, 255 - images, cut)
    if not recipe.degradation:
        return StoredPairs(images, 255 - images, cut)
    return DegradedPairs(images, DEGRADATIONS[recipe.degradation], cut, scale=recipe.scale)


def tiny_pair_trainer(directory: Path, family: str, recipe: Recipe, **given) -> Trainer:
    """A trainer over `tiny_pairs`; options of TrainOptions and arguments of Trainer may be given alike."""
    pairs = given.pop("pairs") if "pairs" in given else tiny_pairs(family, recipe)
    options = {name: given.pop(name) for name in list(given) if name in TrainOptions.__dataclass_fields__}
    log = RunLog(directory, tensorboard=False, out=io.StringIO())
    if "examples" not in given:
        given["examples"] = examples(pairs, 4)
    return Trainer(given.pop("subject", FAMILIES[family]), recipe, pairs, None, log, TrainOptions(**options), **given)


def tiny_pair_run(directory: Path, family: str, recipe: Recipe, steps: int = 2) -> Path:
    """A run's directory, trained for a few steps."""
    trainer = tiny_pair_trainer(directory, family, recipe)
    for _ in range(steps):
        trainer.step()
    checkpoint.save(directory / "last.pt", trainer.state())
    sources, targets = trainer.examples
    write_npz(directory / "examples.npz", {"sources": sources, "targets": targets})
    (directory / "recipe.json").write_text(json.dumps(facts_of(recipe, family)))
    return directory
