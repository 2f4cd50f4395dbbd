"""Pictures through the real engine: any size, tiles, transparency, masks, refusals, other people's small requests."""

import asyncio
import shutil
from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
from tinymodels import write_picture_models, write_tiny
from uploads import smooth

from service.engine.engine import Engine, EngineOptions
from service.engine.pipelines.painting import lay_out, mirrored
from service.engine.tiling import Axis, Geometry, Span
from service.errors import DeadlineExceeded, ImageTooLarge, InvalidRequest, Overloaded, RunFailed, TaskNotServed
from service.manifest import Task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    write_picture_models(root)
    write_tiny(root, "tiny-rgb")
    return root


def options(folder, **changes) -> EngineOptions:
    given = {"providers": ("cpu",), "lanes": 1, "threads_per_lane": 1, "profile_s": 0.0, "poll_models_s": None}
    return EngineOptions(folder, **{**given, "tile_side": 32, **changes})


@pytest.fixture
async def engine(folder):
    async with Engine(options(folder)) as engine:
        yield engine


def bare(folder, name: str, **inputs: np.ndarray) -> np.ndarray:
    """What the graph itself answers."""
    path = folder / name / "1" / "generator.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {key: array[None] for key, array in inputs.items()})[0][0]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


async def test_tiles_are_the_whole_bit_for_bit(engine, folder):
    picture = noise(130, 94)
    painting = await engine.translate("tiny-paint", picture)
    assert painting.tiles > 4 and painting.model == "tiny-paint@1"
    np.testing.assert_array_equal(await painting.whole(), bare(folder, "tiny-paint", image=picture))
    assert painting.tally.runs == painting.tiles
    for name, scale in (("tiny-x2", 2), ("tiny-x4", 4)):
        painting = await engine.upscale(name, picture, scale=scale)
        assert (painting.height, painting.width, painting.channels) == (130 * scale, 94 * scale, 3)
        np.testing.assert_array_equal(await painting.whole(), bare(folder, name, image=picture))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (33, 47), (2, 3), (32, 64)])
async def test_any_size_is_padded_by_mirrors_and_cropped_back(engine, folder, size):
    picture = noise(*size)
    answer = await (await engine.translate("tiny-paint", picture)).whole()
    assert answer.shape == (*size, 3)
    rows, columns = (mirrored(0, max(8, side + side % 2), side) for side in size)  # it mirrors within, and reaches 7
    padded = np.ascontiguousarray(picture[rows[:, None], columns])
    np.testing.assert_array_equal(answer, bare(folder, "tiny-paint", image=padded)[: size[0], : size[1]])
    assert (await (await engine.upscale("tiny-x4", picture)).whole()).shape == (size[0] * 4, size[1] * 4, 3)


def test_a_graph_that_mirrors_its_input_gets_a_picture_as_large_as_its_reach():
    axis = Axis(9, 7, 2, Fraction(1))
    for mirrors, padded in ((False, 4), (True, 10)):
        assert lay_out(3, 64, 2, axis, Geometry(axis, axis, mirrors=mirrors)) == [Span(0, padded, 0, padded)]


async def test_bands_come_from_top_to_bottom(engine):
    painting = await engine.upscale("tiny-x2", noise(200, 40))
    heights = [len(band) async for band in painting.bands]
    assert len(heights) > 3 and sum(heights) == 400


async def test_models_that_need_the_whole_picture_get_it_up_to_a_limit(folder):
    async with Engine(options(folder, max_whole_pixels=10_000)) as engine:
        picture = noise(90, 100)
        painting = await engine.translate("tiny-style", picture)
        assert painting.tiles == 1
        np.testing.assert_array_equal(await painting.whole(), bare(folder, "tiny-style", image=picture))
        with pytest.raises(ImageTooLarge, match=r"tiny-style@1 takes 10000 at most.*normalises over the whole picture"):
            await engine.translate("tiny-style", noise(101, 100))


async def test_a_model_of_fixed_size_resizes_and_says_so(engine):
    flat = np.full((80, 60, 3), 77, np.uint8)
    painting = await engine.translate("tiny-fixed", flat)
    assert painting.resized == (16, 24) and (await painting.whole()).shape == (16, 24, 3)
    other = await (await engine.translate("tiny-fixed", np.full((5, 7, 3), 77, np.uint8))).whole()
    np.testing.assert_array_equal(await (await engine.translate("tiny-fixed", flat)).whole(), other)


async def test_transparency_is_composited_kept_or_scaled(engine):
    picture, alpha = smooth(40, 40), np.zeros((40, 40), np.uint8)
    alpha[:, 20:] = 255
    white = picture.copy()
    white[:, :20] = 255
    composited = await engine.translate("tiny-paint", picture, alpha=alpha)
    assert composited.channels == 3
    right = await (await engine.translate("tiny-paint", white)).whole()
    np.testing.assert_array_equal(await composited.whole(), right)
    kept = await (await engine.translate("tiny-keep", picture, alpha=alpha)).whole()
    np.testing.assert_array_equal(kept[:, :, 3], alpha)
    np.testing.assert_array_equal(kept[:, :, :3], await (await engine.translate("tiny-keep", picture)).whole())
    scaled = await (await engine.upscale("tiny-x2", picture, alpha=alpha)).whole()
    assert scaled.shape == (80, 80, 4) and (scaled[:, :33, 3] == 0).all() and (scaled[:, 47:, 3] == 255).all()
    assert len(np.unique(scaled[:, 36:44, 3])) > 2
    repeated = await (await engine.upscale("tiny-x2-keep", picture, alpha=alpha)).whole()
    np.testing.assert_array_equal(repeated[:, :, 3], alpha.repeat(2, 0).repeat(2, 1))


async def test_hidden_colours_do_not_show_at_the_border(engine):
    picture, alpha = smooth(40, 40), np.zeros((40, 40), np.uint8)
    picture[:, :20], picture[:, 20:] = (0, 255, 0), (200, 30, 30)
    alpha[:, 20:] = 255
    other = picture.copy()
    other[:, :20] = 255, 0, 255
    answers = [await (await engine.upscale("tiny-x2", one, alpha=alpha)).whole() for one in (picture, other)]
    np.testing.assert_array_equal(*answers)


async def test_holes_come_from_the_mask_or_from_transparency(engine, folder):
    picture = noise(30, 40)
    hole = np.zeros((30, 40), np.uint8)
    hole[5:12, 8:20] = 200
    answer = await (await engine.translate("tiny-repair", picture, mask=hole)).whole()
    full = np.where(hole >= 128, 255, 0).astype(np.uint8)[:, :, None]
    np.testing.assert_array_equal(answer, bare(folder, "tiny-repair", image=picture, mask=full))
    drawn = await (
        await engine.translate("tiny-repair", picture, alpha=np.where(hole > 0, 0, 255).astype(np.uint8))
    ).whole()
    assert drawn.shape == (30, 40, 3)
    for arguments in ({}, {"mask": np.zeros((30, 40), np.uint8)}, {"alpha": np.full((30, 40), 255, np.uint8)}):
        with pytest.raises(InvalidRequest, match="mask: needed") as caught:
            await engine.translate("tiny-repair", picture, **arguments)
        assert caught.value.field == "mask"


async def test_wrong_arguments_name_themselves(engine):
    picture = noise(8, 8)
    cases = [
        ("scale", engine.upscale("tiny-x2", picture, scale=4)),
        ("image", engine.translate("tiny-paint", picture[:, :, 0])),
        ("image", engine.translate("tiny-paint", picture.astype(np.float32))),
        ("mask", engine.translate("tiny-paint", picture, mask=np.zeros((8, 8), np.uint8))),
        ("mask", engine.translate("tiny-repair", picture, mask=np.zeros((8, 9), np.uint8))),
        ("alpha", engine.upscale("tiny-x2", picture, alpha=np.zeros((9, 8), np.uint8))),
    ]
    for field, call in cases:
        with pytest.raises(InvalidRequest) as caught:
            await call
        assert caught.value.field == field and caught.value.detail.startswith(f"{field}: ")
    with pytest.raises(TaskNotServed) as caught:
        await engine.upscale("tiny-paint", picture)
    assert "tiny-x2" in caught.value.allowed
    with pytest.raises(TaskNotServed):
        await engine.translate("tiny-rgb", picture)


async def test_results_have_a_bound(folder):
    async with Engine(options(folder, max_result_pixels=1_000)) as engine:
        with pytest.raises(ImageTooLarge, match="the result would be 80x64, 5120 pixels; at most 1000"):
            await engine.upscale("tiny-x2", noise(32, 40))


async def test_a_large_picture_does_not_stand_in_the_way_of_small_ones(folder):
    async with Engine(options(folder)) as engine:
        await (await engine.upscale("tiny-x2", noise(8, 8))).whole()  # reads the graph
        large = asyncio.create_task((await engine.upscale("tiny-x2", noise(600, 600))).whole())
        await asyncio.sleep(0.05)
        batcher = engine._repository.loaded and engine._serving("tiny-x2", Task.UPSCALE).graphs["generator"].batcher
        deepest, behind = 0, []
        for seed in range(10):
            deepest = max(deepest, batcher.stats().queue_rows)
            runs = batcher.stats().runs_total
            painting = await engine.upscale("tiny-x2", noise(20, 20, seed))
            await painting.whole()
            behind.append(batcher.stats().runs_total - runs)
        assert not large.done()
        assert deepest <= 3  # of more than 400 tiles
        assert max(behind) <= 6
        assert (await large).shape == (1200, 1200, 3)


async def test_leaving_takes_the_tiles_out_of_the_queue(engine):
    painting = await engine.upscale("tiny-x2", noise(400, 400))
    async for _ in painting.bands:
        break
    await painting.bands.aclose()
    batcher = engine._serving("tiny-x2", Task.UPSCALE).graphs["generator"].batcher
    await asyncio.sleep(0.05)
    left = batcher.stats()
    await asyncio.sleep(0.1)
    assert left.queue_rows == 0 and left.lanes_busy == 0
    assert batcher.stats().rows_total == left.rows_total < painting.tiles / 2


async def test_a_deadline_ends_a_large_picture(engine):
    with pytest.raises((DeadlineExceeded, Overloaded)):
        await (await engine.upscale("tiny-x4", noise(1500, 1500), timeout_s=0.2)).whole()


async def test_a_large_picture_is_not_starved_by_small_ones(engine):
    """Each tile in its turn goes as any request: one lane, and always others that wait at the same priority."""
    done, served = asyncio.Event(), 0

    async def others():
        nonlocal served
        while not done.is_set():
            await (await engine.upscale("tiny-x2", noise(16, 16))).whole()
            served += 1

    crowd = [asyncio.create_task(others()) for _ in range(6)]
    await asyncio.sleep(0.05)
    painting = await engine.upscale("tiny-x2", noise(400, 400))
    before = served
    async with asyncio.timeout(30):
        whole = await painting.whole()
    during = served - before
    done.set()
    await asyncio.gather(*crowd)
    assert painting.tiles > 4 and during <= 12 * painting.tiles, "a round of the others for each tile, or two"
    np.testing.assert_array_equal(whole, await (await engine.upscale("tiny-x2", noise(400, 400))).whole())


async def test_a_failed_tile_fails_the_picture(engine, monkeypatch):
    painting = await engine.upscale("tiny-x2", noise(200, 200))
    batcher = engine._serving("tiny-x2", Task.UPSCALE).graphs["generator"].batcher
    enqueue, calls = batcher.enqueue, []

    def failing(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise RunFailed("tiny-x2@1: broken")
        return enqueue(*arguments, **named)

    monkeypatch.setattr(batcher, "enqueue", failing)
    with pytest.raises(RunFailed):
        await painting.whole()
    monkeypatch.undo()
    assert (await (await engine.upscale("tiny-x2", noise(20, 20))).whole()).shape == (40, 40, 3)


async def test_a_model_whose_folder_was_deleted_serves_on(tmp_path):
    """Its graph's reach was read when it was loaded, not at the first picture."""
    write_picture_models(tmp_path)
    async with Engine(options(tmp_path)) as engine:
        before = bare(tmp_path, "tiny-x2", image=noise(40, 30))
        shutil.rmtree(tmp_path / "tiny-x2")
        painting = await engine.upscale("tiny-x2", noise(40, 30), scale=2)
        np.testing.assert_array_equal(await painting.whole(), before)
