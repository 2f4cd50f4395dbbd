"""A user's own images: folders, classes, zips, duplicates, splits, strictness."""

import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinyimages import pixels, png, rgb

from training.datasets import DataReport, ImageSet, load
from training.datasets.errors import BadFiles, BrokenSet, DataError, NothingUsable, UnknownSource
from training.datasets.own import held_out

MakeZip = Callable[[dict[str, bytes]], Path]


def read(path: Path, **options: object) -> tuple[ImageSet, DataReport]:
    reports: list[DataReport] = []
    options = {"size": 16, "channels": 3, **options}
    images = load(str(path), report=reports.append, **options)  # type: ignore[arg-type]
    return images, reports[0]


def rows(array: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in array}


def test_a_flat_folder_is_unlabelled_and_complete(folder: Path) -> None:
    images, report = read(folder)
    assert rows(images.train) | rows(images.test) == {pixels(i).tobytes() for i in range(20)}
    assert not rows(images.train) & rows(images.test)
    assert images.train_labels is None and images.classes == ()
    assert images.train.dtype == np.uint8 and images.train.shape[1:] == (16, 16, 3)
    assert report.clean and report.used == 20 and report.test == len(images.test) > 0


def test_nested_folders_are_classes_whatever_lies_around_them(tmp_path: Path) -> None:
    for index in range(12):
        path = tmp_path / "set" / "inner" / ("cat" if index % 2 else "dog") / "deep" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(rgb(index)))
    images, _ = read(tmp_path / "set")
    assert images.classes == ("cat", "dog")
    assert images.train_labels is not None and images.test_labels is not None
    assert images.train_labels.dtype == np.int64
    named = {pixels(i).tobytes(): "cat" if i % 2 else "dog" for i in range(12)}
    for array, labels in ((images.train, images.train_labels), (images.test, images.test_labels)):
        assert [images.classes[label] for label in labels] == [named[image.tobytes()] for image in array]


def test_images_beside_class_folders_are_named(tmp_path: Path) -> None:
    for index, name in enumerate(["a/0.png", "a/1.png", "b/2.png", "stray.png"]):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(png(rgb(index)))
    images, report = read(tmp_path / "s")
    assert report.left_out == {"no-class": ["stray.png"]} and images.classes == ("a", "b")


def test_order_names_and_copies_do_not_change_the_set(folder: Path, tmp_path: Path) -> None:
    before, _ = read(folder)
    names = sorted(folder.iterdir())
    shuffled = names.copy()
    random.Random(4).shuffle(shuffled)
    (tmp_path / "renamed").mkdir()
    for old, new in zip(names, shuffled, strict=True):
        shutil.copy(old, tmp_path / "renamed" / new.name)
    shutil.copy(names[3], tmp_path / "renamed" / "again.png")
    after, report = read(tmp_path / "renamed")
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.test, before.test)
    assert report.counts() == {"duplicate": 1}


def test_copies_never_lie_on_both_sides(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    for index in range(30):
        image = rgb(index % 10)
        (source / f"{index}.{'png' if index < 20 else 'bmp'}").write_bytes(png(image, "PNG" if index < 20 else "BMP"))
    images, report = read(source, test_fraction=0.5)
    assert report.counts() == {"duplicate": 20} and report.used == 10
    assert not rows(images.train) & rows(images.test)


def test_images_that_only_resizing_makes_equal_are_copies_too(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    for index in range(8):
        (source / f"{index}.png").write_bytes(png(Image.new("RGB", (16 + index, 16 + index), (9, 9, 9))))
    (source / "other.png").write_bytes(png(rgb(0)))
    images, report = read(source, test_fraction=0.5)
    assert report.counts() == {"duplicate": 7}
    assert not rows(images.train) & rows(images.test)


def test_an_image_keeps_its_side_when_others_come() -> None:
    digests = [f"{value:064x}" for value in np.random.default_rng(0).integers(0, 2**62, 400)]
    digests = [digest[::-1] for digest in digests]
    few, many = held_out(digests[:200], 0.2), held_out(digests, 0.2)
    assert few.tolist() == many[:200].tolist()
    assert 0.12 < many.mean() < 0.28


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_neither_side_is_empty(count: int, fraction: float) -> None:
    out = held_out([f"{value:012x}" for value in np.random.default_rng(1).integers(0, 16**12, count)], fraction)
    assert out.any() and not out.all()


def test_the_fraction_zero_holds_nothing_out(folder: Path) -> None:
    images, _ = read(folder, test_fraction=0.0)
    assert images.test.shape == (0, 16, 16, 3) and len(images.train) == 20


@pytest.fixture
def messy(folder: Path) -> Path:
    """The twenty clean images and one bad file of each kind that a folder can hold."""
    (folder / "grey.png").write_bytes(png(rgb(30).convert("L")))
    (folder / "alpha.png").write_bytes(png(rgb(31).convert("RGBA")))
    (folder / "palette.png").write_bytes(png(rgb(32).quantize(8)))
    (folder / "deep.png").write_bytes(png(Image.fromarray(pixels(33, channels=1)[..., 0].astype(np.uint16) * 257)))
    (folder / "cmyk.jpg").write_bytes(png(rgb(34).convert("CMYK"), "JPEG"))
    (folder / "wide.png").write_bytes(png(rgb(35, (20, 40))))
    (folder / "copy.png").write_bytes((folder / "04.png").read_bytes())
    (folder / "cut.png").write_bytes((folder / "05.png").read_bytes()[:300])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "README.txt").write_text("my photographs")
    (folder / ".DS_Store").write_bytes(b"clutter")
    (folder / "gone.png").symlink_to(folder / "does-not-exist.png")
    return folder


def test_bad_files_are_repaired_or_named_and_never_end_the_run(messy: Path) -> None:
    images, report = read(messy)
    assert report.repaired == {
        "grey": ["deep.png", "grey.png"],
        "alpha": ["alpha.png"],
        "palette": ["palette.png"],
        "16-bit": ["deep.png"],
        "cmyk": ["cmyk.jpg"],
        "off-size": ["wide.png"],
    }
    assert report.left_out == {
        "duplicate": ["copy.png"],
        "truncated": ["cut.png"],
        "empty": ["nothing.png"],
        "not-an-image": ["README.txt"],
        "unreadable": ["gone.png"],
    }
    assert report.used == len(images.train) + len(images.test) == 26
    crop = np.asarray(rgb(35, (20, 40)).crop((10, 0, 30, 20)).resize((16, 16), Image.Resampling.LANCZOS))
    assert crop.tobytes() in rows(images.train) | rows(images.test)
    for kind in report.counts():
        assert kind in report.text()


def test_strict_makes_them_one_error_that_names_each(messy: Path) -> None:
    with pytest.raises(BadFiles) as problem:
        read(messy, strict=True)
    for name in ("grey.png", "alpha.png", "wide.png", "copy.png", "cut.png", "README.txt", "gone.png"):
        assert name in str(problem.value)


def test_strict_is_content_with_clean_files(folder: Path) -> None:
    assert read(folder, strict=True)[1].used == 20


def test_a_set_that_is_all_grey_is_not_grey_among_colour(tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(png(rgb(index).convert("L")))
    images, report = read(tmp_path, channels=1)
    assert report.clean and images.train.shape[1:] == (16, 16, 1)
    assert read(tmp_path, channels=3)[1].clean


def test_only_when_nothing_is_usable_is_it_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(NothingUsable, match=r"a\.png"):
        read(tmp_path)


def test_a_zip_gives_the_same_set_as_its_folder(folder: Path, make_zip: MakeZip) -> None:
    path = make_zip({f"photos/{file.name}": file.read_bytes() for file in folder.iterdir()})
    assert read(path)[0].fingerprint == read(folder)[0].fingerprint


def test_a_zip_with_classes(make_zip: MakeZip) -> None:
    images, _ = read(make_zip({f"{'ab'[i % 2]}/{i}.png": png(rgb(i)) for i in range(6)}))
    assert images.classes == ("a", "b")


def test_zip_path_tricks_are_left_out_and_nothing_is_written(make_zip: MakeZip, tmp_path: Path) -> None:
    names = ["../up.png", "/root.png", "a/../../b.png", "C:\\x.png", "..\\y.png"]
    path = make_zip({name: png(rgb(index)) for index, name in enumerate(names)} | {"ok.png": png(rgb(90))})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    images, report = read(path)
    assert sorted(report.left_out["unsafe-path"]) == sorted([*names, "link.png"])
    assert len(images.train) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_zip_entry_is_one_bad_file(make_zip: MakeZip) -> None:
    path = make_zip({f"{i}.png": png(rgb(i)) for i in range(3)})
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(raw)
    _, report = read(path)
    assert report.left_out == {"unreadable": ["0.png"]} and report.used == 2


def test_a_file_too_large_to_unpack_is_a_bomb(make_zip: MakeZip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.datasets.files.MAX_FILE_BYTES", 5000)
    _, report = read(make_zip({"big.png": bytes(6000), "ok.png": png(rgb(1))}))
    assert report.left_out == {"bomb": ["big.png"]}


def test_what_is_no_zip_is_said(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK but no")
    with pytest.raises(BrokenSet, match="zip"):
        read(tmp_path / "set.zip")


def test_unknown_sources_and_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownSource, match="python -m training data mnist"):
        load("mnist", size=28, channels=1, root=tmp_path)
    with pytest.raises(UnknownSource, match="no-such-folder"):
        load("no-such-folder", size=28, channels=1, root=tmp_path)
    with pytest.raises(UnknownSource, match="public sets"):
        load("", size=28, channels=1, root=tmp_path)
    with pytest.raises(DataError, match="channels 2"):
        load("mnist", size=28, channels=2, root=tmp_path)


def test_folders_of_pairs_are_told_from_classes() -> None:
    assert "not as pairs" in DataReport("x", classes=("input", "target")).text()
    assert "not as pairs" not in DataReport("x", classes=("input", "output")).text()


def test_equal_digests_are_held_out_together_or_not_at_all():
    a, b, c = ("0" * 11 + "1" * 53, "8" * 64, "f" * 64)
    assert held_out([a, a, b], 0.0000001).tolist() == [True, True, False]
    assert held_out([a, b, b], 1.0).tolist() == [True, False, False]
    assert held_out([c], 1.0).tolist() == [False] and held_out([b, b], 0.9).tolist() == [False, False]
    assert held_out([a, b, c], 0.0).tolist() == [False] * 3
