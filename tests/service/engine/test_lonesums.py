"""What a row alone adds in another order is found in the graph, as ONNX Runtime's kernels have it, and runs alone."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine.lonesums import lone_sums
from service.onnxgraph import read_graph

ROWS = 6


def summing(op, axes, shape, path, *, told=True, batch="n"):
    """A graph of one sum or mean over a doubled input, so that only `value_info` tells its shape."""
    doubled = helper.make_tensor_value_info("doubled", TensorProto.FLOAT, [batch, *shape])
    nodes = [helper.make_node("Add", ["x", "x"], ["doubled"])]
    tensors = []
    if axes is None:
        nodes.append(helper.make_node(op, ["doubled"], ["y"]))
    else:
        nodes.append(helper.make_node(op, ["doubled", "axes"], ["y"]))
        tensors.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
    graph = helper.make_graph(
        nodes, "sums", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors, value_info=[doubled] if told else [],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def differs(path, shape):
    """Whether any row alone has other bits than among others."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.abs(np.random.RandomState(0).randn(ROWS, *shape)).astype(np.float32)
    (whole,) = session.run(None, {"x": x})
    return any(
        session.run(None, {"x": x[row : row + 1]})[0].tobytes() != whole[row : row + 1].tobytes() for row in range(ROWS)
    )


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize(
    ("axes", "shape", "found"),
    [
        ([1], (16, 32, 32), True), ([1], (16, 700), True), ([-3], (16, 8, 8), True), ([2], (1, 16, 300), True),
        ([1], (64,), False), ([-1], (16, 64), False), ([2, 3], (32, 16, 16), False), ([1, 2, 3], (8, 8, 8), False),
        ([2], (3, 16, 300), False), ([1], (16, 1, 1), True),
    ],
)  # fmt: skip
def test_it_is_found_where_the_kernels_have_it(op, axes, shape, found, tmp_path):
    path = summing(op, axes, shape, tmp_path / "one.onnx")
    assert (lone_sums(read_graph(path)) == ["y"]) is found
    assert differs(path, shape) is found


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"])
def test_others_neither_differ_nor_are_found(op, tmp_path):
    path = summing(op, [1], (16, 32, 32), tmp_path / "one.onnx")
    assert not lone_sums(read_graph(path)) and not differs(path, (16, 32, 32))


@pytest.mark.parametrize(
    ("axes", "found"), [([1], True), ([-2], True), ([-1], False), ([-2, -1], False), (None, False)]
)
def test_without_a_shape_only_the_last_axes_are_trusted(axes, found, tmp_path):
    path = summing("ReduceSum", axes, (16, 8), tmp_path / "one.onnx", told=False)
    assert bool(lone_sums(read_graph(path))) is found


def test_rows_of_a_fixed_number_are_no_rows(tmp_path):
    assert not lone_sums(read_graph(summing("ReduceSum", [1], (16, 8), tmp_path / "one.onnx", batch=4)))


def test_no_shipped_model_has_one():
    paths = sorted(Path("models").glob("*/*/*.onnx"))
    assert len(paths) >= 20
    assert {str(path): lone_sums(read_graph(path)) for path in paths} == {str(path): [] for path in paths}
