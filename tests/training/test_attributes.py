"""Directions that are named for attributes: read, learnt on a generator whose truth is known, written as a version."""

import json

import numpy as np
import pytest
from tinymodels import write_tiny, write_tiny_style

from service.package import read_npz, read_package, verify_package
from training import directionruns
from training.__main__ import main
from training.attributes import AttributesError, Drawer, attribute_values, learn, read_attributes, ridge
from training.datasets import prepared

LINES = [
    {"split": "train", "hair": {"color": "#000000", "id": "short"}, "glasses": {"id": "none"}, "fat": 0.1},
    {"split": "train", "hair": {"color": "#ffffff", "id": "short2"}, "glasses": {"id": "round"}, "fat": 0.5},
    {"split": "test", "hair": {"color": "#ff0000", "id": "long"}, "glasses": {"id": "none"}, "fat": 0.2},
]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("glasses.id", [0, 1, 0]),
        ("hair.color", [0, 1, 0.299]),
        ("fat", [0.1, 0.5, 0.2]),
        ("hair.id=short*", [1, 1, 0]),
    ],
)
def test_fields_are_read_as_numbers(field, values):
    np.testing.assert_allclose(attribute_values(LINES, field), values, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("hair.colour", "there is no 'colour'; there is color, id"),
        ("fat.id", "there is no 'id'; there is nothing below it"),
        ("hair", "is dict, must be a number, a text or a colour"),
        ("fat=9*", "is the same for all 3 images"),
    ],
)
def test_a_field_that_says_nothing_is_refused(field, message):
    with pytest.raises(AttributesError, match=message.replace("*", r"\*")):
        attribute_values(LINES, field)


def test_only_the_lines_of_one_split_are_read(tmp_path):
    (tmp_path / "attributes.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    assert read_attributes(tmp_path) == LINES[:2] and read_attributes(tmp_path, "test") == LINES[2:]
    with pytest.raises(AttributesError, match=r"has no attributes\.jsonl"):
        read_attributes(tmp_path / "no")


def test_ridge_finds_the_plane_and_judges_on_rows_that_it_has_not_seen():
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 6)).astype(np.float32)
    fitted, score = ridge(x, 3 * x[:, 2] - x[:, 5] + 7)
    assert score > 0.999
    np.testing.assert_allclose(fitted.weights, [0, 0, 3, 0, 0, -1], atol=0.1)
    _, guessed = ridge(x, random.normal(size=500))
    assert abs(guessed) < 0.3


def brightness(images):
    """Two features whose sum tells how light a picture is."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([flat.mean(axis=1), flat[:, 0]], axis=1)


@pytest.mark.parametrize("kind", ["z", "w"])
def test_a_direction_does_what_its_name_says(tmp_path, kind):
    folder = write_tiny(tmp_path, "tiny") if kind == "z" else write_tiny_style(tmp_path)
    manifest = read_package(folder)
    drawer = Drawer(folder, manifest)
    real = np.random.default_rng(1).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    seen = brightness(real)
    (found,) = learn(drawer, seen, {"light": seen[:, 0]}, brightness, count=600)
    assert found.vector.shape == drawer.latents([1]).shape[1:]
    assert np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-5)
    assert found.told > 0.99 and found.linear > 0.5
    assert found.less < 0 < found.more


def data_set(root):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    lines = [{"split": "train", "light": float(image.mean()), "seed": int(random.integers(9))} for image in images]
    arrays = {"train_images": images, "test_images": images[:20]}
    meta = {"name": "lit", "license": "CC0-1.0", "source": "made", "classes": []}
    extra = {"attributes.jsonl": "\n".join(map(json.dumps, lines)).encode()}
    prepared.write(root / "lit", arrays, meta, extra)


def test_a_new_version_has_the_directions_and_the_same_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(directionruns, "Lite0Features", lambda: brightness)
    data_set(tmp_path / "data")
    old = write_tiny(tmp_path / "models", "tiny", directions=("kept", "light"))
    command = ["directions", "--model", str(old), "--data", "lit", "--data-root", str(tmp_path / "data")]
    command += ["--images", "300", "--attribute", "light=light", "--attribute", "chance=seed"]
    assert main(command) == 0
    assert "chance is left out: told" in capsys.readouterr().out
    new = verify_package(old.with_name("2"))
    assert new.generate.directions == ("kept", "light")
    before, after = (read_npz(old.with_name(one) / "arrays.npz", model="tiny")["directions"] for one in "12")
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])
    assert new.graphs == read_package(old).graphs
    assert "| `light` |" in (old.with_name("2") / "CARD.md").read_text()
    assert main([*command[:-4], "--attribute", "chance=seed"]) == 1
    assert "nothing is written" in capsys.readouterr().err
    assert main([*command[:-4], "--attribute", "light"]) == 1
    assert "must be NAME=FIELD" in capsys.readouterr().err
    assert sorted(path.name for path in old.parent.iterdir()) == ["1", "2"]
