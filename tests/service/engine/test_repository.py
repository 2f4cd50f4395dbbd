"""The life of models on one engine: swapped while they work, refused, asleep, woken, evicted, gone without a trace."""

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from tinymodels import (
    SAMPLES_PNG,
    golden_of,
    tiny_draft,
    tiny_graph,
    write_picture_model,
    write_tiny,
    write_tiny_style,
)

from service.engine.engine import Engine, EngineOptions
from service.engine.fairness import Share
from service.engine.latents import latents_from_seeds
from service.engine.memory import resident_bytes
from service.errors import DeadlineExceeded, ModelAsleep, NotReady, PackageError, UnknownModel
from service.manifest import Task
from service.package import write_package

ROOT = Path(__file__).resolve().parents[3]


def options(root, **changes):
    return EngineOptions(**{"models": root, "providers": ("cpu",), "profile_s": 0, "poll_models_s": None, **changes})


def weight_of(folder):
    return (folder / "generator.onnx").stat().st_size


async def gone(engine, *, within_s=10.0):
    """Wait until nothing is being retired."""
    async with asyncio.timeout(within_s):
        while engine._repository._retiring:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- swaps ----------------------------------------------------------------------------------------------------------


async def test_a_picture_that_is_begun_is_finished_by_the_version_that_began_it(tmp_path):
    """Its later tiles are queued after another version has taken the place."""
    write_picture_model(tmp_path, "paint", Task.TRANSLATE, seed=1)
    rgb = np.random.RandomState(0).randint(0, 256, (96, 64, 3)).astype(np.uint8)
    async with Engine(options(tmp_path, versions_kept=1, tile_side=32)) as engine:
        whole = await (await engine.translate("paint", rgb)).whole()
        painting = await engine.translate("paint", rgb)
        assert painting.tiles > 4
        bands = [await anext(painting.bands)]
        write_picture_model(tmp_path, "paint", Task.TRANSLATE, seed=2)
        await engine.load("paint")
        assert [model.ref for model in engine.models()] == ["paint@2"]
        await asyncio.sleep(0.1)
        assert engine._repository._retiring, "it waits for who reads slowly"
        bands += [band async for band in painting.bands]
        np.testing.assert_array_equal(np.concatenate(bands), whole)
        assert painting.model == "paint@1"
        await gone(engine)


@pytest.mark.parametrize("end", ["late", "left", "unread"])
async def test_a_picture_that_is_not_finished_holds_its_model_no_longer(tmp_path, end):
    """Though the error, or who left, still refers to it."""
    write_picture_model(tmp_path, "paint", Task.TRANSLATE, seed=1)
    rgb = np.zeros((96, 64, 3), np.uint8)
    async with Engine(options(tmp_path, tile_side=32)) as engine:
        model = engine._repository.resolve("paint")
        painting = await engine.translate("paint", rgb, timeout_s=0.05 if end == "late" else 10)
        assert model.busy
        if end == "unread":
            del painting
        else:
            await anext(painting.bands)
            if end == "late":
                await asyncio.sleep(0.1)
                with pytest.raises(DeadlineExceeded):
                    await painting.whole()
            else:
                await painting.bands.aclose()
        assert not model.works


async def test_a_drain_lets_a_picture_be_finished(tmp_path):
    write_picture_model(tmp_path, "paint", Task.TRANSLATE, seed=1)
    rgb = np.random.RandomState(0).randint(0, 256, (96, 64, 3)).astype(np.uint8)
    async with Engine(options(tmp_path, tile_side=32)) as engine:
        painting = await engine.translate("paint", rgb)
        drawing = asyncio.create_task(painting.whole())
        await asyncio.sleep(0)
        await engine.drain(10)
        assert (await drawing).shape == (96, 64, 3)


async def test_a_swap_between_the_two_graphs_of_a_model_loses_nothing(tmp_path):
    write_tiny_style(tmp_path)
    async with Engine(options(tmp_path, lanes=1, max_batch=1)) as engine:
        before = (await engine.generate("tiny-w", seeds=[0])).images
        drawn = [asyncio.create_task(engine.generate("tiny-w", seeds=[seed])) for seed in range(40)]
        await asyncio.sleep(0)
        for _ in range(3):
            await engine.load("tiny-w")
        images = [(await one).images for one in drawn]
        np.testing.assert_array_equal(images[0], before)


async def test_who_waited_for_an_equal_request_that_left_is_served_after_a_swap(tmp_path):
    write_tiny(tmp_path, "tiny", seed=1)
    async with Engine(options(tmp_path, versions_kept=1, lanes=1, max_batch=1)) as engine:
        ahead = [asyncio.create_task(engine.generate("tiny", seeds=[seed])) for seed in range(200)]
        first, second = (asyncio.create_task(engine.generate("tiny", seeds=[9999])) for _ in range(2))
        await asyncio.sleep(0)
        write_tiny(tmp_path, "tiny", seed=2)
        engine._repository._retire(engine._repository._loaded.pop("tiny@1"))
        await engine.load("tiny")
        first.cancel()
        assert (await second).model == "tiny@1"
        await asyncio.gather(*ahead)


async def test_latest_is_the_newest_and_a_number_pins(tmp_path):
    write_tiny(tmp_path, "tiny", seed=1)
    write_tiny(tmp_path, "tiny", seed=2)
    async with Engine(options(tmp_path)) as engine:
        for ref in ("tiny", "tiny@latest", "tiny@2"):
            assert (await engine.generate(ref, seeds=[1])).model == "tiny@2"
        assert (await engine.generate("tiny@1", seeds=[1])).model == "tiny@1"
        await engine.unload("tiny@latest")
        assert (await engine.generate("tiny@latest", seeds=[1])).model == "tiny@1", "the newest alone went"
        assert (await engine.load("tiny@latest")).ref == "tiny@2"


def broken(folder, kind):
    """What may be wrong with a new version."""
    manifest = json.loads((folder / "manifest.json").read_text())
    graph = folder / "generator.onnx"
    content = graph.read_bytes()
    if kind == "corrupt":
        graph.write_bytes(content[:200] + bytes(64) + content[264:])
    elif kind == "truncated":
        graph.write_bytes(content[: len(content) // 2])
    elif kind == "wrong hash":
        manifest["graphs"]["generator"]["sha256"] = "0" * 64
    elif kind == "wrong shape":
        manifest["graphs"]["generator"]["outputs"][0]["shape"] = ["batch", 9, 8, 3]
    elif kind == "no golden":
        (folder / "golden.npz").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def poisoned(root):
    """A new version whose answers to its own recorded rows are not numbers."""
    graph, draft = tiny_graph(channels=3, poison=True), tiny_draft("tiny", channels=3)
    spec = draft.graphs["generator"]
    score = spec.inputs[0].model_copy(update={"name": "score", "shape": ("batch", 1)})
    spec = spec.model_copy(update={"outputs": (*spec.outputs, score)})
    golden = golden_of(graph, {"z": -np.abs(latents_from_seeds([0, 1], 8))})
    golden["generator/score"] = np.zeros((2, 1), np.float32)
    draft = draft.model_copy(update={"graphs": {"generator": spec}})
    write_package(root, draft, graphs={"generator": graph}, golden=golden, card="", samples_png=SAMPLES_PNG)


@pytest.mark.parametrize("kind", ["corrupt", "truncated", "wrong hash", "wrong shape", "no golden", "nan"])
@pytest.mark.parametrize("noticed", ["looked", "asked"])
async def test_a_bad_version_is_refused_by_name_and_the_old_one_is_untouched(tmp_path, kind, noticed):
    write_tiny(tmp_path, "tiny", seed=1)
    async with Engine(options(tmp_path, versions_kept=1)) as engine:
        model = engine._repository.resolve("tiny")
        before = (await engine.generate("tiny", seeds=range(8))).images
        drawing = [asyncio.create_task(engine.generate("tiny", seeds=[seed])) for seed in range(100, 150)]
        if kind == "nan":
            poisoned(tmp_path)
        else:
            broken(write_tiny(tmp_path, "tiny", seed=2), kind)
        if noticed == "asked":
            with pytest.raises(PackageError, match="tiny@2"):
                await engine.load("tiny")
        else:
            assert await engine._repository.refresh() == []
        assert list(engine.refused) == ["tiny@2"] and engine.ready
        assert engine._repository.resolve("tiny") is model and model.state == "serving"
        assert {(await one).model for one in drawing} == {"tiny@1"}
        np.testing.assert_array_equal((await engine.generate("tiny", seeds=range(8))).images, before)


async def test_what_the_system_tells_is_looked_at_without_polling(tmp_path):
    pytest.importorskip("watchfiles")
    write_tiny(tmp_path, "tiny", seed=1)
    async with Engine(options(tmp_path, watch_models=True)) as engine:
        async with asyncio.timeout(20):
            while (await engine.generate("tiny", seeds=[1])).model == "tiny@1":
                write_tiny(tmp_path / "elsewhere", "tiny", seed=2, version=2)
                shutil.move(tmp_path / "elsewhere" / "tiny" / "2", tmp_path / "tiny" / "2")
                for _ in range(100):
                    await asyncio.sleep(0.02)
                    if engine._repository._loaded.keys() >= {"tiny@2"}:
                        break
                else:  # told before the watch had begun
                    shutil.rmtree(tmp_path / "tiny" / "2")
        assert (await engine.generate("tiny@latest", seeds=[1])).model == "tiny@2"


# --- on demand, and within a budget ---------------------------------------------------------------------------------


async def test_a_model_sleeps_until_it_is_asked_for(tmp_path):
    for name in ("one", "two"):
        write_tiny(tmp_path, name)
    async with Engine(options(tmp_path, load_on_demand=True)) as engine:
        assert engine.models() == [] and engine.asleep == ["one@1", "two@1"] and engine.ready
        with pytest.raises(ModelAsleep):
            engine.model("one")
        drawn = await asyncio.gather(*(engine.generate("one", seeds=[seed]) for seed in range(5)))
        assert {one.model for one in drawn} == {"one@1"} and engine.asleep == ["two@1"]
        assert engine.memory().woken_total == 1, "once for all who waited"
        with pytest.raises(UnknownModel) as caught:
            await engine.generate("three")
        assert caught.value.allowed == ["one", "two"]


async def test_a_new_version_of_a_model_in_use_does_not_sleep(tmp_path):
    write_tiny(tmp_path, "tiny", seed=1)
    async with Engine(options(tmp_path, load_on_demand=True)) as engine:
        await engine.generate("tiny", seeds=[1])
        write_tiny(tmp_path, "tiny", seed=2)
        assert await engine._repository.refresh() == ["tiny@2"] and engine.asleep == []
        write_tiny(tmp_path, "other", seed=2)
        assert await engine._repository.refresh() == [] and engine.asleep == ["other@1"]


async def test_a_model_that_is_refused_when_it_wakes_leaves_the_older_version(tmp_path):
    write_tiny(tmp_path, "tiny", seed=1)
    broken(write_tiny(tmp_path, "tiny", seed=2), "truncated")
    async with Engine(options(tmp_path, load_on_demand=True)) as engine:
        assert engine.asleep == ["tiny@1", "tiny@2"]
        assert (await engine.generate("tiny", seeds=[1])).model == "tiny@1"
        assert list(engine.refused) == ["tiny@2"] and engine.asleep == []


async def test_a_sleeping_model_that_was_away_for_a_look_is_found_again(tmp_path):
    folder, aside = write_tiny(tmp_path, "tiny", seed=1).parent, tmp_path.parent / f"{tmp_path.name}-aside"
    write_tiny(tmp_path, "other", seed=1)
    async with Engine(options(tmp_path, load_on_demand=True)) as engine:
        folder.rename(aside)
        await engine._repository.refresh()
        assert engine.asleep == ["other@1"]
        aside.rename(folder)
        await engine._repository.refresh()
        assert engine.asleep == ["other@1", "tiny@1"]
        assert (await engine.generate("tiny", seeds=[1])).model == "tiny@1"


async def test_who_waits_for_a_model_is_told_when_the_server_ends(tmp_path, monkeypatch):
    """Loading takes longer than there is time to drain: the wait ends, and the loop does not spin."""
    write_tiny(tmp_path, "tiny", seed=1)

    async def never(*arguments, **named):
        await asyncio.Event().wait()

    monkeypatch.setattr("service.engine.repository.prepare", never)
    async with asyncio.timeout(30):
        engine = Engine(options(tmp_path, load_on_demand=True))
        await engine.open()
        waiting = [asyncio.create_task(engine.generate("tiny", seeds=[seed], timeout_s=20)) for seed in range(3)]
        await asyncio.sleep(0.05)
        await engine.drain(0.0)
        for one in waiting:
            with pytest.raises(NotReady):
                await one
        await engine.close()
        assert engine._repository._waking == {}


async def test_waiting_for_a_model_ends_with_the_deadline_and_leaving_ends_nothing(tmp_path):
    write_tiny(tmp_path, "tiny", seed=1)
    async with Engine(options(tmp_path, load_on_demand=True)) as engine:
        await engine._repository._busy.acquire()  # another model is being loaded
        with pytest.raises(DeadlineExceeded, match="tiny@1"):
            await engine.generate("tiny", seeds=[1], timeout_s=0.05)
        leaving, waiting = (asyncio.create_task(engine.generate("tiny", seeds=[seed])) for seed in (1, 2))
        await asyncio.sleep(0.01)
        leaving.cancel()
        engine._repository._busy.release()
        assert (await waiting).model == "tiny@1"


async def test_who_was_asked_for_longest_ago_gives_way(tmp_path):
    folders = [write_tiny(tmp_path, name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    budget = 2 * max(map(weight_of, folders))
    async with Engine(options(tmp_path, memory_budget_bytes=budget, lanes=1)) as engine:
        assert [model.ref for model in engine.models()] == ["a@1", "b@1"] and engine.asleep == ["c@1"]
        expected = {name: (await engine.generate(name, seeds=[1])).images for name in ("b", "a")}
        await engine.generate("c", seeds=[1])
        assert [model.ref for model in engine.models()] == ["a@1", "c@1"] and engine.asleep == ["b@1"]
        np.testing.assert_array_equal((await engine.generate("b", seeds=[1])).images, expected["b"])
        assert engine.asleep == ["a@1"]
        assert (engine.memory().woken_total, engine.memory().evicted_total) == (2, 2)
        await engine.unload("a")
        assert engine.asleep == [] and await engine._repository.refresh() == []


async def test_more_models_than_fit_all_answer_at_once(tmp_path):
    folders = [write_tiny(tmp_path, name, seed=seed) for seed, name in enumerate("abcd")]
    budget = max(map(weight_of, folders))
    async with Engine(options(tmp_path, memory_budget_bytes=budget, lanes=1)) as engine:
        asked = [(name, asyncio.create_task(engine.generate(name, seeds=[1]))) for name in "abcd" * 3]
        for name, drawing in asked:
            assert (await drawing).model == f"{name}@1"
        assert len(engine.models()) == 1 and len(engine.asleep) == 3


async def test_a_model_larger_than_the_budget_is_refused_by_name(tmp_path):
    small = write_tiny(tmp_path, "small")
    write_tiny(tmp_path, "large", side=32)
    async with Engine(options(tmp_path, memory_budget_bytes=weight_of(small), lanes=1)) as engine:
        assert list(engine.refused) == ["large@1"] and "memory_budget_bytes" in engine.refused["large@1"]
        assert (await engine.generate("small", seeds=[1])).model == "small@1"


async def test_what_left_the_folder_no_longer_sleeps(tmp_path):
    folder = write_tiny(tmp_path, "tiny")
    write_tiny(tmp_path, "other")
    async with Engine(options(tmp_path, load_on_demand=True)) as engine:
        shutil.rmtree(folder.parent)
        await engine._repository.refresh()
        assert engine.asleep == ["other@1"]


# --- memory ---------------------------------------------------------------------------------------------------------


async def test_a_version_that_is_gone_leaves_nothing_behind(tmp_path):
    """Without a collection: objects of the start are left out of those."""
    write_tiny(tmp_path, "tiny", seed=1)
    gc.collect()
    gc.disable()
    try:
        async with Engine(options(tmp_path, versions_kept=1, shrink_after_s=0.01)) as engine:
            await engine.generate("tiny", seeds=[1])
            model = engine._repository.resolve("tiny")
            (graph,) = model.graphs.values()
            traces = [weakref.ref(one) for one in (model, graph, graph.batcher, *graph.sessions)]
            traces += [weakref.ref(session._session) for session in graph.sessions]
            del model, graph
            await engine.load("tiny")
            await gone(engine)
            await asyncio.sleep(0.05)
            assert [trace() for trace in traces if trace() is not None] == []
    finally:
        gc.enable()


def test_memory_comes_back_after_unloading(tmp_path):
    if resident_bytes() is None:
        pytest.skip("the system does not tell")
    write_tiny(tmp_path, "tiny")
    write_tiny(tmp_path, "wide", latent_dim=1024, side=128, seed=1)  # 100 MB of weights
    shutil.move(tmp_path / "wide", tmp_path / "_wide")
    command = [sys.executable, str(Path(__file__).with_name("memory_rounds.py")), str(tmp_path), "3"]
    told = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert told.returncode == 0, told.stderr.decode()
    for held, left, weight in json.loads(told.stdout)[1:]:  # what the first time makes once for all stays
        assert weight > 95e6 and held > 0.9 * weight
        assert left < 0.1 * held


# --- turns ----------------------------------------------------------------------------------------------------------


async def test_whose_turn_it_is_changes_no_picture(tmp_path):
    write_tiny(tmp_path, "tiny")
    write_tiny_style(tmp_path)
    write_picture_model(tmp_path, "paint", Task.TRANSLATE)
    write_picture_model(tmp_path, "x2", Task.UPSCALE, scale=2)
    rgb = np.random.RandomState(0).randint(0, 256, (70, 40, 3)).astype(np.uint8)
    async with Engine(options(tmp_path, tile_side=32)) as engine:

        async def drawn(share):
            pictures = [(await engine.generate(name, seeds=[1, 2], share=share)).images for name in ("tiny", "tiny-w")]
            for begin, name in ((engine.translate, "paint"), (engine.upscale, "x2")):
                pictures.append(await (await begin(name, rgb, share=share)).whole())
            return pictures

        expected, *others = await asyncio.gather(*(drawn(share) for share in (None, Share("a"), Share("b", 2.0))))
        for pictures in others:
            for one, other in zip(expected, pictures, strict=True):
                np.testing.assert_array_equal(one, other)


async def test_equal_requests_of_two_clients_wait_for_neither(tmp_path):
    write_tiny(tmp_path, "tiny")
    async with Engine(options(tmp_path, lanes=1, max_batch=4)) as engine:
        asked = [engine.generate("tiny", seeds=[3], share=Share(name)) for name in "aab"]
        drawn = await asyncio.gather(*asked)
    assert [one.coalesced for one in drawn] == [False, True, False]
