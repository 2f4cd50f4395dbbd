import numpy as np
import onnxruntime
import pytest
from convgraphs import Builder, random_graph

from service.engine.reach import geometry
from service.engine.tiling import Axis, Fraction, least_side, spans
from service.onnxgraph import read_graph


def session_of(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session, picture: np.ndarray) -> np.ndarray:
    return session.run(None, {"image": picture[None]})[0][0]


def geometry_of(model: bytes, tmp_path, inputs=("image",)):
    path = tmp_path / "graph.onnx"
    path.write_bytes(model)
    return geometry(read_graph(path), inputs, "output")


def tiled(session, picture: np.ndarray, found, side: int, scale: int) -> tuple[np.ndarray, int]:
    height, width = picture.shape[:2]
    out = np.zeros((height * scale, width * scale, 3), np.uint8)
    rows, columns = spans(height, side, found.height), spans(width, side, found.width)
    for row in rows:
        for column in columns:
            answer = run(session, picture[row.start : row.stop, column.start : column.stop])
            top, left = (row.core_start - row.start) * scale, (column.core_start - column.start) * scale
            high, wide = (row.core_stop - row.core_start) * scale, (column.core_stop - column.core_start) * scale
            y, x = row.core_start * scale, column.core_start * scale
            out[y : y + high, x : x + wide] = answer[top : top + high, left : left + wide]
    return out, len(rows) * len(columns)


@pytest.mark.parametrize("part", range(8))
def test_tiles_equal_the_whole_bit_for_bit(part, tmp_path):
    """25 random graphs, picture sizes and tile sizes in each part, 200 in all."""
    cut = 0
    for seed in range(part * 25, part * 25 + 25):
        rng = np.random.RandomState(1000 + seed)
        model, scale = random_graph(seed)
        found = geometry_of(model, tmp_path)
        assert found.whole is None and found.height.scale == found.width.scale == scale
        align, least = found.height.align, max(least_side(found.height), least_side(found.width))
        height, width = (int(rng.randint(least // align, (2 * least + 40) // align)) * align for _ in range(2))
        picture = rng.randint(0, 256, (height, width, 3)).astype(np.uint8)
        session = session_of(model)
        answer, tiles = tiled(session, picture, found, int(rng.randint(1, 2 * least)), scale)
        cut += tiles > 1
        np.testing.assert_array_equal(answer, run(session, picture), err_msg=f"graph {seed}")
    assert cut >= 15


def test_the_halo_is_no_wider_than_it_must_be(tmp_path):
    builder = Builder(0)
    builder.conv(3)
    builder.conv(5)
    found = geometry_of(builder.finish(), tmp_path)  # and a last one of 3
    assert (found.height.before, found.height.after, found.height.align) == (4, 4, 1)
    builder = Builder(0)
    builder.conv(3, stride=2)
    builder.conv(3)
    builder.up("shuffle")
    found = geometry_of(builder.finish(), tmp_path)
    assert found.height.align == 2 and found.height.scale == 1
    assert 6 <= found.height.before <= 8


def normalised(kind: str) -> bytes:
    builder = Builder(1)
    builder.conv(3, out=4)
    at = builder.at
    if kind == "instance norm":
        ones, zeros = builder.constant(np.ones(4, np.float32)), builder.constant(np.zeros(4, np.float32))
        builder.at = builder.add("InstanceNormalization", [at, ones, zeros])
    elif kind == "pool":
        builder.at = builder.add("Mul", [at, builder.add("GlobalAveragePool", [at])])
    elif kind == "mean":
        axes = builder.constant(np.array([2, 3], np.int64))
        builder.at = builder.add("Sub", [at, builder.add("ReduceMean", [at, axes])])
    elif kind == "negative axes":
        axes = builder.constant(np.array([-1], np.int64))
        builder.at = builder.add("Sub", [at, builder.add("ReduceMax", [at, axes])])
    elif kind == "attention":
        flat = builder.add("Reshape", [at, builder.constant(np.array([0, 4, -1], np.int64))])
        scores = builder.add("MatMul", [builder.add("Transpose", [flat], perm=[0, 2, 1]), flat])
        mixed = builder.add("MatMul", [flat, builder.add("Softmax", [scores], axis=-1)])
        builder.at = builder.add("Reshape", [mixed, builder.add("Shape", [at])])
    elif kind == "place":
        builder.at = builder.add("Add", [at, builder.constant(np.ones((1, 1, 16, 16), np.float32))])
    elif kind == "row":
        builder.at = builder.add("Add", [at, builder.constant(np.ones(16, np.float32))])
    elif kind == "corners":
        scales = builder.constant(np.array([1, 1, 2, 2], np.float32))
        keys = {"coordinate_transformation_mode": "align_corners", "mode": "linear"}
        builder.at = builder.add("Resize", [at, "", scales], **keys)
    elif kind == "softmax":
        builder.at = builder.add("Softmax", [at], axis=3)
    elif kind == "unknown":
        builder.at = builder.add("CumSum", [at, builder.constant(np.array(3, np.int64))])
    return builder.finish()


KINDS = ["instance norm", "pool", "mean", "negative axes", "attention", "place", "row", "corners", "softmax", "unknown"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_the_whole_picture_is_found_and_named(kind, tmp_path):
    found = geometry_of(normalised(kind), tmp_path)
    assert found.whole


def test_channels_may_be_mixed_freely(tmp_path):
    builder = Builder(2, inputs=("image", "mask"))
    builder.conv(3, out=6)
    axes = builder.constant(np.array([1], np.int64))
    builder.at = builder.add("Sub", [builder.at, builder.add("ReduceMean", [builder.at, axes])])
    builder.at = builder.add("Softmax", [builder.at], axis=1)
    builder.at = builder.add("Mul", [builder.at, builder.constant(np.ones((6, 1, 1), np.float32))])
    found = geometry_of(builder.finish(), tmp_path, ("image", "mask"))
    assert found.whole is None and found.height.before == 2


def test_an_answer_that_does_not_depend_on_the_picture_is_not_tiled(tmp_path):
    path = tmp_path / "graph.onnx"
    path.write_bytes(random_graph(0)[0])
    assert geometry(read_graph(path), ("image",), "missing").whole


@pytest.mark.parametrize("align", [1, 2, 8])
def test_cores_lie_side_by_side_within_windows_of_one_length(align):
    axis = Axis(5, 7, align, Fraction(1))
    for length in range(align, 400, align * 3):
        for side in (1, 30, 64, 1000):
            found = spans(length, side, axis)
            assert found[0].core_start == 0 and found[-1].core_stop == length
            assert len({span.stop - span.start for span in found}) == 1
            for span, after in zip(found, [*found[1:], None], strict=True):
                assert (
                    span.start % align == 0
                    and 0 <= span.start <= span.core_start < span.core_stop <= span.stop <= length
                )
                assert span.start == 0 or span.core_start - span.start >= 5
                assert span.stop == length or span.stop - span.core_stop >= 7
                assert after is None or after.core_start == span.core_stop
