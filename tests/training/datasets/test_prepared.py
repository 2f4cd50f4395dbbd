"""The prepared form: round trip, fingerprints, and that nothing half-written is ever seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from tinyimages import pixels

from training.datasets import load, prepared
from training.datasets.errors import BrokenSet

META = {"name": "tiny", "classes": ["a", "b"], "license": "MIT", "source": "made here", "packages": []}


def arrays() -> dict[str, np.ndarray]:
    return {
        "train_images": np.stack([pixels(i) for i in range(6)]),
        "train_labels": np.array([0, 1, 0, 1, 0, 1], np.int64),
        "test_images": np.stack([pixels(10 + i) for i in range(2)]),
        "test_labels": np.array([1, 0], np.int64),
    }


def test_round_trip_and_meta(tmp_path: Path) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META, {"notes.txt": b"x"})
    found, meta = prepared.read(tmp_path / "tiny")
    assert all(np.array_equal(found[name], array) for name, array in arrays().items())
    assert meta["counts"] == {"train": 6, "test": 2} and (meta["size"], meta["channels"]) == (16, 3)
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {
        "meta.json", "notes.txt", *(f"{name}.npy" for name in prepared.ARRAYS),
    }  # fmt: skip
    images = load("tiny", size=16, channels=3, root=tmp_path)
    assert images.fingerprint == meta["fingerprint"] and images.classes == ("a", "b") and images.license == "MIT"


def test_a_set_is_found_by_its_path_too(tmp_path: Path) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META)
    assert load(str(tmp_path / "tiny"), size=16, channels=3).name == "tiny"


@pytest.mark.parametrize("name", prepared.ARRAYS)
def test_the_fingerprint_sees_every_array(name: str) -> None:
    changed = arrays()
    changed[name] = changed[name].copy()
    changed[name].reshape(-1)[-1] ^= 1
    without = {key: array for key, array in arrays().items() if key != name}
    marks = {prepared.fingerprint(each) for each in (arrays(), changed, without)}
    assert len(marks) == 3


def test_a_write_that_fails_leaves_the_old_set_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META)
    real = np.save

    def breaks(path: Path, array: np.ndarray, **options: object) -> None:
        if Path(path).name == "test_images.npy":
            raise OSError("disk full")
        real(path, array)

    monkeypatch.setattr(np, "save", breaks)
    for name in ("tiny", "new"):
        with pytest.raises(OSError, match="disk full"):
            prepared.write(tmp_path / name, {**arrays(), "train_images": arrays()["train_images"][:1]}, META)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert len(prepared.read(tmp_path / "tiny")[0]["train_images"]) == 6


def test_a_set_is_invisible_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = np.save

    def watched(path: Path, array: np.ndarray, **options: object) -> None:
        seen.append((tmp_path / "tiny").exists())
        real(path, array)

    monkeypatch.setattr(np, "save", watched)
    prepared.write(tmp_path / "tiny", arrays(), META)
    assert seen == [False] * 4 and prepared.is_prepared(tmp_path / "tiny")


def test_writing_again_replaces_everything(tmp_path: Path) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META, {"old.txt": b""})
    unlabelled = {name: array for name, array in arrays().items() if name.endswith("images")}
    prepared.write(tmp_path / "tiny", unlabelled, {**META, "classes": []})
    images = load("tiny", size=16, channels=3, root=tmp_path)
    assert images.train_labels is None and images.test_labels is None
    assert not (tmp_path / "tiny" / "old.txt").exists() and len(list(tmp_path.iterdir())) == 1


def cut_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def cut_array(folder: Path) -> None:
    (folder / "test_images.npy").write_bytes((folder / "test_images.npy").read_bytes()[:-5])


def change_array(folder: Path) -> None:
    np.save(folder / "train_labels.npy", np.zeros(6, np.int64))


def lose_array(folder: Path) -> None:
    (folder / "test_images.npy").unlink()


@pytest.mark.parametrize("damage", [cut_meta, cut_array, change_array, lose_array])
def test_damage_is_named_with_what_to_do(tmp_path: Path, damage: object) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META)
    damage(tmp_path / "tiny")  # type: ignore[operator]
    with pytest.raises(BrokenSet, match="prepare the set again"):
        load("tiny", size=16, channels=3, root=tmp_path)


def test_another_size_is_made_once_and_kept_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META)
    first = load("tiny", size=8, channels=1, root=tmp_path)
    assert first.train.shape == (6, 8, 8, 1) and first.train_labels is not None

    def never(*arguments: object) -> None:
        raise AssertionError("resized again")

    monkeypatch.setattr("training.datasets.imageset.fit_all", never)
    again = load("tiny", size=8, channels=1, root=tmp_path)
    assert np.array_equal(first.train, again.train) and first.fingerprint == again.fingerprint
    assert first.fingerprint == prepared.fingerprint(
        {
            "train_images": again.train,
            "train_labels": again.train_labels,
            "test_images": again.test,
            "test_labels": again.test_labels,
        }  # type: ignore[dict-item]
    )


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_a_broken_cache_is_made_again(tmp_path: Path, content: bytes) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META)
    first = load("tiny", size=8, channels=3, root=tmp_path)
    (tmp_path / "tiny" / "cache" / "8x3.npz").write_bytes(content)
    assert load("tiny", size=8, channels=3, root=tmp_path).fingerprint == first.fingerprint


def test_meta_is_readable_json_with_the_agreed_fields(tmp_path: Path) -> None:
    prepared.write(tmp_path / "tiny", arrays(), META)
    meta = json.loads((tmp_path / "tiny" / "meta.json").read_text())
    assert list(meta) == [*META, "channels", "size", "counts", "fingerprint"]
