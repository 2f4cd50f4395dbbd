"""Projection: a picture that the model drew comes back, in one look or in passes; and what has no encoder says so."""

import numpy as np
import pytest
from tinymodels import STYLE_DIM, STYLE_LAYERS, TINY_LABELS, write_tiny, write_tiny_style

from service.engine.engine import Engine, EngineOptions, Steering
from service.engine.pipelines.project import encoder_of, fitted, psnr_db
from service.errors import GraphMismatch, InvalidRequest, TaskNotServed
from service.package import read_package


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_style(root, "tiny-w", encoder="w")
    write_tiny_style(root, "tiny-layers", encoder="w+", noise=False)
    write_tiny_style(root, "tiny-passes", encoder="passes")
    write_tiny_style(root, "tiny-kinds", encoder="w+", labels=TINY_LABELS)
    write_tiny_style(root, "tiny-blind")
    write_tiny(root, "tiny-rgb")
    return root


@pytest.fixture
async def engine(root):
    options = EngineOptions(models=root, providers=("cpu",), profile_s=0, poll_models_s=None, lanes=2, max_batch=4)
    async with Engine(options) as engine:
        assert engine.refused == {}
        yield engine


async def drawn(engine, model, scale=0.1):
    """A picture that the model can draw, not far from its middle."""
    w = (np.random.RandomState(3).randn(1, STYLE_LAYERS, STYLE_DIM) * scale).astype(np.float32)
    made = await engine.generate(model, latents=w, steering=Steering(space="w+"))
    return made.images[0], w


@pytest.mark.parametrize("model", ["tiny-w", "tiny-layers", "tiny-passes", "tiny-kinds"])
async def test_the_latent_draws_what_is_answered(engine, model):
    picture, _ = await drawn(engine, model)
    found = await engine.project(model, picture)
    assert (found.model, found.space) == (f"{model}@1", "w+")
    assert found.latents.shape == (1, STYLE_LAYERS, STYLE_DIM) and found.image.shape == (8, 8, 3)
    again = await engine.generate(model, latents=found.latents, steering=Steering(space="w+"))
    np.testing.assert_array_equal(again.images[0], found.image)
    assert found.psnr_db == pytest.approx(psnr_db(found.image, picture))
    other = await engine.project(model, picture)
    np.testing.assert_array_equal(other.latents, found.latents)
    if model == "tiny-w":
        np.testing.assert_array_equal(found.latents, np.repeat(found.latents[:, :1], STYLE_LAYERS, axis=1))


async def test_passes_come_nearer(engine):
    picture, w = await drawn(engine, "tiny-passes")
    near = [await engine.project("tiny-passes", picture, passes=passes) for passes in (1, 4, 16)]
    assert [one.passes for one in near] == [1, 4, 16]
    assert near[0].psnr_db < near[1].psnr_db < near[2].psnr_db
    assert near[2].psnr_db > 40 and np.abs(near[2].latents - w).max() < 0.1
    assert (await engine.project("tiny-passes", picture)).passes == 4
    assert near[1].tally.runs == 9  # four looks, and what each drew after the mean picture


async def test_pictures_of_any_size_and_transparency(engine):
    tall = np.random.RandomState(0).randint(0, 256, (40, 20, 3)).astype(np.uint8)
    alpha = np.full((40, 20), 255, np.uint8)
    one = await engine.project("tiny-layers", tall)
    two = await engine.project("tiny-layers", tall, alpha=alpha)
    np.testing.assert_array_equal(one.latents, two.latents)
    square = await engine.project("tiny-layers", tall[10:30])
    np.testing.assert_array_equal(one.latents, square.latents)  # cropped about its centre
    clear = await engine.project("tiny-layers", tall, alpha=0 * alpha)
    white = await engine.project("tiny-layers", np.full((8, 8, 3), 255, np.uint8))
    np.testing.assert_array_equal(clear.latents, white.latents)


def test_fitting():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    np.testing.assert_array_equal(fitted(wide, None, 4, 4, 3), wide[:, 4:8])
    assert fitted(wide, None, 2, 6, 1).shape == (2, 6, 1)
    assert psnr_db(wide, wide) == 99.0 and psnr_db(wide, wide + 1) == pytest.approx(48.13, abs=0.01)


async def test_what_is_wrong_is_named(engine):
    picture = np.zeros((8, 8, 3), np.uint8)
    for model in ("tiny-blind", "tiny-rgb"):
        with pytest.raises(TaskNotServed, match="has no encoder") as error:
            await engine.project(model, picture)
        assert error.value.allowed == ["tiny-kinds", "tiny-layers", "tiny-passes", "tiny-w"]
    for model, passes, says in (("tiny-w", 2, "takes 1 to 1"), ("tiny-passes", 17, "takes 1 to 16")):
        with pytest.raises(InvalidRequest, match=says) as error:
            await engine.project(model, picture, passes=passes)
        assert error.value.field == "passes"
    with pytest.raises(InvalidRequest, match="image: must be uint8"):
        await engine.project("tiny-w", picture.astype(float))


def test_encoders_are_found_by_what_they_take_and_give(root):
    found = {name: encoder_of(read_package(root / name / "1")) for name in ("tiny-w", "tiny-layers", "tiny-passes")}
    assert [one.space for one in found.values()] == ["w", "w+", "w+"]
    assert [one.passes_most for one in found.values()] == [1, 1, 16]
    assert encoder_of(read_package(root / "tiny-blind" / "1")) is None
    manifest = read_package(root / "tiny-w" / "1")
    two = manifest.model_copy(update={"graphs": {**manifest.graphs, "again": manifest.graphs["encoder"]}})
    with pytest.raises(GraphMismatch, match="2 graphs take a picture"):
        encoder_of(two)
