"""IDX files: the format, folders of them, single files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from tinyimages import idx_bytes, pixels

from training.datasets import load
from training.datasets.errors import BrokenSet
from training.datasets.idx import decode


def images(count: int, first: int = 0) -> np.ndarray:
    return np.stack([pixels(first + i, (8, 8), 1)[..., 0] for i in range(count)])


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5), (0, 4, 4)])
def test_decode_returns_what_was_written(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(decode(idx_bytes(array), "x"), array)
    assert np.array_equal(decode(gzip.compress(idx_bytes(array)), "x.gz"), array)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not an IDX"),
        (b"\x01\x00\x08\x01\0\0\0\0", "not an IDX"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "0x0d"),
        (idx_bytes(images(2))[:9], "header"),
        (idx_bytes(images(2))[:-1], "holds 127"),
        (idx_bytes(images(2)) + b"\0", "holds 129"),
        (gzip.compress(idx_bytes(images(2)))[:-9], "gzip"),
        (b"\x1f\x8bgarbage", "gzip"),
    ],
)
def test_damage_is_named(raw: bytes, says: str) -> None:
    with pytest.raises(BrokenSet, match=says):
        decode(raw, "file")


def write_set(folder: Path, *, packed: bool = False) -> None:
    folder.mkdir()
    content = {
        "train-images-idx3-ubyte": images(6),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "t10k-images-idx3-ubyte": images(3, 50),
        "t10k-labels-idx1-ubyte": np.array([2, 1, 0], np.uint8),
    }
    for name, array in content.items():
        raw = idx_bytes(array)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_four_files_keeps_its_split_and_order(tmp_path: Path, packed: bool) -> None:
    write_set(tmp_path / "s", packed=packed)
    found = load(str(tmp_path / "s"), size=8, channels=1)
    assert np.array_equal(found.train[..., 0], images(6)) and np.array_equal(found.test[..., 0], images(3, 50))
    assert found.train_labels is not None and found.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.test_labels is not None and found.test_labels.tolist() == [2, 1, 0]
    assert found.classes == ("0", "1", "2")


def test_a_single_file_is_split_by_content_with_its_labels(tmp_path: Path) -> None:
    array = np.concatenate([images(12), images(2)])
    (tmp_path / "mine-images-idx3-ubyte").write_bytes(idx_bytes(array))
    (tmp_path / "mine-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.arange(14, dtype=np.uint8) % 12)))
    found = load(str(tmp_path / "mine-images-idx3-ubyte"), size=8, channels=1, test_fraction=0.3)
    assert len(found.train) + len(found.test) == 12 and len(found.test)
    assert found.train_labels is not None
    for image, label in zip(found.train, found.train_labels, strict=True):
        assert np.array_equal(image[..., 0], images(12)[label])


def test_labels_that_do_not_match_are_an_error(tmp_path: Path) -> None:
    write_set(tmp_path / "s")
    (tmp_path / "s" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    with pytest.raises(BrokenSet, match=r"5.* labels for 6 images"):
        load(str(tmp_path / "s"), size=8, channels=1)


def test_resized_to_the_asked_size_and_channels(tmp_path: Path) -> None:
    write_set(tmp_path / "s")
    assert load(str(tmp_path / "s"), size=12, channels=3).train.shape == (6, 12, 12, 3)
