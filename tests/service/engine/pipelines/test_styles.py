"""Models with styles: a seed is a picture in w as well, and w is worked out once."""

import asyncio

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tinymodels import STYLE_DIM, STYLE_LAYERS, STYLE_NOISE, TINY_LABELS, write_tiny_style

from service.engine.engine import Engine, EngineOptions
from service.engine.latents import latents_from_seeds, noise_from_seeds
from service.engine.pipelines import styles
from service.engine.pipelines.styles import space_of, spread, truncate_styles
from service.errors import FileInvalid, GraphMismatch, ManifestInvalid
from service.package import read_package


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_style(root)
    write_tiny_style(root, "tiny-still", noise=False)
    write_tiny_style(root, "tiny-classes", labels=TINY_LABELS)
    return root


@pytest.fixture
async def engine(root):
    options = EngineOptions(models=root, providers=("cpu",), profile_s=0, poll_models_s=None, lanes=2, max_batch=4)
    async with Engine(options) as engine:
        assert engine.refused == {}
        yield engine


def by_hand(root, name, seed, truncation, label=None):
    """One picture by plain onnxruntime, one row at a time."""
    folder = root / name / "1"

    def run(graph, **feed):
        session = onnxruntime.InferenceSession(folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, feed)[0]

    labels = {} if label is None else {"label": np.array([label], np.int64)}
    w = run("mapping", z=latents_from_seeds([seed], 8), **labels)
    mean = np.arange(1, STYLE_DIM + 1, dtype=np.float32) / 10
    if truncation != 1:
        w = mean + np.float32(truncation) * (w - mean)
    noise = {} if name == "tiny-still" else {"noise": noise_from_seeds([0], 8, STYLE_NOISE)}
    return run("synthesis", styles=np.repeat(w[:, None], STYLE_LAYERS, axis=1), **noise)[0]


@pytest.mark.parametrize("name", ["tiny-w", "tiny-still"])
@pytest.mark.parametrize("truncation", [0.0, 0.5, 1.0, 2.0])
async def test_a_seed_is_a_picture_alone_or_among_others(engine, root, name, truncation):
    seeds = [7, 2**32 - 1, 0, 7, 12]
    drawn = await engine.generate(name, seeds=seeds, truncation=truncation)
    assert drawn.images.shape == (5, 8, 8, 3) and drawn.truncation == truncation
    for seed, image in zip(seeds, drawn.images, strict=True):
        np.testing.assert_array_equal(image, by_hand(root, name, seed, truncation))
        again = await engine.generate(name, seeds=[seed], truncation=truncation)
        np.testing.assert_array_equal(again.images[0], image)


async def test_classes_go_into_the_mapping(engine, root):
    drawn = await engine.generate("tiny-classes", seeds=[3, 3, 4], labels=["Circle", "Square", "Square"])
    for image, seed, label in zip(drawn.images, (3, 3, 4), (0, 1, 1), strict=True):
        np.testing.assert_array_equal(image, by_hand(root, "tiny-classes", seed, 1.0, label))
    assert drawn.labels == ("Circle", "Square", "Square")


async def test_truncation_zero_is_the_mean_picture_whatever_the_seed(engine):
    drawn = await engine.generate("tiny-w", seeds=[1, 2, 3], truncation=0.0)
    assert (drawn.images == drawn.images[0]).all()


async def test_latents_given_outright_are_those_of_the_seed(engine):
    one = await engine.generate("tiny-w", seeds=[5], truncation=0.7)
    two = await engine.generate("tiny-w", latents=latents_from_seeds([5], 8).tolist(), truncation=0.7)
    np.testing.assert_array_equal(one.images, two.images)


def rows_mapped(engine, name="tiny-w"):
    model = engine._repository.resolve(name)
    return model.graphs["mapping"].batcher.stats().rows_total


async def test_w_is_worked_out_once_per_seed(engine, monkeypatch):
    before = rows_mapped(engine)
    for truncation in (1.0, 0.5, 0.3):
        await engine.generate("tiny-w", seeds=[100, 101], truncation=truncation)
    assert rows_mapped(engine) == before + 2
    await engine.generate("tiny-w", seeds=[101, 102, 100])
    assert rows_mapped(engine) == before + 3
    await engine.generate("tiny-w", latents=np.zeros((1, 8)))
    await engine.generate("tiny-w", latents=np.zeros((1, 8)))
    assert rows_mapped(engine) == before + 5  # whose z nobody knows is not kept
    monkeypatch.setattr(styles, "KEPT_STYLES", 2)
    await engine.generate("tiny-w", seeds=[103])
    await engine.generate("tiny-w", seeds=[102])  # the one before; 100 and 101 were asked for longer ago
    assert rows_mapped(engine) == before + 6
    await engine.generate("tiny-w", seeds=[100])
    assert rows_mapped(engine) == before + 7


async def test_many_at_once(engine, root):
    asked = [(seed, truncation) for seed in range(12) for truncation in (0.5, 1.0)]
    answers = await asyncio.gather(*(engine.generate("tiny-w", seeds=[s], truncation=t) for s, t in asked))
    for (seed, truncation), drawn in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(drawn.images[0], by_hand(root, "tiny-w", seed, truncation))
        assert drawn.timings.run_s > 0 and drawn.timings.queue_s >= 0


FLOATS = st.floats(-100, 100, width=32)


@given(arrays(np.float32, (2, 4), elements=FLOATS), arrays(np.float32, 4, elements=FLOATS), st.floats(0, 2))
def test_truncation_is_a_straight_way_from_the_mean(w, mean, truncation):
    assert truncate_styles(w, mean, 1.0) is w
    np.testing.assert_array_equal(truncate_styles(w, mean, 0.0), np.stack([mean, mean]))
    way = truncate_styles(w, mean, truncation)
    assert way.dtype == np.float32
    np.testing.assert_allclose(way - mean, truncation * (w - mean), atol=1e-3)


def test_every_layer_gets_w():
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert spread(w, 4).shape == (2, 4, 3) and (spread(w, 4)[:, 2] == w).all()


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"other": np.zeros(6, np.float32)}, "mean_w is missing, must be 6"),
        ({"mean_w": np.zeros(5, np.float32)}, r"mean_w is float32 \[5\], must be 6"),
        ({"mean_w": np.zeros(6)}, r"mean_w is float64 \[6\]"),
        ({"mean_w": np.full(6, np.nan, np.float32)}, "must be 6 finite numbers"),
    ],
)
def test_a_mean_that_does_not_fit_is_refused_where_it_is_written(tmp_path, arrays, says):
    with pytest.raises(FileInvalid, match=says):
        write_tiny_style(tmp_path, arrays=arrays)


def test_without_arrays_it_is_no_model(tmp_path):
    with pytest.raises(ManifestInvalid, match="arrays, with mean_w, are missing"):
        write_tiny_style(tmp_path, arrays={})


def changed(manifest, graph, **tensors):
    """The manifest with a tensor's field changed: `inputs_0={"kind": "latent"}`."""
    spec = manifest.graphs[graph]
    for place, update in tensors.items():
        side, index = place.rsplit("_", 1)
        listed = list(getattr(spec, side))
        listed[int(index)] = listed[int(index)].model_copy(update=update)
        spec = spec.model_copy(update={side: tuple(listed)})
    return manifest.model_copy(update={"graphs": {**manifest.graphs, graph: spec}})


def test_graphs_that_do_not_fit_are_refused(root):
    manifest = read_package(root / "tiny-w" / "1")
    assert space_of(manifest).noise_dim == STYLE_NOISE
    for wrong, says in (
        (changed(manifest, "mapping", inputs_0={"shape": ("batch", 9)}), "0 graphs map z to w"),
        (changed(manifest, "synthesis", inputs_0={"shape": ("batch", 4, 6)}), "0 graphs draw styles"),
        (changed(manifest, "mapping", outputs_0={"shape": ("batch", 7)}), "styles of length 6"),
        (changed(manifest, "synthesis", inputs_1={"kind": "image"}), "is fed"),
        (changed(manifest, "synthesis", inputs_1={"shape": ("batch", 1, 5)}), r"noise \['batch', 1, 5\]"),
        (
            manifest.model_copy(update={"graphs": {**manifest.graphs, "again": manifest.graphs["mapping"]}}),
            "2 graphs map z to w",
        ),
    ):
        with pytest.raises(GraphMismatch, match=says):
            space_of(wrong)
