"""A run's whole state in one file: nets, EMA, optimisers, random states, sampler position. Never pickled code.

Files are written beside their place and renamed into it, so a killed run leaves the last complete one.
"""

import hashlib
import os
import random
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 1


class CheckpointError(Exception):
    """The file is missing, unreadable, or belongs to another family, recipe or format."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, refusing pickled code.

    Raises:
        CheckpointError: no such file, unreadable, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: unreadable ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    return state


def digest(path: Path) -> str:
    """sha256 of the file: ties an evaluation to the weights that it judged."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as plain types and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def counted_from_the_end(given: Mapping[str, torch.Tensor], own: Collection[str], part: str) -> dict[str, torch.Tensor]:
    """Tensors by name; those of modules `part` take the names of `own`'s, the last one the last one's.

    The first module of `given`, which images come to, is left out.
    """
    before, after = ([name for name in names if name.startswith(part)] for names in (given, own))
    first = tuple(f"{name.rpartition('.')[0]}." for name in before[:1])
    moved = {
        new: given[old]
        for old, new in zip(reversed(before), reversed(after), strict=False)
        if not old.startswith(first)
    }
    return {name: tensor for name, tensor in given.items() if not name.startswith(part)} | moved
