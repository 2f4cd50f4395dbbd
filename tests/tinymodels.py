"""Tiny real models: ONNX generators of a few kB, written through `service.package` as any export is."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from convgraphs import Builder
from onnx import TensorProto, helper, numpy_helper

from service.engine.latents import latents_from_seeds
from service.manifest import GenerateSpec, Provenance, Task, TensorSpec, TranslateSpec, UpscaleSpec
from service.package import GraphDraft, ManifestDraft, write_package

OPSET = 20
TINY_LABELS = ("Circle", "Square", "Triangle")
SAMPLES_PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
    b"\x00\x00\x00\nIDATx\x9cch\x00\x00\x00\x82\x00\x81w\xcdr\xb6\x00\x00\x00\x00IEND\xaeB`\x82"
)


def tiny_graph(
    *,
    channels: int,
    latent_dim: int = 8,
    classes: int = 0,
    side: int = 8,
    seed: int = 0,
    poison: bool = False,
    weighed: bool = False,
) -> bytes:
    """A generator of two layers with a transposed convolution: float latent in, uint8 NHWC image out.

    Args:
        weighed: the label is a weight for each class rather than an index.
        poison: adds a float32 output `score`, the root of the latent's first number: NaN where it is negative. (Not the
            logarithm, whose last bits follow the place in the batch on the CPU.)
    """
    rng = np.random.RandomState(seed)
    half, width = side // 2, 6
    weights = {
        "w1": rng.randn(latent_dim, width * half * half) / np.sqrt(latent_dim),
        "b1": rng.randn(width * half * half) * 0.1,
        "w2": rng.randn(width, channels, 4, 4) / np.sqrt(width * 4),
        "b2": rng.randn(channels) * 0.1,
        "scale": np.array(127.5),
    }
    if classes:
        weights["embedding"] = rng.randn(classes, latent_dim)
    initializers = [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([0, width, half, half], np.int64), "folded"))
    nodes, inputs, first = [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", latent_dim])], "z"
    outputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, channels])]
    if classes:
        shape = (TensorProto.FLOAT, ["batch", classes]) if weighed else (TensorProto.INT64, ["batch"])
        inputs.append(helper.make_tensor_value_info("label", *shape))
        embed = ("MatMul", ["label", "embedding"]) if weighed else ("Gather", ["embedding", "label"])
        nodes += [helper.make_node(*embed, ["embedded"]), helper.make_node("Add", ["z", "embedded"], ["joined"])]
        first = "joined"
    nodes += [
        helper.make_node("Gemm", [first, "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Reshape", ["a1", "folded"], ["grid"]),
        helper.make_node(
            "ConvTranspose", ["grid", "w2", "b2"], ["h2"], kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("Tanh", ["h2"], ["a2"]),
        helper.make_node("Mul", ["a2", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "scale"], ["shifted"]),
        helper.make_node("Round", ["shifted"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["image"], perm=[0, 2, 3, 1]),
    ]
    if poison:
        initializers.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
        nodes += [
            helper.make_node("Gather", ["z", "zero"], ["head"], axis=1),
            helper.make_node("Sqrt", ["head"], ["score"]),
        ]
        outputs.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1]))
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_draft(
    name: str,
    *,
    channels: int,
    latent_dim: int = 8,
    labels: tuple[str, ...] | None = None,
    side: int = 8,
    weighed: bool = False,
    directions: tuple[str, ...] = (),
) -> ManifestDraft:
    """The manifest that fits `tiny_graph`'s."""
    inputs = [TensorSpec(name="z", kind="latent", dtype="float32", shape=("batch", latent_dim))]
    if labels:
        dtype, shape = ("float32", ("batch", len(labels))) if weighed else ("int64", ("batch",))
        inputs.append(TensorSpec(name="label", kind="label", dtype=dtype, shape=shape))
    image = TensorSpec(name="image", kind="image", dtype="uint8", shape=("batch", side, side, channels))
    return ManifestDraft(
        name=name,
        family="tiny",
        tasks=(Task.GENERATE,),
        graphs={"generator": GraphDraft(opset=OPSET, inputs=tuple(inputs), outputs=(image,))},
        generate=GenerateSpec(latent_dim=latent_dim, labels=labels, directions=directions),
        provenance=Provenance(recipe={}, dataset="none", images_seen=0, commit="0" * 40, seed=0),
        license="Apache-2.0",
        paper="none",
    )


def golden_of(graph: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime answers for these inputs, keyed as golden.npz is."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(None, dict(inputs)), strict=True))
    return {f"generator/{name}": array for name, array in {**inputs, **answers}.items()}


def write_tiny(
    root: Path,
    name: str,
    *,
    channels: int = 3,
    labels: tuple[str, ...] | None = None,
    latent_dim: int = 8,
    side: int = 8,
    seed: int = 0,
    version: int | None = None,
    weighed: bool = False,
    directions: tuple[str, ...] = (),
) -> Path:
    """Write one version of a tiny generator; other weights for every `seed`. `weighed`: see `tiny_graph`."""
    shape = {"channels": channels, "latent_dim": latent_dim, "side": side}
    graph = tiny_graph(**shape, classes=len(labels or ()), seed=seed, weighed=weighed)
    inputs: dict[str, np.ndarray] = {"z": latents_from_seeds([0, 1, 2, 3], latent_dim)}
    if labels:
        inputs["label"] = np.arange(4, dtype=np.int64) % len(labels)
        if weighed:
            inputs["label"] = np.eye(len(labels), dtype=np.float32)[inputs["label"]]
    vectors = np.random.RandomState(7).randn(len(directions), latent_dim).astype(np.float32)
    return write_package(
        root,
        tiny_draft(name, labels=labels, weighed=weighed, directions=directions, **shape),
        graphs={"generator": graph},
        arrays={"directions": vectors} if directions else None,
        golden=golden_of(graph, inputs),
        card=f"# {name}\n",
        samples_png=SAMPLES_PNG,
        version=version,
    )


def picture_graph(
    *, scale: int = 1, mask: bool = False, whole: bool = False, channels: int = 3, seed: int = 0
) -> bytes:
    """A picture to a picture, `scale` times its size.

    Args:
        mask: takes a second input `mask`.
        whole: normalises over the whole picture, so that tiles would show.
    """
    builder = Builder(seed, inputs=("image", "mask") if mask else ("image",))
    builder.conv(3, out=8, pad="reflect")
    builder.activate()
    if whole:
        ones, zeros = builder.constant(np.ones(8, np.float32)), builder.constant(np.zeros(8, np.float32))
        builder.at = builder.add("InstanceNormalization", [builder.at, ones, zeros])
    builder.conv(3, stride=2 if scale == 1 else 1)
    builder.activate()
    for _ in range(1 if scale == 1 else scale.bit_length() - 1):
        builder.up("shuffle")
    return builder.finish(scale, channels)


def write_picture_model(
    root: Path,
    name: str,
    task: Task,
    *,
    scale: int = 1,
    whole: bool = False,
    channels: int = 3,
    translate: TranslateSpec | None = None,
    alpha: str = "lanczos",
    seed: int = 0,
) -> Path:
    """Write a tiny model of `Task.TRANSLATE` (which halves and doubles: multiples of 2) or `Task.UPSCALE`."""
    spec = translate or TranslateSpec(multiple=2)
    masked = task is Task.TRANSLATE and spec.mask is not None
    graph = picture_graph(scale=scale, mask=masked, whole=whole, channels=channels, seed=seed)
    golden = {"image": np.random.RandomState(0).randint(0, 256, (2, 12, 12, 3)).astype(np.uint8)}
    inputs = [TensorSpec(name="image", kind="image", dtype="uint8", shape=("batch", "height", "width", 3))]
    if masked:
        golden["mask"] = np.zeros((2, 12, 12, 1), np.uint8)
        inputs.append(TensorSpec(name="mask", kind="mask", dtype="uint8", shape=("batch", "height", "width", 1)))
    ends = ("height", "width") if scale == 1 else (f"{scale}*height", f"{scale}*width")
    output = TensorSpec(name="output", kind="image", dtype="uint8", shape=("batch", *ends, channels))
    draft = ManifestDraft(
        name=name,
        family="tiny",
        tasks=(task,),
        graphs={"generator": GraphDraft(opset=OPSET, inputs=tuple(inputs), outputs=(output,))},
        translate=spec if task is Task.TRANSLATE else None,
        upscale=UpscaleSpec(scale=scale, alpha=alpha) if task is Task.UPSCALE else None,
        provenance=Provenance(recipe={}, dataset="none", images_seen=0, commit="0" * 40, seed=0),
        license="Apache-2.0",
        paper="none",
    )
    return write_package(
        root,
        draft,
        graphs={"generator": graph},
        golden=golden_of(graph, golden),
        card=f"# {name}\n",
        samples_png=SAMPLES_PNG,
    )


def write_picture_models(root: Path) -> None:
    """`tiny-paint` (translate), `tiny-repair` (with a mask), `tiny-style` (takes pictures whole), `tiny-fixed` (24x16
    only), `tiny-keep` (keeps transparency), `tiny-x2`, `tiny-x4` and `tiny-x2-keep` (upscale)."""
    write_picture_model(root, "tiny-paint", Task.TRANSLATE)
    repair = TranslateSpec(multiple=2, mask="required")
    write_picture_model(root, "tiny-repair", Task.TRANSLATE, translate=repair, seed=1)
    write_picture_model(root, "tiny-style", Task.TRANSLATE, whole=True, seed=2)
    write_picture_model(root, "tiny-fixed", Task.TRANSLATE, translate=TranslateSpec(size=(16, 24)), seed=3)
    keep = TranslateSpec(multiple=2, alpha="keep")
    write_picture_model(root, "tiny-keep", Task.TRANSLATE, translate=keep, seed=4)
    write_picture_model(root, "tiny-x2", Task.UPSCALE, scale=2, seed=5)
    write_picture_model(root, "tiny-x4", Task.UPSCALE, scale=4, seed=6)
    write_picture_model(root, "tiny-x2-keep", Task.UPSCALE, scale=2, alpha="keep", seed=7)


STYLE_DIM, STYLE_LAYERS, STYLE_NOISE = 6, 3, 5


def style_graphs(*, latent_dim: int = 8, classes: int = 0, noise: bool = True, side: int = 8) -> dict[str, bytes]:
    """`mapping` (z and perhaps a label to w) and `synthesis` (w for each layer and perhaps noise to the image)."""
    rng = np.random.RandomState(5)
    pixels = side * side * 3
    mapping_nodes, mapping_inputs, first = [], [("z", TensorProto.FLOAT, ["batch", latent_dim])], "z"
    weights = {"m": rng.randn(latent_dim, STYLE_DIM), "n": rng.randn(STYLE_DIM)}
    if classes:
        weights["embedding"] = rng.randn(classes, latent_dim)
        mapping_inputs.append(("label", TensorProto.INT64, ["batch"]))
        mapping_nodes += [
            helper.make_node("Gather", ["embedding", "label"], ["embedded"]),
            helper.make_node("Add", ["z", "embedded"], ["joined"]),
        ]
        first = "joined"
    mapping_nodes += [helper.make_node("Gemm", [first, "m", "n"], ["h"]), helper.make_node("LeakyRelu", ["h"], ["w"])]
    mapping = _model(mapping_nodes, mapping_inputs, [("w", TensorProto.FLOAT, ["batch", STYLE_DIM])], weights)
    wide = STYLE_LAYERS * STYLE_DIM
    weights = {"a": rng.randn(wide, pixels) / 4, "b": rng.randn(pixels), "scale": np.array(127.5)}
    inputs = [("styles", TensorProto.FLOAT, ["batch", STYLE_LAYERS, STYLE_DIM])]
    nodes, last = (
        [helper.make_node("Flatten", ["styles"], ["flat"]), helper.make_node("Gemm", ["flat", "a", "b"], ["x"])],
        "x",
    )
    if noise:
        weights["c"] = rng.randn(STYLE_NOISE, pixels) / 4
        inputs.append(("noise", TensorProto.FLOAT, ["batch", STYLE_NOISE]))
        nodes += [helper.make_node("MatMul", ["noise", "c"], ["y"]), helper.make_node("Add", ["x", "y"], ["sum"])]
        last = "sum"
    nodes += [
        helper.make_node("Tanh", [last], ["t"]),
        helper.make_node("Mul", ["t", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "scale"], ["shifted"]),
        helper.make_node("Round", ["shifted"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["bytes", "shape"], ["image"]),
    ]
    shape = numpy_helper.from_array(np.array([0, side, side, 3], np.int64), "shape")
    synthesis = _model(nodes, inputs, [("image", TensorProto.UINT8, ["batch", side, side, 3])], weights, extra=(shape,))
    return {"mapping": mapping, "synthesis": synthesis}


def encoder_graph(wide: tuple[int, ...], *, passes: bool, side: int = 8) -> bytes:
    """A picture to w or w+ as `style_graphs` draws them, by the inverse of what is linear in it.

    Args:
        passes: goes on from a latent and what it drew.
    """
    rng = np.random.RandomState(5)
    pixels = side * side * 3
    rng.randn(8, STYLE_DIM), rng.randn(STYLE_DIM)  # the mapping's
    inverse = np.linalg.pinv(rng.randn(STYLE_LAYERS * STYLE_DIM, pixels) / 4) / 127.5
    bias = rng.randn(pixels)
    if len(wide) == 1:  # the mean over layers
        inverse = inverse.reshape(pixels, STYLE_LAYERS, STYLE_DIM).mean(axis=1)
    weights = {"inverse": inverse, "offset": 127.5 * (1 + np.tanh(bias))}
    inputs = [("picture", TensorProto.UINT8, ["batch", side, side, 3])]
    nodes = [
        helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
    ]
    base = "offset"
    if passes:
        inputs += [
            ("drawn", TensorProto.UINT8, ["batch", side, side, 3]),
            ("before", TensorProto.FLOAT, ["batch", *wide]),
        ]
        nodes += [
            helper.make_node("Cast", ["drawn"], ["drawn_float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["drawn_float"], ["drawn_flat"]),
        ]
        base = "drawn_flat"
    nodes += [
        helper.make_node("Sub", ["flat", base], ["left"]),
        helper.make_node("MatMul", ["left", "inverse"], ["step"]),
        helper.make_node("Reshape", ["step", "shape"], ["shaped" if passes else "code"]),
    ]
    if passes:
        nodes.append(helper.make_node("Add", ["before", "shaped"], ["code"]))
    shape = numpy_helper.from_array(np.array([0, *wide], np.int64), "shape")
    return _model(nodes, inputs, [("code", TensorProto.FLOAT, ["batch", *wide])], weights, extra=(shape,))


def _model(nodes, inputs, outputs, weights, extra=()) -> bytes:  # type: ignore[no-untyped-def]
    initializers = [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()]
    ends = ([helper.make_tensor_value_info(*one) for one in side] for side in (inputs, outputs))
    graph = helper.make_graph(nodes, "tiny", *ends, [*initializers, *extra])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_tiny_style(
    root: Path,
    name: str = "tiny-w",
    *,
    labels: tuple[str, ...] | None = None,
    noise: bool = True,
    arrays: Mapping[str, np.ndarray] | None = None,
    directions: tuple[str, ...] = (),
    encoder: str | None = None,
) -> Path:
    """Write a model with a space of styles, 8x8x3; its mean w is 0.1, 0.2, ...

    Args:
        directions: names of as many random directions.
        encoder: `w` or `w+`, its space, or `passes`: one of w+ that sees what the last pass drew.
    """
    graphs = style_graphs(classes=len(labels or ()), noise=noise)
    random, golden = np.random.RandomState(0), {}
    feeds: dict[str, dict[str, np.ndarray]] = {
        "mapping": {"z": latents_from_seeds(range(4), 8)},
        "synthesis": {"styles": random.randn(4, STYLE_LAYERS, STYLE_DIM).astype(np.float32)},
    }
    latent = {"kind": "latent", "dtype": "float32"}
    inputs = {
        "mapping": [TensorSpec(name="z", shape=("batch", 8), **latent)],
        "synthesis": [TensorSpec(name="styles", shape=("batch", STYLE_LAYERS, STYLE_DIM), **latent)],
    }
    if labels:
        feeds["mapping"]["label"] = np.arange(4, dtype=np.int64) % len(labels)
        inputs["mapping"].append(TensorSpec(name="label", kind="label", dtype="int64", shape=("batch",)))
    if noise:
        feeds["synthesis"]["noise"] = random.randn(4, STYLE_NOISE).astype(np.float32)
        spec = TensorSpec(name="noise", kind="noise", dtype="float32", shape=("batch", STYLE_NOISE))
        inputs["synthesis"].append(spec)
    outputs = {
        "mapping": TensorSpec(name="w", shape=("batch", STYLE_DIM), **latent),
        "synthesis": TensorSpec(name="image", kind="image", dtype="uint8", shape=("batch", 8, 8, 3)),
    }
    if encoder:
        wide = (STYLE_DIM,) if encoder == "w" else (STYLE_LAYERS, STYLE_DIM)
        graphs["encoder"] = encoder_graph(wide, passes=encoder == "passes")
        picture = {"kind": "image", "dtype": "uint8", "shape": ("batch", 8, 8, 3)}
        inputs["encoder"] = [TensorSpec(name="picture", **picture)]
        feeds["encoder"] = {"picture": random.randint(0, 256, (4, 8, 8, 3)).astype(np.uint8)}
        outputs["encoder"] = TensorSpec(name="code", shape=("batch", *wide), **latent)
        if encoder == "passes":
            inputs["encoder"].append(TensorSpec(name="drawn", **picture))
            inputs["encoder"].append(TensorSpec(name="before", shape=("batch", *wide), **latent))
            feeds["encoder"]["drawn"] = random.randint(0, 256, (4, 8, 8, 3)).astype(np.uint8)
            feeds["encoder"]["before"] = random.randn(4, *wide).astype(np.float32)
    for graph, data in graphs.items():
        answers = golden_of(data, feeds[graph])
        golden |= {key.replace("generator/", f"{graph}/"): value for key, value in answers.items()}
    draft = ManifestDraft(
        name=name,
        family="tiny",
        tasks=(Task.GENERATE,),
        graphs={g: GraphDraft(opset=OPSET, inputs=tuple(inputs[g]), outputs=(outputs[g],)) for g in graphs},
        generate=GenerateSpec(latent_dim=8, labels=labels, style_layers=STYLE_LAYERS, directions=directions),
        provenance=Provenance(recipe={}, dataset="none", images_seen=0, commit="0" * 40, seed=0),
        license="Apache-2.0",
        paper="none",
    )
    mean = np.arange(1, STYLE_DIM + 1, dtype=np.float32) / 10
    own = {"mean_w": mean}
    if directions:
        own["directions"] = np.random.RandomState(7).randn(len(directions), STYLE_DIM).astype(np.float32)
    return write_package(
        root,
        draft,
        graphs=graphs,
        golden=golden,
        arrays=own if arrays is None else arrays,
        card=f"# {name}\n",
        samples_png=SAMPLES_PNG,
    )
