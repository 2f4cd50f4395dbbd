"""A model's folder: written whole or not at all, and every kind of damage named."""

import json
import os
import zipfile

import numpy as np
import pytest
from tinymodels import SAMPLES_PNG, TINY_LABELS, golden_of, tiny_draft, tiny_graph, write_tiny

from service import package
from service.engine.latents import latents_from_seeds
from service.errors import FileInvalid, HashMismatch, ManifestInvalid, PackageError, VersionExists
from service.package import npz_bytes, read_golden, read_npz, read_package, verify_package, write_package


def parts(name="tiny", channels=3):
    graph = tiny_graph(channels=channels)
    return {
        "draft": tiny_draft(name, channels=channels),
        "graphs": {"generator": graph},
        "golden": golden_of(graph, {"z": latents_from_seeds([0, 1], 8)}),
        "card": "# tiny",
        "samples_png": SAMPLES_PNG,
    }


def rewrite_manifest(folder, **changes):
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps(fields))


def test_what_is_written_verifies(tmp_path):
    folder = write_tiny(tmp_path, "tiny", labels=TINY_LABELS)
    assert folder == tmp_path / "tiny" / "1"
    assert sorted(p.name for p in folder.iterdir()) == [
        "CARD.md",
        "generator.onnx",
        "golden.npz",
        "manifest.json",
        "samples.png",
    ]
    manifest = verify_package(folder)
    assert manifest.ref == "tiny@1" and manifest.generate.labels == TINY_LABELS
    assert read_golden(folder, manifest)["generator"]["image"].shape == (4, 8, 8, 3)
    assert [p.name for p in folder.parent.iterdir()] == ["1"], "no staging folder is left"


def test_versions_count_up_and_are_never_overwritten(tmp_path):
    assert write_package(tmp_path, **parts()).name == "1"
    assert write_package(tmp_path, **parts(), version=7).name == "7"
    assert write_package(tmp_path, **parts()).name == "8"
    before = (tmp_path / "tiny" / "7" / "manifest.json").read_bytes()
    with pytest.raises(VersionExists):
        write_package(tmp_path, **parts(), version=7)
    assert (tmp_path / "tiny" / "7" / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == ["1", "7", "8"]


def test_arrays_and_graph_paths(tmp_path):
    given = parts()
    path = tmp_path / "g.onnx"
    path.write_bytes(given["graphs"]["generator"])
    given["graphs"] = {"generator": path}
    folder = write_package(tmp_path / "models", **given, arrays={"w_mean": np.zeros(8, np.float32)})
    assert verify_package(folder).arrays.file == "arrays.npz"
    assert list(read_npz(folder / "arrays.npz", model="tiny")) == ["w_mean"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"graphs": {"other": b""}}, ManifestInvalid),
        ({"samples_png": b"GIF89a"}, FileInvalid),
        ({"golden": {}}, FileInvalid),
    ],
)
def test_parts_that_do_not_fit_leave_nothing(tmp_path, change, error):
    with pytest.raises(error):
        write_package(tmp_path, **{**parts(), **change})
    assert list(tmp_path.glob("tiny/*")) == [] and list(tmp_path.glob("tiny/.*")) == []


def test_a_draft_that_contradicts_itself_is_refused(tmp_path):
    given = parts()
    given["draft"] = given["draft"].model_copy(
        update={"generate": given["draft"].generate.model_copy(update={"latent_dim": 9})}
    )
    with pytest.raises(ManifestInvalid, match="latent_dim is 9"):
        write_package(tmp_path, **given)


@pytest.mark.parametrize(
    ("key", "array", "says"),
    [
        ("generator/image", None, "lacks generator/image"),
        ("generator/extra", np.zeros((2, 1), np.float32), "does not name"),
        ("generator/image", np.zeros((2, 8, 8, 3), np.float32), "must be uint8"),
        ("generator/image", np.zeros((3, 8, 8, 3), np.uint8), "shape"),
        ("generator/image", np.zeros((2, 8, 4, 3), np.uint8), "shape"),
        ("generator/z", np.zeros((0, 8), np.float32), "shape"),
        ("generator/z", np.full((2, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_golden_is_held_against_the_manifest(tmp_path, key, array, says):
    given = parts()
    golden = {name: rows for name, rows in given["golden"].items() if name != key}
    if array is not None:
        golden[key] = array
    with pytest.raises(FileInvalid, match=says):
        write_package(tmp_path, **{**given, "golden": golden})


def test_npz_bytes_depend_on_the_arrays_alone(tmp_path):
    first = {"b": np.arange(3), "a/x": np.ones((2, 2), np.float32)}
    content = npz_bytes(first)
    assert content == npz_bytes(dict(reversed(first.items())))
    assert content != npz_bytes({**first, "b": np.arange(4)})
    (tmp_path / "x.npz").write_bytes(content)
    read = read_npz(tmp_path / "x.npz", model="m")
    for name, array in first.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([object()], dtype=object))
    with pytest.raises(FileInvalid):
        read_npz(tmp_path / "x.npz", model="m")


def test_an_npz_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("service.package.NPZ_MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 100_000)
    with pytest.raises(FileInvalid, match="unpacks"):
        read_npz(tmp_path / "x.npz", model="m")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def swap_for_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda f: (f / "generator.onnx").unlink(), FileInvalid, "generator.onnx is missing"),
        (lambda f: (f / "golden.npz").unlink(), FileInvalid, "golden.npz is missing"),
        (lambda f: (f / "manifest.json").unlink(), FileInvalid, "manifest.json is missing"),
        (lambda f: swap_for_pipe(f / "manifest.json"), FileInvalid, "manifest.json is no regular file"),
        (lambda f: swap_for_pipe(f / "golden.npz"), FileInvalid, "golden.npz"),
        (lambda f: flip(f / "generator.onnx"), HashMismatch, "generator.onnx"),
        (lambda f: flip(f / "golden.npz"), HashMismatch, "golden.npz"),
        (lambda f: (f / "manifest.json").write_text("{"), ManifestInvalid, "not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), ManifestInvalid, "manifest"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), ManifestInvalid, "not JSON"),
        (lambda f: (f / "manifest.json").write_bytes(b" " * (1 << 21)), FileInvalid, "more than"),
        (lambda f: rewrite_manifest(f, schema=2), ManifestInvalid, "schema 2"),
        (lambda f: rewrite_manifest(f, version=2), ManifestInvalid, "tiny@2.*tiny/1"),
        (lambda f: rewrite_manifest(f, name="other"), ManifestInvalid, "other@1"),
        (lambda f: rewrite_manifest(f, surprise=1), ManifestInvalid, "surprise"),
        (lambda f: rewrite_manifest(f, tasks=["upscale"]), ManifestInvalid, "generate|upscale"),
        (lambda f: rewrite_manifest(f, golden={"file": "../x", "sha256": "0" * 64}), ManifestInvalid, "golden.file"),
    ],
)
def test_damage_is_named(tmp_path, damage, error, says):
    folder = write_tiny(tmp_path, "tiny")
    damage(folder)
    with pytest.raises(error, match=says) as caught:
        verify_package(folder)
    assert isinstance(caught.value, PackageError) and caught.value.model == "tiny@1"


def test_two_writers_take_two_versions(tmp_path, monkeypatch):
    """Another writer takes version 1 after we have chosen it: ours becomes 2."""
    choose, chosen = package._next_version, []

    def late(parent):
        chosen.append(choose(parent))
        if len(chosen) == 1:
            monkeypatch.setattr("service.package._next_version", choose)
            write_package(tmp_path, **parts())
            monkeypatch.setattr("service.package._next_version", late)
        return chosen[-1]

    monkeypatch.setattr("service.package._next_version", late)
    assert write_package(tmp_path, **parts()).name == "2"
    assert chosen == [1, 2]
    assert read_package(tmp_path / "tiny" / "1").version == 1
    assert verify_package(tmp_path / "tiny" / "2").version == 2
