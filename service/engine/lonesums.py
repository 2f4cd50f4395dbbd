"""Sums whose last bits are others for a row alone than for a row among others.

ONNX Runtime's CPU kernels for sums and means drop leading axes of length 1 before they choose how to add. Where the
axes that are summed come right after the rows and others remain behind, a run of one row adds in another order than any
run of more (seen with 1.31 in what mixes a palette's colours: one picture of some 1,400 differed by a level). Watching
a few rows cannot find what is so rare; the graph can be read. Such graphs run every row alone.
"""

from service.onnxgraph import Graph, Node

SUMS = {"ReduceSum", "ReduceMean"}
"""Those that differ: ReduceMax, ReduceL2, ReduceSumSquare, ReduceLogSumExp, Softmax, pooling and the norms do not."""


def lone_sums(graph: Graph) -> list[str]:
    """The tensors that such sums make, in order. One whose shape or axes the file does not say counts as such."""
    return [node.outputs[0] for node in graph.nodes if node.op in SUMS and not node.domain and _differs(node, graph)]


def _differs(node: Node, graph: Graph) -> bool:
    axes = _axes(node, graph)
    if not axes:
        return axes is None  # over everything, also over the rows: they are watched for that
    shape = graph.shapes.get(node.inputs[0])
    if shape is None and node.inputs[0] in graph.constants:
        shape = graph.constants[node.inputs[0]].dims
    if not shape:
        return not _are_last(axes)
    summed = {axis % len(shape) for axis in axes}
    first = min(summed)
    if first == 0 or any(length not in (None, 1) for length in shape[:first]):
        return False  # over the rows, or with more than the rows before: the leading axes never vanish
    return any(axis not in summed for axis in range(first, len(shape)))  # also one of length 1, as the kernels are


def _are_last(axes: list[int]) -> bool:
    """Whether they are the last ones by how they are written, whatever the shape."""
    return sorted(axes) == list(range(-len(axes), 0))


def _axes(node: Node, graph: Graph) -> list[int] | None:
    """Its axes, [] for all; None where they are computed."""
    if node.ints.get("axes"):
        return list(node.ints["axes"])
    if len(node.inputs) < 2 or not node.inputs[1]:
        return []
    constant = graph.constants.get(node.inputs[1])
    return None if constant is None else constant.ints()
