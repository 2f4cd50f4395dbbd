"""The contract: what a manifest may say, and that docs/manifest.md says all of it."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from tinymodels import TINY_LABELS, write_tiny

from service.manifest import Manifest, TensorSpec, resolve_dimension

DOCS = Path(__file__).parents[2] / "docs" / "manifest.md"


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("m"), "tiny", labels=TINY_LABELS)
    return json.loads((folder / "manifest.json").read_text())


def changed(fields, path, value):
    copy = json.loads(json.dumps(fields))
    *parents, last = path.split("/")
    place = copy
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def test_it_comes_back_as_it_was_written(fields):
    manifest = Manifest.model_validate(fields)
    assert manifest.ref == "tiny@1"
    assert json.loads(manifest.model_dump_json()) == fields
    assert fields["schema"] == 1 and "schema_" not in fields


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema", 2, "schema"),
        ("name", "Upper", "name"),
        ("name", "a" * 65, "name"),
        ("name", "-a", "name"),
        ("name", "../a", "name"),
        ("version", 0, "version"),
        ("tasks", [], "tasks"),
        ("tasks", ["generate", "generate"], "repeat"),
        ("tasks", ["generate", "upscale"], "upscale is in tasks but has no block"),
        ("upscale", {"scale": 2}, "upscale has a block but is not in tasks"),
        ("tasks", ["draw"], "tasks"),
        ("graphs", {}, "graphs"),
        ("graphs/generator/file", "../generator.onnx", "file"),
        ("graphs/generator/file", "a/b.onnx", "file"),
        ("graphs/generator/file", ".hidden", "file"),
        ("graphs/generator/sha256", "0" * 63, "sha256"),
        ("graphs/generator/opset", 12, "opset"),
        ("graphs/generator/inputs/0/kind", "sound", "kind"),
        ("graphs/generator/inputs/0/dtype", "float64", "dtype"),
        ("graphs/generator/inputs/0/dtype", "int64", "float32"),
        ("graphs/generator/inputs/0/shape", [1, 8], "must be 'batch'"),
        ("graphs/generator/inputs/0/shape", ["batch", 0], "shape"),
        ("graphs/generator/inputs/0/shape", ["batch", 9], "latent_dim is 8"),
        ("graphs/generator/inputs/1/name", "z", "repeat"),
        ("graphs/generator/outputs/0/dtype", "float32", "uint8"),
        ("graphs/generator/outputs/0/shape", ["batch", 64], "uint8"),
        ("generate", None, "no block"),
        ("generate/labels", None, "both or neither"),
        ("generate/labels", [], "not empty"),
        ("generate/labels", ["a", "a"], "distinct"),
        ("generate/surprise", 1, "surprise"),
        ("generate/style_layers", 4, "no graph takes a latent for each layer"),
        ("golden", None, "golden"),
        ("golden", ..., "golden"),
        ("surprise", 1, "surprise"),
        ("provenance/images_seen", -1, "images_seen"),
    ],
)
def test_what_is_wrong_is_named(fields, path, value, says):
    with pytest.raises(ValidationError, match=says):
        Manifest.model_validate(changed(fields, path, value))


@pytest.mark.parametrize(
    ("dimension", "size"), [(3, 3), ("batch", 2), ("height", 16), ("4*height", 64), ("12*width", 60)]
)
def test_dimensions_resolve(dimension, size):
    assert resolve_dimension(dimension, {"batch": 2, "height": 16, "width": 5}) == size


@pytest.mark.parametrize("dimension", ["0*height", "height*2", "Height", "2 * height", "", "-1"])
def test_dimensions_that_mean_nothing(dimension):
    with pytest.raises(ValidationError):
        TensorSpec(name="x", kind="latent", dtype="float32", shape=("batch", dimension))
    with pytest.raises(ValueError):
        resolve_dimension(dimension, {"height": 1})


def all_fields(model):
    for name, field in model.model_fields.items():
        yield field.alias or name
        for part in re.findall(r"service\.manifest\.(\w+)", str(field.annotation)):
            inner = getattr(__import__("service.manifest", fromlist=[part]), part)
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from all_fields(inner)


def test_every_field_is_documented():
    text = DOCS.read_text()
    table = text[text.index("## Fields") : text.index("## What a graph must be")]
    documented = set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`([^`]+)`", table))))
    names = set(all_fields(Manifest))
    assert len(names) > 30
    assert sorted(names - documented) == []


def test_the_documented_example_is_a_manifest():
    example = re.search(r"```json\n(.*?)```", DOCS.read_text(), re.S)[1]
    fields = json.loads(re.sub(r'"[0-9a-f]{4}\.\.\."', f'"{"0" * 64}"', example))
    assert Manifest.model_validate(fields).ref == "fashion-28@1"


def test_the_documented_vectors_are_the_tested_ones():
    rows = re.findall(r"^\| (\d+) \| ([\d ]+) \| (\d) \| (\d) \|$", DOCS.read_text(), re.M)
    tested = (Path(__file__).parent / "engine" / "test_latents.py").read_text()
    assert len(rows) == 4
    for seed, bits, three, ten in rows:
        assert f"{seed}: ([{bits.replace(' ', ', ')}], {three}, {ten})" in tested
