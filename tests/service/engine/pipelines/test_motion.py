"""Frames through key frames: they begin and end where they should, w is worked out once, and the first comes early."""

import asyncio

import numpy as np
import pytest
from tinymodels import STYLE_DIM, STYLE_LAYERS, TINY_LABELS, write_tiny, write_tiny_style

from service.engine.blending import METHODS
from service.engine.engine import Engine, EngineOptions, KeyFrame, Steering, Track
from service.engine.latents import latents_from_seeds
from service.engine.pipelines import motion as moving
from service.engine.steering import Source
from service.errors import DeadlineExceeded, InvalidRequest, TooLarge


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_style(root, directions=("sefa_1", "glasses"))
    write_tiny_style(root, "tiny-kinds", labels=TINY_LABELS)
    write_tiny(root, "tiny-rgb")
    write_tiny(root, "tiny-grey", channels=1, labels=TINY_LABELS)
    write_tiny(root, "tiny-mixed", channels=1, labels=TINY_LABELS, weighed=True)
    return root


@pytest.fixture
async def engine(root):
    options = EngineOptions(models=root, providers=("cpu",), profile_s=0, poll_models_s=None, lanes=2, max_batch=4)
    async with Engine(options) as engine:
        assert engine.refused == {}
        yield engine


async def frames(engine, model, keys, **way):
    motion = await engine.interpolate(model, keys, Track(**way))
    images = await motion.whole()
    assert images.shape == (motion.frames, motion.height, motion.width, motion.channels) and images.dtype == np.uint8
    return motion, images


async def picture(engine, model, seed, label=None, truncation=1.0, **steering):
    drawn = await engine.generate(
        model, seeds=[seed], labels=label, truncation=truncation, steering=Steering.of(**steering)
    )
    return drawn.images[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model, space", [("tiny-w", "w"), ("tiny-w", "z"), ("tiny-rgb", "z")])
@pytest.mark.parametrize("closed", [False, True])
async def test_key_frames_are_their_pictures(engine, model, space, method, closed):
    seeds = [4, 1, 9]
    keys = [KeyFrame.of(seed, truncation=0.8) for seed in seeds]
    count, every = (12, 4) if closed else (9, 4)
    motion, images = await frames(engine, model, keys, frames=count, method=method, space=space, closed=closed)
    assert (motion.method, motion.space, motion.tally.runs >= 2) == (method, space, True)
    for seed, image in zip(seeds, images[::every], strict=True):
        np.testing.assert_array_equal(image, await picture(engine, model, seed, truncation=0.8))
    assert len({image.tobytes() for image in images}) > 3
    # each frame is the picture of its latent, alone
    for place in range(count):
        told = Steering.of(space="w+" if model == "tiny-w" else "z")
        alone = await engine.generate(model, latents=motion.latents[place], steering=told)
        np.testing.assert_array_equal(alone.images[0], images[place])


async def test_what_a_model_likes_is_the_default(engine):
    keys = [KeyFrame.of(1), KeyFrame.of(2)]
    motion, _ = await frames(engine, "tiny-w", keys, frames=3)
    assert (motion.space, motion.method) == ("w", "linear")
    ends = motion.latents[[0, 2]].astype(float)
    np.testing.assert_array_equal(motion.latents[1], (0.5 * ends[0] + 0.5 * ends[1]).astype(np.float32))
    motion, _ = await frames(engine, "tiny-rgb", keys, frames=3)
    assert (motion.space, motion.method) == ("z", "spherical")
    lengths = np.linalg.norm(motion.latents, axis=1)
    assert lengths[1] == pytest.approx((lengths[0] + lengths[2]) / 2, rel=1e-6)


async def test_w_is_worked_out_once_for_each_key_frame(engine):
    graphs = engine._repository.resolve("tiny-w").graphs
    before = [graphs[name].batcher.stats() for name in ("mapping", "synthesis")]
    await frames(engine, "tiny-w", [KeyFrame.of(seed) for seed in (501, 502, 503)], frames=30, method="cubic")
    mapped, drawn = (graphs[name].batcher.stats() for name in ("mapping", "synthesis"))
    assert mapped.rows_total - before[0].rows_total == 3
    assert drawn.rows_total - before[1].rows_total == 30
    assert drawn.runs_total - before[1].runs_total <= 9  # 4 at a time
    await frames(engine, "tiny-w", [KeyFrame.of(501), KeyFrame.of(503)], frames=4)
    assert graphs["mapping"].batcher.stats().rows_total == mapped.rows_total


async def test_key_frames_may_be_steered(engine):
    keys = [KeyFrame.of(3, directions={"glasses": strength}) for strength in (-2, 2)]
    motion, images = await frames(engine, "tiny-w", keys, frames=5)
    np.testing.assert_array_equal(images[0], await picture(engine, "tiny-w", 3, directions={"glasses": -2}))
    np.testing.assert_array_equal(images[4], await picture(engine, "tiny-w", 3, directions={"glasses": 2}))
    plain = (await engine.generate("tiny-w", seeds=[3])).latents
    np.testing.assert_allclose(motion.latents[2], plain[0], atol=1e-6)  # half-way there is no push
    mixed = KeyFrame(((Source(1), 1.0), (Source(2), 1.0)), steering=Steering.of(styles=[{"seed": 5, "layers": 1}]))
    whole = KeyFrame(((Source(None, np.ones((STYLE_LAYERS, STYLE_DIM), np.float32), "w+"), 1.0),), truncation=0.5)
    motion, images = await frames(engine, "tiny-w", [mixed, whole], frames=4)
    drawn = await engine.generate("tiny-w", steering=mixed.whole)
    np.testing.assert_array_equal(images[0], drawn.images[0])


async def test_all_frames_have_the_first_ones_noise(engine):
    keys = [KeyFrame.of(seed, noise="random") for seed in (7, 8)]
    for space in ("w", "z"):
        _, images = await frames(engine, "tiny-w", keys, frames=3, space=space)
        np.testing.assert_array_equal(images[0], await picture(engine, "tiny-w", 7, noise="random"))
        np.testing.assert_array_equal(images[2], await picture(engine, "tiny-w", 8, noise="random", noise_seed=7))


async def test_classes_on_the_way(engine):
    one = [KeyFrame.of(seed, "Square") for seed in (1, 2)]
    two = [KeyFrame.of(1, "Circle"), KeyFrame.of(2, "Square")]
    for model, space in (("tiny-grey", "z"), ("tiny-kinds", "z"), ("tiny-kinds", "w"), ("tiny-mixed", "z")):
        _, images = await frames(engine, model, one, frames=3, space=space)
        np.testing.assert_array_equal(images[2], await picture(engine, model, 2, "Square"))
        if (model, space) in (("tiny-kinds", "w"), ("tiny-mixed", "z")):
            _, images = await frames(engine, model, two, frames=3, space=space)
            np.testing.assert_array_equal(images[0], await picture(engine, model, 1, "Circle"))
            np.testing.assert_array_equal(images[2], await picture(engine, model, 2, "Square"))
        else:
            with pytest.raises(InvalidRequest, match="of the classes Circle, Square") as error:
                await frames(engine, model, two, frames=3, space=space)
            assert error.value.field == "label"


async def test_the_first_frames_come_before_the_last_are_drawn(engine):
    batcher = engine._repository.resolve("tiny-rgb").graphs["generator"].batcher
    before = batcher.stats().rows_total
    motion = await engine.interpolate("tiny-rgb", [KeyFrame.of(1), KeyFrame.of(2)], Track(60))
    first = await anext(aiter(motion.batches))
    assert len(first) == 4 and batcher.stats().rows_total - before < 60
    await motion.batches.aclose()
    await asyncio.sleep(0.05)
    assert batcher.stats().rows_total - before <= 20  # nobody reads on: the rest is not drawn
    two = await engine.interpolate("tiny-rgb", [KeyFrame.of(1), KeyFrame.of(2)], Track(2))
    assert [len(batch) async for batch in two.batches] == [1, 1]


WRONG = [
    ("tiny-w", [KeyFrame.of(1)], {"frames": 3}, "keys", "1 key frames, must be 2 to 64"),
    ("tiny-w", [KeyFrame.of(1)] * 65, {"frames": 99}, "keys", "must be 2 to 64"),
    ("tiny-w", [KeyFrame.of(1)] * 2, {"frames": 1}, "frames", "no whole number from 2"),
    ("tiny-rgb", [KeyFrame.of(1)] * 2, {"frames": 3, "space": "w"}, "space", "go through z"),
    ("tiny-w", [KeyFrame.of(1)] * 2, {"frames": 3, "method": "round"}, "method", "linear, spherical, cubic"),
    (
        "tiny-w",
        [KeyFrame.of(1, truncation=0.5), KeyFrame.of(2)],
        {"frames": 3, "space": "z"},
        "space",
        "share truncation, styles and directions",
    ),
    (
        "tiny-w",
        [KeyFrame(((Source(None, np.ones(6, np.float32), "w"), 1.0),)), KeyFrame.of(2)],
        {"frames": 3, "space": "z"},
        "space",
        "has no z",
    ),
    ("tiny-w", [KeyFrame.of(1, directions={"smile": 1})] * 2, {"frames": 3}, "directions", "'smile' is unknown"),
]


@pytest.mark.parametrize("model, keys, way, field, says", WRONG)
async def test_what_is_wrong_is_named(engine, model, keys, way, field, says):
    with pytest.raises(InvalidRequest, match=says) as error:
        await engine.interpolate(model, keys, Track(**way))
    assert error.value.field == field


async def test_too_many_frames_and_pixels(root):
    options = {"models": root, "providers": ("cpu",), "profile_s": 0, "poll_models_s": None}
    async with Engine(EngineOptions(**options, max_motion_frames=10, max_result_pixels=8 * 8 * 7)) as engine:
        keys = [KeyFrame.of(1), KeyFrame.of(2)]
        for count, says in ((11, "at most 10"), (8, "at most 7")):
            with pytest.raises(TooLarge, match=says) as error:
                await engine.interpolate("tiny-w", keys, Track(count))
            assert error.value.field == "frames"
        assert len(await (await engine.interpolate("tiny-w", keys, Track(7))).whole()) == 7


async def test_a_deadline_ends_it(engine):
    opposite = latents_from_seeds([1], 8)[0]
    keys = [KeyFrame(((Source(None, sign * opposite), 1.0),)) for sign in (1, -1)]
    with pytest.raises(InvalidRequest, match="opposite"):
        await engine.interpolate("tiny-rgb", keys, Track(5))
    motion = await engine.interpolate("tiny-rgb", [KeyFrame.of(1), KeyFrame.of(2)], Track(60), timeout_s=0.02)
    await asyncio.sleep(0.05)
    with pytest.raises(DeadlineExceeded):
        await motion.whole()


def test_batches_are_bounded():
    assert moving.BATCH_FRAMES * 2 < 60
