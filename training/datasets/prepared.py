"""The prepared form of a set: `meta.json` and plain `.npy` arrays in one folder.

The folder is written beside its final place and renamed last, so a set either stands there complete or not at all.
"""

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.datasets.errors import BrokenSet

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
Arrays = Mapping[str, NDArray[Any]]


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes of the arrays, in the order of ARRAYS."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        if name in arrays:
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a fresh sibling folder that becomes `target` when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(target: Path, arrays: Arrays, meta: Mapping[str, Any], extra: Mapping[str, bytes] | None = None) -> None:
    """Write a prepared set.

    Args:
        target: the set's folder; replaced as a whole when it exists.
        arrays: train_images and test_images uint8 [N, H, W, C]; train_labels and test_labels int64 [N], or absent.
        meta: name, classes, license, source, packages; channels, size, counts and fingerprint are added here.
        extra: further files by name.
    """
    images = arrays["train_images"]
    counts = {"train": len(images), "test": len(arrays["test_images"])}
    full = {
        **meta,
        "channels": int(images.shape[3]),
        "size": int(images.shape[1]),
        "counts": counts,
        "fingerprint": fingerprint(arrays),
    }
    with replacing(target) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        for name, content in (extra or {}).items():
            (folder / name).write_bytes(content)
        text = json.dumps(full, indent=2, ensure_ascii=False) + "\n"
        (folder / "meta.json").write_text(text, encoding="utf-8")


def is_prepared(folder: Path) -> bool:
    """Whether a prepared set stands at `folder`."""
    return (folder / "meta.json").is_file() and (folder / "train_images.npy").is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """Read `meta.json`, or raise BrokenSet."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise BrokenSet(f"{folder / 'meta.json'}: unreadable ({problem}); prepare the set again") from problem
    if not isinstance(meta, dict):
        raise BrokenSet(f"{folder / 'meta.json'}: must be a JSON object; prepare the set again")
    return meta


def read(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a prepared set's arrays and meta.

    Raises:
        BrokenSet: a file is missing or unreadable, or the arrays do not have the recorded fingerprint.
    """
    meta = read_meta(folder)
    arrays: dict[str, NDArray[Any]] = {}
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        if path.is_file():
            try:
                arrays[name] = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as problem:
                raise BrokenSet(f"{path}: unreadable ({problem}); prepare the set again") from problem
    if "train_images" not in arrays or "test_images" not in arrays:
        raise BrokenSet(f"{folder}: train_images.npy or test_images.npy is missing; prepare the set again")
    if fingerprint(arrays) != meta.get("fingerprint"):
        raise BrokenSet(f"{folder}: the arrays do not have the fingerprint in meta.json; prepare the set again")
    return arrays, meta


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write an uncompressed .npz so that it is either whole or absent."""
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(buffer, **named)
    write_file(path, buffer.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
