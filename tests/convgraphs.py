"""Random convolutional graphs from uint8 pictures to uint8 pictures, in ONNX."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


class Builder:
    """Nodes one after another on a tensor [batch, C, H, W] of float32."""

    def __init__(self, seed: int, *, inputs: tuple[str, ...] = ("image",), channels: int = 3) -> None:
        self.rng = np.random.RandomState(seed)
        self.nodes, self.constants, self.count = [], [], 0
        self.inputs = inputs
        planes = []
        for name in inputs:
            planes.append(self.add("Cast", [self.add("Transpose", [name], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT))
        self.at = planes[0] if len(planes) == 1 else self.add("Concat", planes, axis=1)
        self.at = self.add("Mul", [self.at, self.constant(np.float32(1 / 255))])
        self.channels = channels + len(inputs) - 1

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        self.count += 1
        name = f"t{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        self.count += 1
        name = f"c{self.count}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, *shape: int) -> str:
        fan = np.prod(shape[1:])
        return self.constant((self.rng.randn(*shape) * 1.6 / np.sqrt(fan)).astype(np.float32))

    def conv(self, kernel: int = 3, *, stride: int = 1, dilation: int = 1, pad: str = "zeros", out: int = 0) -> None:
        out = out or self.channels
        reach = (kernel - 1) * dilation // 2
        source = self.at
        if pad != "zeros" and reach:
            pads = self.constant(np.array([0, 0, reach, reach, 0, 0, reach, reach], np.int64))
            source, reach = self.add("Pad", [source, pads], mode=pad), 0
        weights = self.weights(out, self.channels, kernel, kernel)
        keys = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [reach] * 4}
        self.at = self.add("Conv", [source, weights], **keys)
        self.channels = out

    def activate(self) -> None:
        self.at = self.add(self.rng.choice(["Relu", "LeakyRelu", "Tanh", "Sigmoid"]), [self.at])

    def residual(self, pad: str) -> None:
        before = self.at
        self.conv(self.rng.choice([1, 3, 5]), pad=pad)
        self.activate()
        self.at = self.add("Add", [before, self.at])

    def pool(self) -> None:
        kind = self.rng.choice(["MaxPool", "AveragePool"])
        self.at = self.add(kind, [self.at], kernel_shape=[2, 2], strides=[2, 2])

    def up(self, kind: str) -> None:
        if kind == "transposed":
            weights = self.weights(self.channels, self.channels, 4, 4)
            keys = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1] * 4}
            self.at = self.add("ConvTranspose", [self.at, weights], **keys)
        elif kind == "shuffle":
            self.conv(3, out=4 * self.channels)
            self.at, self.channels = self.add("DepthToSpace", [self.at], blocksize=2, mode="CRD"), self.channels // 4
        else:
            keys = {"coordinate_transformation_mode": "half_pixel", "mode": kind}
            keys |= (
                {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if kind == "nearest" else {}
            )
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            self.at = self.add("Resize", [self.at, "", scales], **keys)

    def finish(self, scale: int = 1, channels: int = 3) -> bytes:
        self.conv(3, out=channels)
        at = self.add(
            "Add", [self.add("Mul", [self.at, self.constant(np.float32(90))]), self.constant(np.float32(128))]
        )
        at = self.add("Clip", [at, self.constant(np.float32(0)), self.constant(np.float32(255))])
        at = self.add("Cast", [self.add("Round", [at])], to=TensorProto.UINT8)
        self.nodes.append(helper.make_node("Transpose", [at], ["output"], perm=[0, 2, 3, 1]))
        ends = ["height", "width"] if scale == 1 else ["rows", "columns"]
        given = [
            helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", "height", "width", 1 if index else 3])
            for index, name in enumerate(self.inputs)
        ]
        image = helper.make_tensor_value_info("output", TensorProto.UINT8, ["batch", *ends, channels])
        graph = helper.make_graph(self.nodes, "convolutions", given, [image], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def random_graph(seed: int) -> tuple[bytes, int]:
    """A graph of a few layers, with strides, pools, skips and upsampling, and its scale: 1, 2 or 4."""
    rng = np.random.RandomState(seed)
    builder = Builder(seed)
    pad = rng.choice(["zeros", "reflect", "edge"])
    ups = ["transposed", "shuffle", "nearest", "linear", "cubic"]
    builder.conv(rng.choice([3, 5, 7]), pad=pad, out=rng.choice([3, 4, 8]))
    builder.activate()
    down = rng.randint(0, 3)
    skip = builder.at
    for _ in range(down):
        if rng.rand() < 0.5:
            builder.pool()
        else:
            builder.conv(rng.choice([3, 4, 5]) // 2 * 2 + 1, stride=2, pad=pad)
            builder.activate()
    for _ in range(rng.randint(0, 3)):
        builder.residual(pad)
    if rng.rand() < 0.4:
        builder.conv(3, dilation=2, pad=pad)
    for _ in range(down):
        builder.up(rng.choice(ups))
    if down and rng.rand() < 0.7:
        builder.at = builder.add("Add", [builder.at, skip])
    doublings = rng.choice([0, 0, 1, 2])
    for _ in range(doublings):
        builder.up(rng.choice(ups))
        builder.activate()
    return builder.finish(2**doublings), 2**doublings
