"""Graphs rewritten for less computation: the same values, and a version that keeps all else."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tinytraining import shrunk, tiny_run

from service.package import read_golden, verify_package
from training import export as exporting
from training.__main__ import main
from training.export import export_run, one_threaded, read_run
from training.graphforms import lone_sums, reformed


def softmax(shape, axis, opset=20):
    node = helper.make_node("Softmax", ["x"], ["y"], **({} if axis is None else {"axis": axis}))
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([node], "one", sides[:1], sides[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize(("shape", "axis"), [((2, 16, 5, 7), 1), ((3, 4, 6), -2), ((4, 3), 0), (("n", 5, 9), 1)])
def test_a_softmax_over_an_inner_axis_is_spread(shape, axis):
    model = softmax(shape, axis)
    x = np.random.RandomState(0).randn(*(2 if side == "n" else side for side in shape)).astype(np.float32) * 40
    (before,) = one_threaded(model.SerializeToString()).run(None, {"x": x})
    assert reformed(model) >= 1 and "Softmax" not in {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model)
    (after,) = one_threaded(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after.sum(axis=axis), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "model", [softmax((2, 16), 1), softmax((2, 3, 4), None), softmax((2, 3, 4), -1), softmax((2, 3, 4), 1, 17)]
)
def test_others_are_left_alone(model):
    before = model.SerializeToString()
    assert reformed(model) == 0 and model.SerializeToString() == before


def summing(op, shape, axes, keepdims=1):
    nodes = [helper.make_node(op, ["x", "axes"], ["y"], keepdims=keepdims, name="sum")]
    sides = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), helper.make_tensor_value_info("y", 1, None)]
    tensors = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
    graph = helper.make_graph(nodes, "one", sides[:1], sides[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("shape", [("n", 16, 6, 6), ("n", 5, 40)])
def test_a_sum_over_channels_adds_alike_alone_and_among_others(op, shape):
    model = summing(op, shape, [1])
    x = np.abs(np.random.RandomState(1).randn(6, *shape[1:])).astype(np.float32)
    before = one_threaded(model.SerializeToString()).run(None, {"x": x})[0]
    assert lone_sums(model) == ["sum"] and reformed(model) == 1 and not lone_sums(model)
    session = one_threaded(model.SerializeToString())
    (whole,) = session.run(None, {"x": x})
    np.testing.assert_allclose(whole, before, rtol=1e-6)
    for row in range(6):
        np.testing.assert_array_equal(session.run(None, {"x": x[row : row + 1]})[0], whole[row : row + 1])


@pytest.mark.parametrize(
    "model", [summing("ReduceSum", ("n", 16, 6), [1], 0), summing("ReduceSum", ("n", "c", 6), [1])]
)
def test_a_sum_that_stays_is_told(model):
    assert reformed(model) == 0 and lone_sums(model) == ["sum"]


def test_a_last_axis_is_summed_alike():
    assert not lone_sums(summing("ReduceMean", ("n", 64), [1])) and not lone_sums(
        summing("ReduceSum", ("n", 3, 8), [2])
    )


def test_such_a_graph_is_not_exported(tmp_path, monkeypatch):
    run = read_run(tiny_run(tmp_path, "dcgan", shrunk("dcgan", "modern").replaced(channels=3, palette=8)))
    monkeypatch.setattr(exporting, "reformed", lambda model: 0)
    with pytest.raises(exporting.ExportError, match="adds in another order where a row runs alone"):
        export_run(run, tmp_path / "models", "drawn")


@pytest.mark.parametrize(("family", "recipe"), [("progan", "modern"), ("stylegan", "features"), ("stylegan", "modern")])
def test_families_export_none(family, recipe, tmp_path):
    run = read_run(tiny_run(tmp_path, family, shrunk(family, recipe)))
    (folder,) = export_run(run, tmp_path / "models", "drawn")
    for path in folder.glob("*.onnx"):
        assert not lone_sums(onnx.load(path)), path.name


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A palette model as it was exported before."""
    home = tmp_path_factory.mktemp("plain")
    run = read_run(tiny_run(home, "dcgan", shrunk("dcgan", "modern").replaced(channels=3, palette=8)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exporting, "reformed", lambda model: 0)
        patched.setattr(exporting, "lone_sums", lambda model: [])
        (folder,) = export_run(run, home / "models", "drawn")
    return folder


def test_a_new_version_draws_the_same_and_keeps_the_rest(plain, capsys):
    assert main(["rewrite", "--model", str(plain)]) == 0
    folder = plain.parent / "2"
    assert capsys.readouterr().out.strip() == str(folder)
    before, after = (verify_package(one) for one in (plain, folder))
    for name in ("tasks", "generate", "provenance", "evaluation", "license", "paper", "family"):
        assert getattr(before, name) == getattr(after, name)
    operators = {node.op_type for node in onnx.load(folder / "generator.onnx").graph.node}
    assert "Softmax" not in operators and "Exp" in operators and "ReduceSum" not in operators
    golden = read_golden(folder, after)["generator"]
    np.testing.assert_array_equal(golden["z"], read_golden(plain, before)["generator"]["z"])
    session = onnxruntime.InferenceSession(folder / "generator.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["image"], {"z": golden["z"]})[0], golden["image"])
    card = (folder / "CARD.md").read_text()
    assert card.startswith((plain / "CARD.md").read_text().rstrip()) and "Version 1 with its graphs written" in card
    assert main(["rewrite", "--model", str(folder)]) == 1
    assert "as today's export would write them" in capsys.readouterr().err


def test_a_graph_that_answers_otherwise_is_not_written(plain, monkeypatch, capsys):
    def broken(model):
        for node in model.graph.node:
            if node.op_type == "Softmax":
                node.op_type = "Sigmoid"
                del node.attribute[:]
        return 1

    monkeypatch.setattr("training.rewriteruns.reformed", broken)
    versions = sorted(plain.parent.iterdir())
    assert main(["rewrite", "--model", str(plain)]) == 1
    assert "differs from the version before" in capsys.readouterr().err
    assert sorted(plain.parent.iterdir()) == versions


def test_export_writes_the_quick_form(tmp_path):
    run = read_run(tiny_run(tmp_path, "dcgan", shrunk("dcgan", "modern").replaced(channels=3, palette=8)))
    (folder,) = export_run(run, tmp_path / "models", "drawn")
    assert "Softmax" not in {node.op_type for node in onnx.load(folder / "generator.onnx").graph.node}
