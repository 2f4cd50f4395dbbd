"""Tiny runs for the training tests: every family at 8 px, real trainer, real files."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training import checkpoint
from training.families import FAMILIES
from training.family import Family
from training.recipe import Recipe
from training.runlog import RunLog
from training.trainer import Trainer, TrainOptions

torch.set_num_threads(1)

SIDE, CLASSES = 8, 3
# Families that draw images from latents; those that map images to images have tests of their own.
PAIRS = [
    (name, recipe) for name, family in FAMILIES.items() if family.pairing == "none" for recipe in ("paper", "modern")
]


def shrunk(family: str, recipe: str | Recipe = "modern", **changes) -> Recipe:
    """A recipe at a size that trains in milliseconds; everything that makes it what it is stays."""
    whole = FAMILIES[family].recipes[recipe] if isinstance(recipe, str) else recipe
    small = {
        "size": SIDE,
        "classes": CLASSES if FAMILIES[family].conditional else 0,
        "latent_dim": 8,
        "generator_width": 8,
        "discriminator_width": 8,
        "max_channels": 16,
        "batch_size": 8,
        "total_kimg": 0.08,
        # A family that grows has grown up after its first step.
        "grow_until": min(whole.grow_until, 0.1),
    }
    return whole.replaced(**{**small, **changes})


def tiny_images(recipe: Recipe, count: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Random images [N, H, W, C] uint8 and, where the recipe has classes, labels in turn."""
    shape = (count, recipe.size, recipe.size, recipe.channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return images, np.arange(count, dtype=np.int64) % recipe.classes if recipe.classes else None


def tiny_trainer(directory: Path, family: str | Family, recipe: Recipe, **given) -> Trainer:
    """A trainer over `tiny_images`; options of TrainOptions and arguments of Trainer may be given alike."""
    images, labels = tiny_images(recipe)
    options = {name: given.pop(name) for name in list(given) if name in TrainOptions.__dataclass_fields__}
    log = RunLog(directory, tensorboard=False, out=io.StringIO())
    return Trainer(
        FAMILIES[family] if isinstance(family, str) else family,
        recipe,
        given.pop("images", images),
        given.pop("labels", labels),
        log,
        TrainOptions(**options),
        **given,
    )


def spying(family: Family, spy) -> Family:
    """The family, its loss telling `spy(phase, nets, batch)` first; what the spy returns, if anything, is the loss."""

    def loss(phase, nets, batch, recipe):
        answer = spy(phase, nets, batch)
        return family.loss(phase, nets, batch, recipe) if answer is None else answer

    return replace(family, loss=loss)


def facts_of(recipe: Recipe, family: str) -> dict:
    """recipe.json as the command writes it."""
    classes = [f"class {index}" for index in range(recipe.classes)]
    data = {"name": "noise", "source": "noise", "license": "CC0-1.0", "fingerprint": "0", "classes": classes}
    return {
        "family": family,
        "recipe": recipe.to_json(),
        "data": {**data, "train": 24, "test": 0},
        "seed": 0,
        "threads": 1,
        "torch": torch.__version__,
        "commit": "unknown",
    }


def tiny_run(directory: Path, family: str, recipe: Recipe, steps: int = 2, seed: int = 0) -> Path:
    """A run's directory, trained for a few steps."""
    trainer = tiny_trainer(directory, family, recipe, seed=seed)
    for _ in range(steps):
        trainer.step()
    checkpoint.save(directory / "last.pt", trainer.state())
    (directory / "recipe.json").write_text(json.dumps(facts_of(recipe, family)))
    return directory


def flat(value, path: str = "") -> dict:
    """A nested state as one level: path -> tensor or plain value."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in flat(part, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return {k: v for index, part in enumerate(value) for k, v in flat(part, f"{path}/{index}").items()}
    return {path: value.detach().clone() if isinstance(value, torch.Tensor) else value}


def differing(one: dict, other: dict, besides: tuple[str, ...] = ("/seconds", "/commit")) -> list[str]:
    """Paths at which two states are not the same to the last bit."""
    a, b = ({k: v for k, v in flat(state).items() if k not in besides} for state in (one, other))
    assert a.keys() == b.keys()
    same = {k: torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items()}
    return [k for k, equal in same.items() if not equal]
