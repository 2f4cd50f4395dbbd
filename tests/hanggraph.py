"""A real graph that never answers some rows: its Loop goes round for as long as any of the batch's numbers is large."""

import numpy as np
import onnx
from fakesession import SPEC
from onnx import TensorProto, helper, numpy_helper

from service.engine.session import OrtSession

LIMIT = 1000.0
"""Beyond it the Loop never ends; below it the answer is twice the number and one, as `fakesession.answers` has it."""


def hang_graph() -> bytes:
    """Float rows in, as many out; one row above `LIMIT` and the run never comes back."""
    floats, rows = TensorProto.FLOAT, ["batch", "width"]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Identity", ["v_in"], ["v_out"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go_in", TensorProto.BOOL, []), value("v_in", floats, rows)],
        [value("go_out", TensorProto.BOOL, []), value("v_out", floats, rows)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["go"]),
        helper.make_node("Loop", ["", "go", "x"], ["looped"], body=body),
        helper.make_node("Mul", ["looped", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "one"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(number, np.float32), name)
        for name, number in (("limit", LIMIT), ("two", 2), ("one", 1))
    ]
    graph = helper.make_graph(nodes, "hang", [value("x", floats, rows)], [value("y", floats, rows)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def hang_session(folder):
    """An OrtSession of it."""
    path = folder / "hang.onnx"
    path.write_bytes(hang_graph())
    return OrtSession(path, SPEC, model="hang@1", providers=("cpu",))
