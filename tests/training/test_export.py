"""What export refuses, what it leaves out of the files, and that the same run gives the same bytes."""

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from tinytraining import differing, shrunk, tiny_run
from torch import nn

import training
from service.manifest import TensorSpec
from service.package import read_golden, read_package
from training import checkpoint
from training.export import (
    ExportError,
    check_operators,
    prove,
    read_evaluation,
    read_run,
    recompute_statistics,
    samples_png,
    to_onnx,
)
from training.family import ExportSpec, GraphExport

Z = TensorSpec(name="z", kind="latent", dtype="float32", shape=("batch", 8))
FLOATS = TensorSpec(name="w", kind="latent", dtype="float32", shape=("batch", 8))


def made_up(*nodes, functions=()):
    """A model of one float input `z` and these nodes."""
    graph = helper.make_graph(
        list(nodes),
        "made-up",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )
    domains = {"": 20} | {node.domain: 1 for node in nodes if node.domain}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


@pytest.mark.parametrize(
    "kind", ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"]
)
def test_randomness_inside_is_refused(kind):
    model = made_up(helper.make_node(kind, ["z"], ["w"], name="dice"))
    with pytest.raises(ExportError, match=f"node 'dice' is {kind}: randomness must enter as an input"):
        check_operators(model)


def test_a_foreign_domain_is_refused():
    model = made_up(helper.make_node("Gelu", ["z"], ["w"], name="own", domain="com.microsoft"))
    with pytest.raises(ExportError, match=r"node 'own' is of domain 'com\.microsoft'"):
        check_operators(model)


def test_functions_are_refused():
    body = helper.make_node("Relu", ["z"], ["w"])
    function = helper.make_function("own", "Twice", ["z"], ["w"], [body], [helper.make_opsetid("", 20)])
    with pytest.raises(ExportError, match=r"functions \(Twice\)"):
        check_operators(made_up(helper.make_node("Relu", ["z"], ["w"]), functions=[function]))


def test_plain_operators_pass():
    check_operators(made_up(helper.make_node("Relu", ["z"], ["w"])))


class Halve(nn.Module):
    def forward(self, z):
        return z * 0.5


def proof(data: bytes, output: TensorSpec = FLOATS, module: nn.Module | None = None):
    graph = GraphExport(module or Halve(), inputs=(Z,), outputs=(output,))
    return prove(graph, data, ExportSpec(tasks=(), graphs={"generator": graph}))


def scaled(factor: float) -> bytes:
    constant = helper.make_node(
        "Constant", [], ["factor"], value=helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    )
    return made_up(constant, helper.make_node("Mul", ["z", "factor"], ["w"])).SerializeToString()


def test_a_graph_that_answers_alike_is_proven():
    inputs, outputs = proof(scaled(0.5))
    np.testing.assert_array_equal(outputs["w"], inputs["z"] * np.float32(0.5))
    assert inputs["z"].shape == (4, 8)


def test_a_graph_that_answers_otherwise_is_refused():
    with pytest.raises(ExportError, match="output 'w' at batch 1 differs from torch by up to"):
        proof(scaled(0.501))


def test_a_graph_of_another_type_or_shape_is_refused():
    cast = made_up(helper.make_node("Cast", ["z"], ["w"], to=TensorProto.FLOAT16))
    cast.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(ExportError, match=r"onnxruntime answers float16 \(1, 8\), torch float32"):
        proof(cast.SerializeToString())
    with pytest.raises(ExportError, match=r"onnxruntime answers float32 \(8, 1\), torch float32 \(1, 8\)"):
        proof(made_up(helper.make_node("Transpose", ["z"], ["w"], perm=[1, 0])).SerializeToString())
    with pytest.raises(ExportError, match="the spec says uint8"):
        proof(scaled(0.5), replace_dtype(FLOATS, "uint8"))


def replace_dtype(spec: TensorSpec, dtype: str) -> TensorSpec:
    return spec.model_copy(update={"dtype": dtype})


class Levels(nn.Module):
    def forward(self, z):
        return (z * 20 + 128).round().clamp(0, 255).to(torch.uint8)


def levels(offset: float) -> bytes:
    nodes = [
        helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        for name, value in {"gain": 20.0, "offset": offset, "low": 0.0, "high": 255.0}.items()
    ]
    nodes += [
        helper.make_node("Mul", ["z", "gain"], ["a"]),
        helper.make_node("Add", ["a", "offset"], ["b"]),
        helper.make_node("Round", ["b"], ["c"]),
        helper.make_node("Clip", ["c", "low", "high"], ["d"]),
        helper.make_node("Cast", ["d"], ["w"], to=TensorProto.UINT8),
    ]
    model = made_up(*nodes)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model.SerializeToString()


def test_images_may_differ_by_a_level_here_and_there_only():
    image = replace_dtype(FLOATS, "uint8")
    proof(levels(128.0), image, Levels())
    with pytest.raises(ExportError, match="differs from torch by up to 1"):
        proof(levels(129.0), image, Levels())  # one level, but everywhere
    with pytest.raises(ExportError, match="differs from torch by up to 100"):
        proof(levels(28.0), image, Levels())


class Dropping(nn.Module):
    """Draws in inference mode: what a careless generator might do."""

    def forward(self, z):
        return z + torch.randn_like(z)


@pytest.mark.slow
def test_a_generator_that_draws_by_itself_is_refused():
    with pytest.raises(ExportError, match="randomness must enter as an input"):
        to_onnx(GraphExport(Dropping(), inputs=(Z,), outputs=(FLOATS,)))


@pytest.mark.slow
def test_an_export_is_quiet_but_not_deaf(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(GraphExport(Halve(), inputs=(Z,), outputs=(FLOATS,)))
    told = capfd.readouterr()
    assert told.out == "" and "torchvision" not in told.err

    class Loud(nn.Module):
        def forward(self, z):
            warnings.warn("mind this", UserWarning, stacklevel=1)
            return z

    with pytest.warns(UserWarning, match="mind this"):
        to_onnx(GraphExport(Loud(), inputs=(Z,), outputs=(FLOATS,)))


@pytest.mark.slow
def test_nothing_of_this_machine_in_the_files(exported):
    run, folder = exported("cgan", "modern")
    home = Path(training.__file__).parent.parent
    for path in folder.iterdir():
        data = path.read_bytes()
        for secret in (str(home), str(run.directory), str(Path.home()), "site-packages", "/training/", ".py"):
            assert secret.encode() not in data, (path.name, secret)
    model = onnx.load(folder / "generator.onnx")
    assert not model.metadata_props and not model.doc_string
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not model.functions and {entry.domain for entry in model.opset_import} == {""}


@pytest.mark.slow
def test_what_an_export_holds(exported):
    run, folder = exported("cgan", "modern")
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "generator.onnx", "golden.npz", "CARD.md", "samples.png",
    }  # fmt: skip
    manifest = read_package(folder)
    assert (manifest.name, manifest.version) == ("cgan-modern", 1)
    assert manifest.provenance.images_seen == 16 and manifest.provenance.recipe == run.recipe.to_json()
    assert manifest.evaluation == () and manifest.license == "CC0-1.0"
    golden = read_golden(folder, manifest)["generator"]
    labels = golden["label"]
    assert labels.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]]  # weights: classes, and a mix of two
    apart = np.abs(golden["image"][:3].astype(int) - run.sample(range(3), np.arange(3)).astype(int))
    assert apart.max() <= 1
    sheet = np.asarray(Image.open(folder / "samples.png"))
    zoom = sheet.shape[1] // (10 * 10 + 2)
    # A row for each class; five truncations; three ways between seeds.
    assert sheet.shape == ((3 * 10 + 2 + 12 + 5 * 10 + 2 + 12 + 3 * 10 + 2) * zoom, (10 * 10 + 2) * zoom)
    tile = sheet[::zoom, ::zoom][2 + 10 : 2 + 10 + 8, 2 : 2 + 8]  # the second class's first: seed 10
    np.testing.assert_array_equal(tile, run.sample([10], np.array([1]))[0, :, :, 0])


def test_samples_of_an_unconditional_model(tmp_path):
    run = read_run(tiny_run(tmp_path, "dcgan", shrunk("dcgan")))
    sheet = np.asarray(Image.open(io.BytesIO(samples_png(run))))
    assert sheet.shape[2] == 3 and sheet.shape[0] % (16 * 10 + 3 * 2 + 2 * 12) == 0


# Reading a run


def test_the_average_is_what_is_read(tmp_path):
    recipe = shrunk("gan", "paper", ema_kimg=1000.0, ema_rampup=10.0)
    run = read_run(tiny_run(tmp_path, "gan", recipe, steps=3))
    state = checkpoint.load(tmp_path / "last.pt")
    found = run.nets["generator"].state_dict()
    assert all(torch.equal(found[name], value) for name, value in state["ema"].items())
    raw = {name.removeprefix("generator."): v for name, v in state["nets"].items() if name.startswith("generator.")}
    assert not all(torch.equal(found[name], value) for name, value in raw.items())
    assert not run.nets["generator"].training
    assert (run.images_seen, run.digest) == (24, checkpoint.digest(tmp_path / "last.pt"))


@pytest.mark.parametrize("family", ["gan", "dcgan", "cgan"])
def test_recomputed_statistics(tmp_path, family):
    """The same from run to run, right for the weights, and drawn from nothing global."""
    tiny_run(tmp_path, family, shrunk(family))
    torch.manual_seed(1)
    one = read_run(tmp_path).nets["generator"]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    recompute_statistics(one, shrunk(family))
    assert torch.equal(before, torch.get_rng_state())
    other = read_run(tmp_path).nets["generator"]
    assert differing({"g": one.state_dict()}, {"g": other.state_dict()}) == []
    norms = [module for module in one.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms and all(not norm.training and norm.momentum == 0.1 for norm in norms)
    seen = []
    with torch.no_grad():
        hook = norms[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        labels = torch.arange(4096) % 3 if family == "cgan" else None
        one(torch.randn(4096, 8), labels)
        hook.remove()
    axes = [axis for axis in range(seen[0].ndim) if axis != 1]
    torch.testing.assert_close(norms[0].running_mean, seen[0].mean(axes), atol=0.1, rtol=0.1)
    torch.testing.assert_close(norms[0].running_var, seen[0].var(axes), atol=0.02, rtol=0.15)


def test_generators_without_batch_norm_are_left_alone():
    net = nn.Linear(8, 8)
    recompute_statistics(net, shrunk("gan"))
    assert net.training  # nothing to recompute, nothing touched


def test_evaluation_of_other_weights_is_ignored(tmp_path):
    run = read_run(tiny_run(tmp_path, "gan", shrunk("gan")))
    assert read_evaluation(run) is None
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"checkpoint": run.digest, "samples": 6}))
    assert read_evaluation(run) == {"checkpoint": run.digest, "samples": 6}
    assert read_evaluation(replace(run, digest="0" * 64)) is None
    tiny_run(tmp_path, "gan", shrunk("gan"), steps=3)  # trained on: the figures are of the past
    assert read_evaluation(read_run(tmp_path)) is None


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"no run there \(recipe\.json is missing\)"):
        read_run(tmp_path)
    tiny_run(tmp_path, "gan", shrunk("gan"))
    with pytest.raises(checkpoint.CheckpointError, match=r"best\.pt: no such checkpoint"):
        read_run(tmp_path, "best")
    state = checkpoint.load(tmp_path / "last.pt")
    checkpoint.save(tmp_path / "last.pt", {**state, "family": "diffusion"})
    with pytest.raises(checkpoint.CheckpointError, match="family 'diffusion' is none of gan, dcgan, cgan"):
        read_run(tmp_path)
