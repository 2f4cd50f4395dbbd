"""Which input pixels an output pixel depends on, told from the ONNX graph.

For every tensor of the graph and each of height and width: its pixel i depends on no other input pixels than those from
`scale * i + low` to `scale * i + high`. A convolution widens the reach, a stride coarsens the scale, an upsampling
refines it (the arithmetic of receptive fields: Araujo, Norris and Sim, Distill 2019). What has no such bound, or is not
known to have one, raises `Whole` and says why.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from service.engine.tiling import Axis, Geometry
from service.onnxgraph import Constant, Graph, Node

_NAMES = (
    "Abs Add And BatchNormalization Cast CastLike Ceil Celu Clip DequantizeLinear Div Dropout Elu Equal Erf Exp "
    "Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity LRN LeakyRelu Less LessOrEqual Log Max Mean "
    "Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Softplus "
    "Softsign Sqrt Sub Sum Tanh ThresholdedRelu Where Xor Sin Cos Swish"
)
_ANY = frozenset(_NAMES.split())
"""Operators whose answer at a pixel depends on that pixel alone."""

_BY_CHANNEL = frozenset({"BatchNormalization", "QuantizeLinear", "DequantizeLinear"})
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_REDUCERS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare", "ArgMax"})
_GLOBAL = {
    "InstanceNormalization": "normalises over the whole picture",
    "GroupNormalization": "normalises over the whole picture",
    "GlobalAveragePool": "averages the whole picture",
    "GlobalMaxPool": "pools the whole picture",
}


class Whole(Exception):
    """The answer at a pixel depends on the whole picture, or nobody can say on how much of it."""


@dataclass(frozen=True)
class Reach:
    """Along one axis: pixel i depends on input pixels `scale * i + low` to `scale * i + high`."""

    scale: Fraction = Fraction(1)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    def window(self, low: Fraction | int, high: Fraction | int, step: Fraction | int = 1) -> "Reach":
        """The reach of a tensor whose pixel i reads this one's pixels `step * i + low` to `step * i + high`."""
        return Reach(self.scale * step, self.low + self.scale * low, self.high + self.scale * high)


@dataclass(frozen=True)
class Spatial:
    """A tensor of the graph that has height and width: on which axes, and their reach."""

    axes: tuple[int, int]
    reach: tuple[Reach, Reach]


State = Spatial | Constant | Whole
Known = Mapping[str, State]


def geometry(graph: Graph, inputs: Sequence[str], output: str) -> Geometry:
    """The geometry of a graph from NHWC pictures to an NHWC picture.

    Args:
        inputs: the names of its picture and mask inputs.
        output: the name of its picture output.
    """
    known: dict[str, State] = {
        **graph.constants,
        **{name: Spatial((1, 2), (Reach(), Reach())) for name in inputs},
    }
    align = [1, 1]
    for node in graph.nodes:
        try:
            answer: State | None = _apply(node, known)
        except Whole as why:
            answer = why
        except (KeyError, IndexError, TypeError, ValueError):
            answer = Whole(f"{node.op} in a form that is not followed")
        if isinstance(answer, Spatial):
            for axis in (0, 1):
                align[axis] = math.lcm(align[axis], answer.reach[axis].scale.numerator)
        for name in node.outputs:
            if answer is not None and name not in graph.constants:
                known[name] = answer
    end = known.get(output, Whole("its answer does not depend on the picture"))
    if not isinstance(end, Spatial):
        unknown = Axis(0, 0, 1, Fraction(1))
        return Geometry(unknown, unknown, str(end) if isinstance(end, Whole) else "its answer is constant")
    if end.axes != (1, 2):
        unknown = Axis(0, 0, 1, Fraction(1))
        return Geometry(unknown, unknown, "its answer is not in rows and columns")
    height, width = (_axis(reach, aligned) for reach, aligned in zip(end.reach, align, strict=True))
    return Geometry(height, width, mirrors=any(node.texts.get("mode") == "reflect" for node in graph.nodes))


def _axis(reach: Reach, align: int) -> Axis:
    """What the last pixel before a core's end still reads lies `high - scale` behind that end."""
    before = max(0, math.ceil(-reach.low))
    after = max(0, math.floor(reach.high - reach.scale) + 1)
    return Axis(before, after, align, 1 / reach.scale)


def _apply(node: Node, known: Known) -> State | None:
    """What a node answers; None for what is neither spatial nor constant, such as a shape.

    Raises:
        Whole: the reach has no bound, or is not known.
    """
    given = [known[name] for name in node.inputs if name in known]
    for one in given:
        if isinstance(one, Whole):
            return one
    spatial = [one for one in given if isinstance(one, Spatial)]
    if not spatial:
        return Whole("a computed constant") if given else None
    if node.domain:
        raise Whole(f"holds the operator {node.domain}.{node.op}")
    if node.op in _GLOBAL:
        raise Whole(f"{node.op} {_GLOBAL[node.op]}")
    if node.op == "Shape" or node.op == "Size":
        return None
    if node.op in _ANY:
        return _merged(node, known)
    rule = _RULES.get(node.op)
    if rule is None:
        raise Whole(f"holds {node.op}, whose reach is not known")
    return rule(node, known, spatial[0])


def _merged(node: Node, known: Known) -> Spatial:
    """Inputs pixel by pixel: the union of their reaches. A constant that has pixels of its own knows where it is."""
    spatial = []
    for name in node.inputs:
        one = known.get(name)
        if name and one is None:
            raise Whole(f"{node.op} with something computed from the picture's size")
        if isinstance(one, Spatial):
            spatial.append(one)
    first = spatial[0]
    for name in node.inputs:
        one = known.get(name)
        if isinstance(one, Constant) and node.op not in _BY_CHANNEL:
            rank = max(4, len(one.dims))
            for axis in first.axes:
                place = axis - (rank - len(one.dims))
                if place >= 0 and one.dims[place] != 1:
                    raise Whole(f"{node.op} with a constant picture, which is tied to places")
    for other in spatial[1:]:
        if other.axes != first.axes or any(a.scale != b.scale for a, b in zip(first.reach, other.reach, strict=True)):
            raise Whole(f"{node.op} joins pictures of different sizes")
    reach = [
        Reach(
            first.reach[axis].scale, min(s.reach[axis].low for s in spatial), max(s.reach[axis].high for s in spatial)
        )
        for axis in (0, 1)
    ]
    return Spatial(first.axes, (reach[0], reach[1]))


def _windowed(node: Node, known: Known, source: Spatial) -> Spatial:
    """Convolutions and pools: `step * i - pad` and the kernel's extent."""
    if source.axes != (2, 3):
        raise Whole(f"{node.op} over other axes than height and width")
    kernel = node.ints.get("kernel_shape") or getattr(known[node.inputs[1]], "dims", ())[2:]
    steps, wide = node.ints.get("strides", (1, 1)), node.ints.get("dilations", (1, 1))
    pads = node.ints.get("pads", (0, 0, 0, 0))
    auto = node.texts.get("auto_pad", "NOTSET")
    reach = []
    for axis in (0, 1):
        extent = (kernel[axis] - 1) * wide[axis]
        pad = pads[axis]
        if auto.startswith("SAME"):
            total = max(0, extent + 1 - steps[axis])  # for lengths that the stride divides
            pad = total // 2 if auto == "SAME_UPPER" else total - total // 2
        if node.op == "ConvTranspose":
            reach.append(_transposed(node, source.reach[axis], extent, pad, steps[axis], auto))
        else:
            reach.append(source.reach[axis].window(-pad, extent - pad, steps[axis]))
    return Spatial((2, 3), (reach[0], reach[1]))


def _transposed(node: Node, reach: Reach, extent: int, pad: int, step: int, auto: str) -> Reach:
    """Output pixel i is met by input pixels j with i = step * j - pad + tap."""
    if node.ints.get("output_shape") or auto not in ("NOTSET", ""):
        raise Whole("ConvTranspose to a fixed size")
    return reach.window(Fraction(pad - extent, step), Fraction(pad, step), Fraction(1, step))


def _transpose(node: Node, known: Known, source: Spatial) -> Spatial:
    order = node.ints["perm"]
    return Spatial((order.index(source.axes[0]), order.index(source.axes[1])), source.reach)


def _padded(node: Node, known: Known, source: Spatial) -> Spatial:
    mode = node.texts.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise Whole(f"Pad by {mode}")
    pads = node.ints.get("pads") or _ints(known, node.inputs, 1)
    axes = _ints(known, node.inputs, 3) if len(node.inputs) > 3 and node.inputs[3] else list(range(len(pads) // 2))
    begins = {axis % 4: pads[place] for place, axis in enumerate(axes)}
    height, width = (
        source.reach[axis].window(-begins.get(place, 0), -begins.get(place, 0))
        for axis, place in enumerate(source.axes)
    )
    return Spatial(source.axes, (height, width))


def _resized(node: Node, known: Known, source: Spatial) -> Spatial:
    """Interpolation: up to three pixels to each side of the place, more where it averages while shrinking."""
    scales = known.get(node.inputs[2] if len(node.inputs) > 2 else node.inputs[1])
    if not isinstance(scales, Constant) or scales.values is None or len(scales.values) != 4:
        raise Whole(f"{node.op} to a size that is computed")
    where = node.texts.get("coordinate_transformation_mode", "half_pixel" if node.op == "Resize" else "asymmetric")
    if where not in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
        raise Whole(f"{node.op} by {where}, which depends on the picture's size")
    taps = {"nearest": 1, "linear": 2, "cubic": 3}[node.texts.get("mode", "nearest")]
    reach = []
    for axis, place in enumerate(source.axes):
        factor = Fraction(float(scales.values[place])).limit_denominator(64)
        if factor == 1:
            reach.append(source.reach[axis])
            continue
        spread = math.ceil(taps * max(Fraction(1), 1 / factor)) if node.int_of("antialias", 0) else taps
        shift = Fraction(0) if where == "asymmetric" else (1 / factor - 1) / 2
        reach.append(source.reach[axis].window(shift - spread, shift + spread, 1 / factor))
    return Spatial(source.axes, (reach[0], reach[1]))


def _shuffled(node: Node, known: Known, source: Spatial) -> Spatial:
    block = node.int_of("blocksize", 1)
    if source.axes != (2, 3):
        raise Whole(f"{node.op} over other axes than height and width")
    if node.op == "DepthToSpace":
        height, width = (one.window(Fraction(1 - block, block), 0, Fraction(1, block)) for one in source.reach)
    else:
        height, width = (one.window(0, block - 1, block) for one in source.reach)
    return Spatial(source.axes, (height, width))


def _along(node: Node, known: Known, source: Spatial) -> Spatial:
    """Along one axis, which must not be height or width: Concat, Split, Softmax, Gather, LayerNormalization."""
    axis = node.int_of("axis", {"Softmax": -1, "LogSoftmax": -1, "LayerNormalization": -1}.get(node.op, 0)) % 4
    last = 3 if node.op == "LayerNormalization" else axis
    if any(axis <= place <= last for place in source.axes):
        raise Whole(f"{node.op} along height or width")
    if node.op == "Gather" and len(getattr(known.get(node.inputs[1]), "dims", ())) != 1:
        raise Whole("Gather that changes the rank")
    return _merged(node, known) if node.op == "Concat" else source


def _sliced(node: Node, known: Known, source: Spatial) -> Spatial:
    starts, ends = _ints(known, node.inputs, 1), _ints(known, node.inputs, 2)
    axes = _ints(known, node.inputs, 3) if len(node.inputs) > 3 and node.inputs[3] else list(range(len(starts)))
    steps = _ints(known, node.inputs, 4) if len(node.inputs) > 4 and node.inputs[4] else [1] * len(starts)
    reach = list(source.reach)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % 4 in source.axes:
            if start < 0 or step < 1 or 0 <= end < 1 << 30:
                raise Whole("Slice at places that depend on the picture's size")
            place = source.axes.index(axis % 4)
            reach[place] = reach[place].window(start, start, step)
    return Spatial(source.axes, (reach[0], reach[1]))


def _reduced(node: Node, known: Known, source: Spatial) -> Spatial:
    axes = list(node.ints.get("axes", ()))
    if node.op == "ArgMax":
        axes = [node.int_of("axis", 0)]
    elif not axes and len(node.inputs) > 1 and node.inputs[1]:
        axes = _ints(known, node.inputs, 1)
    if not axes or any(axis % 4 in source.axes for axis in axes):
        raise Whole(f"{node.op} over height or width")
    if not node.int_of("keepdims", 1):
        raise Whole(f"{node.op} that changes the rank")
    return source


def _multiplied(node: Node, known: Known, source: Spatial) -> Spatial:
    """A matrix for every pixel's channels; anything else mixes places."""
    weights = known.get(node.inputs[1])
    if isinstance(weights, Constant) and len(weights.dims) == 2 and source.axes == (1, 2):
        return source
    raise Whole(f"{node.op} over height or width (attention)")


def _ints(known: Known, names: Sequence[str], place: int) -> list[int]:
    constant = known.get(names[place])
    values = constant.ints() if isinstance(constant, Constant) else None
    if values is None:
        raise Whole("places that are computed")
    return values


_RULES: dict[str, Callable[[Node, Known, Spatial], Spatial]] = {
    "Conv": _windowed,
    "ConvTranspose": _windowed,
    **dict.fromkeys(_POOLS, _windowed),
    "Transpose": _transpose,
    "Pad": _padded,
    "Resize": _resized,
    "Upsample": _resized,
    "DepthToSpace": _shuffled,
    "SpaceToDepth": _shuffled,
    **dict.fromkeys(("Concat", "Split", "Softmax", "LogSoftmax", "Gather", "LayerNormalization"), _along),
    "Slice": _sliced,
    **dict.fromkeys(_REDUCERS, _reduced),
    "MatMul": _multiplied,
}
