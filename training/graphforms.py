"""Graphs in forms that onnxruntime computes fast on a CPU, and the same for a row alone as for a row among others.

A softmax over channels, as palette heads have it, took a quarter of a drawing model's time at 64 px: its kernel wants
the axis last and turns the whole tensor round twice. Spread into steps it does not.

A sum over channels adds in one order where there is one row and in another where there are more, for the kernel drops
leading axes of length 1 first: one picture of some 1,400 then differed by a level between a request alone and one among
others. As a convolution with ones it adds in one order.

Measured and not kept: a transposed convolution as convolutions of its phases, which is at best no slower.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

AXES_AS_INPUT = 18
"""The operator set from which reductions take their axes as an input."""
SUMS = ("ReduceSum", "ReduceMean")

Shapes = dict[str, list[int | None]]
Constants = dict[str, np.ndarray]
Made = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]
"""Nodes that stand in another's place, and their tensors."""
Form = Callable[[onnx.NodeProto, Shapes, Constants], Made | None]


def reformed(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place; how many of its nodes were replaced."""
    if max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0) < AXES_AS_INPUT:
        return 0
    softmaxes = _replaced(model, _spread)
    return softmaxes + _replaced(model, _convolved)


def lone_sums(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that add in another order where there is one row alone."""
    shapes, constants = _shapes(model), _constants(model)
    return [node.name or node.output[0] for node in model.graph.node if _is_lone_sum(node, shapes, constants)]


def _replaced(model: onnx.ModelProto, form: Form) -> int:
    """Put what `form` makes of each node, if anything, in its place."""
    shapes, constants = _shapes(model), _constants(model)
    nodes, replaced = [], 0
    for node in model.graph.node:
        made = form(node, shapes, constants)
        if made is None:
            nodes.append(node)
            continue
        steps, tensors = made
        nodes += steps
        model.graph.initializer.extend(tensors)
        replaced += 1
    if replaced:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return replaced


def _spread(node: onnx.NodeProto, shapes: Shapes, constants: Constants) -> Made | None:
    """A softmax over an axis that is known not to be the last one: exp(x - max x) / sum of these."""
    shape = shapes.get(node.input[0]) if node.op_type == "Softmax" else None
    if shape is None:
        return None
    axis = int(_attribute(node, "axis", -1)) % len(shape)
    if axis == len(shape) - 1:
        return None
    source, target = node.input[0], node.output[0]
    largest, below, powers, total, axes = (
        f"{target}_{part}" for part in ("largest", "below", "powers", "total", "axes")
    )
    steps = [
        ("ReduceMax", [source, axes], largest), ("Sub", [source, largest], below), ("Exp", [below], powers),
        ("ReduceSum", [powers, axes], total), ("Div", [powers, total], target),
    ]  # fmt: skip
    nodes = [  # reductions keep the axis unless told otherwise
        helper.make_node(kind, inputs, [output], name=f"{node.name or target}_{kind}") for kind, inputs, output in steps
    ]
    return nodes, [numpy_helper.from_array(np.array([axis], np.int64), axes)]


def _convolved(node: onnx.NodeProto, shapes: Shapes, constants: Constants) -> Made | None:
    """A sum over the channels of rows of pictures or of sequences."""
    if not _is_lone_sum(node, shapes, constants):
        return None
    shape = shapes.get(node.input[0])
    if shape is None or len(shape) not in (3, 4) or not _attribute(node, "keepdims", 1):
        return None
    axes, channels = _axes(node, constants), shape[1]
    if axes is None or [axis % len(shape) for axis in axes] != [1] or channels is None:
        return None
    share = 1.0 if node.op_type == "ReduceSum" else 1.0 / channels
    kernel = numpy_helper.from_array(
        np.full((1, channels, *[1] * (len(shape) - 2)), share, np.float32), f"{node.output[0]}_ones"
    )
    name = f"{node.name or node.output[0]}_Conv"
    return [helper.make_node("Conv", [node.input[0], kernel.name], list(node.output), name=name)], [kernel]


def _is_lone_sum(node: onnx.NodeProto, shapes: Shapes, constants: Constants) -> bool:
    """Whether the summed axes come right after the rows, or after axes of length 1, and others remain behind them."""
    axes = _axes(node, constants) if node.op_type in SUMS else []
    shape = shapes.get(node.input[0]) if axes != [] else None
    if axes == [] or not shape or axes is None:
        return axes != [] and (axes is None or sorted(axes) != list(range(-len(axes), 0)))
    summed = {axis % len(shape) for axis in axes}
    first = min(summed)
    if first == 0 or any(length not in (None, 1) for length in shape[:first]):
        return False
    return any(axis not in summed for axis in range(first, len(shape)))  # also one of length 1, as the kernels are


def _axes(node: onnx.NodeProto, constants: Constants) -> list[int] | None:
    """[] for all; None where they are computed."""
    if len(node.input) < 2 or not node.input[1]:
        return [int(axis) for axis in _attribute(node, "axes", [])]
    found = constants.get(node.input[1])
    return None if found is None else [int(axis) for axis in found.reshape(-1)]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _constants(model: onnx.ModelProto) -> Constants:
    """The small whole-number tensors that axes may be."""
    small = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT64 and len(one.dims) <= 1]
    found = {one.name: numpy_helper.to_array(one) for one in small}
    for node in model.graph.node:
        if node.op_type == "Constant" and (value := _attribute(node, "value", None)) is not None:
            found[node.output[0]] = numpy_helper.to_array(value)
    return found


def _shapes(model: onnx.ModelProto) -> Shapes:
    """Of the tensors for which they can be inferred; None for lengths that are open."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes: Shapes = {
        value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
        if value.type.tensor_type.HasField("shape")
    }
    return shapes | {one.name: list(one.dims) for one in model.graph.initializer}
