"""Generators built for the benchmarks: one as heavy as asked, one that goes wrong on demand."""

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from service.engine.latents import latents_from_seeds
from service.manifest import GenerateSpec, Provenance, Task, TensorSpec
from service.package import GraphDraft, ManifestDraft, write_package

OPSET = 20
LATENT_DIM = 16
SIDE = 64
BAD, ENDLESS = -50.0, 5000.0
"""A latent whose first number is below the one poisons its run; above the other, its run never ends."""
_PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
    b"\x00\x00\x00\nIDATx\x9cch\x00\x00\x00\x82\x00\x81w\xcdr\xb6\x00\x00\x00\x00IEND\xaeB`\x82"
)


def write_heavy(root: Path, cpu_ms: float, seed: int = 0) -> tuple[str, float]:
    """A generator of 64 x 64 px that costs at least so many CPU-ms an image here.

    Args:
        seed: of its weights.

    Returns:
        `name@version`, and the CPU-ms of its ONNX Runtime run alone.
    """
    layers, found_ms = 1, 0.0
    while True:
        graph = _convolutions(layers, faults=False, seed=seed)
        found_ms = _cpu_ms(graph)
        if found_ms >= cpu_ms or layers >= 512:
            return _write(root, "heavy", graph, SIDE, ["image"]), found_ms
        layers = max(layers + 1, min(2 * layers, round(1.05 * layers * cpu_ms / found_ms)))


def write_faulty(root: Path) -> str:
    """A cheap generator whose rows go wrong as BAD and ENDLESS say; `name@version`."""
    return _write(root, "faulty", _convolutions(1, faults=True, side=16, width=4), 16, ["image", "score"])


def _convolutions(layers: int, *, faults: bool, side: int = SIDE, width: int = 32, seed: int = 0) -> bytes:
    """Latent -> a square of `width` channels -> 3 x 3 convolutions -> uint8 NHWC."""
    rng, node = np.random.RandomState(seed), helper.make_node
    small = side // 8
    weights = {
        "w": rng.randn(LATENT_DIM, width * small * small) / 4,
        "spread": rng.randn(width, width, 8, 8) / np.sqrt(width),
        "out": rng.randn(3, width, 1, 1) / np.sqrt(width),
        "scale": np.array(127.5),
    } | {f"k{layer}": rng.randn(width, width, 3, 3) / np.sqrt(9 * width / 2) for layer in range(layers)}
    initializers = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([0, width, small, small], np.int64), "grid"))
    nodes, first = [], "z"
    outputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])]
    if faults:
        loop, constants = _endless()
        nodes, first = loop, "z_out"
        initializers += constants
        outputs.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1]))
        nodes += [node("Sub", ["z_out", "bad"], ["above"]), node("Slice", ["above", "at0", "at1", "at1"], ["head"])]
        nodes += [node("Log", ["head"], ["score"])]
    nodes += [
        node("MatMul", [first, "w"], ["flat"]),
        node("Reshape", ["flat", "grid"], ["folded"]),
        node("ConvTranspose", ["folded", "spread"], ["h0"], kernel_shape=[8, 8], strides=[8, 8]),
    ]
    for layer in range(layers):
        nodes += [
            node("Conv", [f"h{layer}", f"k{layer}"], [f"c{layer}"], kernel_shape=[3, 3], pads=[1] * 4),
            node("Relu", [f"c{layer}"], [f"h{layer + 1}"]),
        ]
    nodes += [
        node("Conv", [f"h{layers}", "out"], ["rgb"], kernel_shape=[1, 1]),
        node("Tanh", ["rgb"], ["squashed"]),
        node("Mul", ["squashed", "scale"], ["scaled"]),
        node("Add", ["scaled", "scale"], ["shifted"]),
        node("Cast", ["shifted"], ["bytes"], to=TensorProto.UINT8),
        node("Transpose", ["bytes"], ["image"], perm=[0, 2, 3, 1]),
    ]
    inputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", LATENT_DIM])]
    made = helper.make_graph(nodes, "generator", inputs, outputs, initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _endless() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """z -> z_out through a Loop that goes round for ever where a number of z is above ENDLESS, and not at all else."""
    node, value = helper.make_node, helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go_in"], ["go_out"]), node("Identity", ["v_in"], ["v_out"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go_in", TensorProto.BOOL, []),
            value("v_in", TensorProto.FLOAT, ["batch", LATENT_DIM]),
        ],
        [value("go_out", TensorProto.BOOL, []), value("v_out", TensorProto.FLOAT, ["batch", LATENT_DIM])],
    )
    nodes = [
        node("ReduceMax", ["z"], ["largest"], keepdims=0),
        node("Greater", ["largest", "endless"], ["go"]),
        node("Loop", ["", "go", "z"], ["z_out"], body=body),
    ]
    floats = {"endless": ENDLESS, "bad": BAD}
    constants = [numpy_helper.from_array(np.array(number, np.float32), name) for name, number in floats.items()]
    constants += [numpy_helper.from_array(np.array([at], np.int64), f"at{at}") for at in (0, 1)]
    return nodes, constants


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _cpu_ms(graph: bytes) -> float:
    """CPU-ms of one image: the least of five, for what else runs only adds."""
    session, z = _session(graph), latents_from_seeds([0], LATENT_DIM)
    took_s = []
    for _ in range(6):
        began = time.thread_time()
        session.run(None, {"z": z})
        took_s.append(time.thread_time() - began)
    return min(took_s) * 1000


def _write(root: Path, name: str, graph: bytes, side: int, outputs: list[str]) -> str:
    z = latents_from_seeds([0, 1, 2, 3], LATENT_DIM)
    answers = dict(zip(outputs, _session(graph).run(outputs, {"z": z}), strict=True))
    specs = {
        "image": TensorSpec(name="image", kind="image", dtype="uint8", shape=("batch", side, side, 3)),
        "score": TensorSpec(name="score", kind="latent", dtype="float32", shape=("batch", 1)),
    }
    latent = TensorSpec(name="z", kind="latent", dtype="float32", shape=("batch", LATENT_DIM))
    made_of = tuple(specs[output] for output in outputs)
    draft = ManifestDraft(
        name=name,
        family="benchmark",
        tasks=(Task.GENERATE,),
        graphs={"generator": GraphDraft(opset=OPSET, inputs=(latent,), outputs=made_of)},
        generate=GenerateSpec(latent_dim=LATENT_DIM),
        provenance=Provenance(recipe={}, dataset="none", images_seen=0, commit="0" * 40, seed=0),
        license="Apache-2.0",
        paper="none",
    )
    golden = {f"generator/{tensor}": array for tensor, array in {"z": z, **answers}.items()}
    write_package(root, draft, graphs={"generator": graph}, golden=golden, card=f"# {name}\n", samples_png=_PNG)
    return f"{name}@1"
