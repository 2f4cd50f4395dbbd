"""Photographs: which are taken, how they are cut, and that no photograph lies on both sides."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinyimages import png

from training.datasets import landscapes
from training.datasets.errors import ChecksumMismatch, FetchError
from training.datasets.packages import Fetched


def photo(number: int) -> bytes:
    """A wide photograph: three one-coloured thirds of its own colours."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    for third in range(3):
        pixels[:, third * 40 : third * 40 + 40] = (number * 10, third * 100, 50)
    return png(Image.fromarray(pixels), "JPEG", quality=95)


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """Twenty photographs, with one by a named photographer among them, in a tar file."""
    names = {f"{scene}{i}": scene for scene in ("beach", "sky") for i in range(10)}
    contents = {name: photo(i) for i, name in enumerate(names)}
    path = tmp_path / "photos.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in {**contents, "beach10-somebody": photo(25)}.items():
            entry = tarfile.TarInfo(f"./usr/share/games/images/land/{name}@2x.jpg")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    digests = "".join(hashlib.sha256(contents[name]).hexdigest() for name in sorted(names))
    monkeypatch.setattr(landscapes, "NAMES", names)
    monkeypatch.setattr(landscapes, "PAYLOAD", {"images/land": hashlib.sha256(digests.encode()).hexdigest()})
    return Fetched(landscapes.PACKAGE, path, "")


def test_only_photographs_in_the_public_domain_are_named() -> None:
    assert len(landscapes.NAMES) == 178
    assert not any("-" in name or name in ("lava5", "loc0", "loc1", "loc2") for name in landscapes.NAMES)
    assert set(landscapes.NAMES.values()) == set(landscapes.CLASSES)


def test_three_squares_of_each_photograph_stay_together(fetched: Fetched) -> None:
    arrays = landscapes.build(fetched)
    train, test = arrays["train_images"], arrays["test_images"]
    assert train.shape[1:] == (128, 128, 3) and len(train) + len(test) == 60 and len(test) % 3 == 0 < len(test)
    shades = [{round(int(image[64, 64, 0]) / 10) for image in part} for part in (train, test)]
    assert not shades[0] & shades[1] and shades[0] | shades[1] == set(range(20))
    assert np.abs(train[:3, 64, 64, 1].astype(int) - [0, 100, 200]).max() <= 6
    for part in ("train", "test"):
        shade = np.round(arrays[f"{part}_images"][:, 64, 64, 0] / 10).astype(int)
        scenes = [landscapes.CLASSES[label] for label in arrays[f"{part}_labels"]]
        assert scenes == ["beach" if number < 10 else "sky" for number in shade]


def test_a_changed_or_missing_photograph_is_refused(fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(landscapes.NAMES, "sky10", "sky")
    with pytest.raises(FetchError, match="sky10"):
        landscapes.build(fetched)
    monkeypatch.delitem(landscapes.NAMES, "sky10")
    monkeypatch.setattr(landscapes, "PAYLOAD", {"images/land": "0" * 64})
    with pytest.raises(ChecksumMismatch):
        landscapes.build(fetched)


def test_patches_are_the_photograph_itself() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (720, 1440, 3), dtype=np.uint8)
    raw = png(Image.fromarray(pixels), "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(raw)))
    found = landscapes.patches(raw)
    assert found.shape == (18, 240, 240, 3)
    np.testing.assert_array_equal(found[0], whole[:240, :240])
    np.testing.assert_array_equal(found[7], whole[240:480, 240:480])  # the second row's second
    np.testing.assert_array_equal(found[17], whole[480:, 1200:])


def test_all_patches_of_a_photograph_stay_together(fetched: Fetched) -> None:
    arrays = landscapes.build_patches(fetched)
    train, test = arrays["train_images"], arrays["test_images"]
    assert len(train) + len(test) == 20 * 18 and len(test) % 18 == 0 < len(test)
    assert len(arrays["train_labels"]) == len(train)
    shades = [{round(int(image[120, 120, 0]) / 10) for image in part} for part in (train, test)]
    assert not shades[0] & shades[1]
