"""The reader of ONNX files, held against the onnx package."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tinymodels import OPSET, golden_of, tiny_draft, tiny_graph

from service.engine.latents import latents_from_seeds
from service.errors import FileInvalid, GraphMismatch
from service.onnxfile import read_contents
from service.package import write_package

FLOAT = TensorProto.FLOAT


def saved(tmp_path, nodes, *, initializers=(), opsets=None, functions=()):
    ends = [helper.make_tensor_value_info(name, FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(initializers))
    imports = opsets or [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "g.onnx"


def test_operators_and_opset_as_onnx_reads_them(tmp_path):
    content = tiny_graph(channels=3, classes=3)
    (tmp_path / "g.onnx").write_bytes(content)
    contents = read_contents(tmp_path / "g.onnx")
    assert contents.operators == {(node.domain, node.op_type) for node in onnx.load_from_string(content).graph.node}
    assert contents.opsets == {"": OPSET}
    assert contents.faults(OPSET) == []
    assert "opset 20" in contents.faults(19)[0]


@pytest.mark.parametrize("kind", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_operators_are_found(tmp_path, kind):
    path = saved(tmp_path, [helper.make_node(kind, ["x"], ["y"])])
    assert kind in read_contents(path).faults(OPSET)[0]


def test_random_operators_are_found_within_branches(tmp_path):
    inner = [helper.make_node("RandomNormalLike", ["x"], ["r"])]
    out = [helper.make_tensor_value_info("r", FLOAT, ["batch", 2])]
    branches = {f"{arm}_branch": helper.make_graph(inner, arm, [], out) for arm in ("then", "else")}
    path = saved(tmp_path, [helper.make_node("If", ["c"], ["y"], **branches)])
    assert read_contents(path).operators == {("", "If"), ("", "RandomNormalLike")}


def test_foreign_operators_are_found_and_own_functions_are_not(tmp_path):
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("own", 1), helper.make_opsetid("com.microsoft", 1)]
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, imports[:1])
    nodes = [
        helper.make_node("F", ["x"], ["h"], domain="own"),
        helper.make_node("Gelu", ["h"], ["y"], domain="com.microsoft"),
    ]
    faults = read_contents(saved(tmp_path, nodes, opsets=imports, functions=[function])).faults(OPSET)
    assert len(faults) == 1 and "com.microsoft.Gelu" in faults[0] and "own.F" not in faults[0]


def test_random_operators_are_found_within_functions(tmp_path):
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("own", 1)]
    body = [helper.make_node("RandomNormalLike", ["a"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, imports[:1])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="own")]
    path = saved(tmp_path, nodes, opsets=imports, functions=[function])
    assert "RandomNormalLike" in read_contents(path).faults(OPSET)[0]


def test_weights_in_other_files_are_found(tmp_path):
    weight = numpy_helper.from_array(np.zeros((1, 2), np.float32), "w")
    weight.data_location = TensorProto.EXTERNAL
    path = saved(tmp_path, [helper.make_node("Add", ["x", "w"], ["y"])], initializers=[weight])
    assert read_contents(path).faults(OPSET) == ["keeps weights in other files"]


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_rubbish_is_refused_not_followed(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("rubbish") / "g.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        read_contents(path)


def test_rubbish_within_a_graph_is_refused(tmp_path):
    (tmp_path / "g.onnx").write_bytes(bytes([7 << 3 | 2, 4, 1 << 3 | 2, 2, 4 << 3 | 2, 99]))
    with pytest.raises(ValueError, match="middle of a field"):
        read_contents(tmp_path / "g.onnx")


@given(st.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_a_cut_file_never_passes_as_something_else(tmp_path_factory, size):
    whole = tiny_graph(channels=1)
    path = tmp_path_factory.mktemp("cut") / "g.onnx"
    path.write_bytes(whole[: min(size, len(whole) - 1)])
    try:
        contents = read_contents(path)
    except ValueError:
        return
    assert contents.faults(OPSET) or contents.operators <= read_operators(whole)


def read_operators(content):
    return {(node.domain, node.op_type) for node in onnx.load_from_string(content).graph.node}


@pytest.mark.parametrize("damage", ["random", "rubbish"])
def test_the_writer_refuses_what_the_server_would(tmp_path, damage):
    graph = tiny_graph(channels=3)
    golden = golden_of(graph, {"z": latents_from_seeds([0], 8)})
    bad = (
        b"rubbish"
        if damage == "rubbish"
        else saved(tmp_path, [helper.make_node("RandomNormalLike", ["x"], ["y"])]).read_bytes()
    )
    with pytest.raises(FileInvalid if damage == "rubbish" else GraphMismatch):
        write_package(
            tmp_path / "models",
            tiny_draft("tiny", channels=3),
            graphs={"generator": bad},
            golden=golden,
            card="",
            samples_png=b"\x89PNG\r\n\x1a\n",
        )
    assert list((tmp_path / "models" / "tiny").iterdir()) == []
