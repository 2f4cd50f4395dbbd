"""Real graphs that large numbers drive out of bounds: one into a Loop that never ends, one out of memory."""

import numpy as np
import onnx
from fakesession import SPEC
from onnx import TensorProto, helper, numpy_helper

from service.engine.session import OrtSession

LIMIT = 1000.0
"""Beyond it a row goes wrong; below it the answer is twice the number and one, as `fakesession.answers` has it."""
FLOATS, ROWS = TensorProto.FLOAT, ["batch", "width"]
TOO_MANY = 2**50
"""Floats that no machine's address space holds."""

value = helper.make_tensor_value_info
node = helper.make_node


def graph(middle, constants) -> bytes:
    """x -> `large`, whether any number is beyond the limit -> the nodes in the middle -> `looked` -> y."""
    nodes = [
        node("ReduceMax", ["x"], ["largest"], keepdims=0),
        node("Greater", ["largest", "limit"], ["large"]),
        *middle,
        node("Mul", ["looked", "two"], ["doubled"]),
        node("Add", ["doubled", "one"], ["y"]),
    ]
    floats = {"limit": LIMIT, "two": 2, "one": 1}
    initializers = [numpy_helper.from_array(np.array(number, np.float32), name) for name, number in floats.items()]
    initializers += [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "graph", [value("x", FLOATS, ROWS)], [value("y", FLOATS, ROWS)], initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def session_of(path, data):
    path.write_bytes(data)
    return OrtSession(path, SPEC, model=f"{path.stem}@1", providers=("cpu",))


def hang_session(folder):
    """One row above the limit, and the run never comes back."""
    body = helper.make_graph(
        [node("Identity", ["go_in"], ["go_out"]), node("Identity", ["v_in"], ["v_out"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go_in", TensorProto.BOOL, []), value("v_in", FLOATS, ROWS)],
        [value("go_out", TensorProto.BOOL, []), value("v_out", FLOATS, ROWS)],
    )
    return session_of(folder / "hang.onnx", graph([node("Loop", ["", "large", "x"], ["looked"], body=body)], {}))


def greedy_session(folder):
    """One row above the limit, and the run asks for more memory than there is."""
    middle = [
        node("Where", ["large", "too_many", "few"], ["size"]),
        node("ConstantOfShape", ["size"], ["zeros"]),
        node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        node("Add", ["x", "zero"], ["looked"]),
    ]
    sizes = {"too_many": np.array([TOO_MANY]), "few": np.array([1])}
    return session_of(folder / "greedy.onnx", graph(middle, sizes))
