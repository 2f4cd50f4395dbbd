"""The engine on real tiny ONNX models: the seed promise, the choice of model, loading while serving."""

import asyncio
import dataclasses
import functools
import hashlib
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tinymodels import OPSET, SAMPLES_PNG, TINY_LABELS, golden_of, tiny_draft, tiny_graph, write_tiny

from service.engine.engine import Engine, EngineOptions
from service.engine.latents import labels_from_seeds, latents_from_seeds
from service.engine.repository import Repository
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    PackageError,
    RunFailed,
    TaskNotServed,
    TooLarge,
    UnknownModel,
)
from service.manifest import TranslateSpec
from service.package import GraphDraft, npz_bytes, write_package


def options(root, **changes):
    return EngineOptions(**{"models": root, "providers": ("cpu",), "profile_s": 0, "poll_models_s": None, **changes})


@pytest.fixture
async def engine(tiny_models):
    async with Engine(options(tiny_models, lanes=2, max_batch=4)) as engine:
        yield engine


@functools.cache
def plain_session(path):
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def alone(root, ref, seed, label, truncation):
    """One picture by plain onnxruntime: what any batching must equal, bit for bit."""
    z = latents_from_seeds([seed], 8)
    inputs = {"z": z if truncation == 1.0 else z * np.float32(truncation)}
    if label is not None:
        inputs["label"] = np.array([label], np.int64)
    return plain_session(root / ref.replace("@", "/") / "generator.onnx").run(["image"], inputs)[0][0]


async def test_open_engine_knows_its_models(engine, tiny_models):
    assert engine.ready and engine.refused == {}
    assert [model.manifest.ref for model in engine.models()] == ["tiny-grey@1", "tiny-rgb@1"]
    model = engine.model("tiny-rgb")
    assert model.folder == tiny_models / "tiny-rgb" / "1" and model.providers == ("cpu",) and model.state == "serving"
    assert (model.plan.lanes, model.plan.threads, model.plan.max_batch) == (2, 1, 4)
    assert set(engine.stats()) == {"tiny-grey@1", "tiny-rgb@1"}


async def test_seeds_come_back_with_their_pictures(engine, tiny_models):
    drawn = await engine.generate("tiny-rgb", seeds=[5, 2**32 - 1, 5])
    assert drawn.images.shape == (3, 8, 8, 3) and drawn.images.dtype == np.uint8
    assert drawn.seeds == (5, 2**32 - 1, 5) and drawn.labels == (None,) * 3 and drawn.model == "tiny-rgb@1"
    np.testing.assert_array_equal(drawn.images[0], drawn.images[2])
    np.testing.assert_array_equal(drawn.images[1], alone(tiny_models, "tiny-rgb@1", 2**32 - 1, None, 1.0))
    assert drawn.timings.queue_s >= 0 and drawn.timings.run_s > 0 and drawn.timings.batch_rows >= 1


async def test_drawn_seeds_draw_the_same_again(engine):
    drawn = await engine.generate("tiny-rgb", count=6)
    assert len(set(drawn.seeds)) == 6
    again = await engine.generate("tiny-rgb", seeds=drawn.seeds)
    np.testing.assert_array_equal(drawn.images, again.images)
    assert len((await engine.generate("tiny-rgb")).seeds) == 1


async def test_latents_given_outright(engine):
    z = latents_from_seeds([3, 4], 8)
    drawn = await engine.generate("tiny-rgb", latents=z.tolist())
    assert drawn.seeds == (None, None)
    np.testing.assert_array_equal(drawn.images, (await engine.generate("tiny-rgb", seeds=[3, 4])).images)


@pytest.mark.parametrize("label", ["Square", "sQUARE ", 1, "1", np.int64(1), ["square"], ["Square", 1]])
async def test_labels_by_name_and_index(engine, tiny_models, label):
    drawn = await engine.generate("tiny-grey", seeds=[1, 2], labels=label)
    assert drawn.labels == ("Square", "Square")
    np.testing.assert_array_equal(drawn.images[1], alone(tiny_models, "tiny-grey@1", 2, 1, 1.0))


async def test_one_label_for_each_image(engine):
    drawn = await engine.generate("tiny-grey", seeds=[1, 1, 1], labels=["circle", "Triangle", 1])
    assert drawn.labels == ("Circle", "Triangle", "Square")


async def test_no_label_lets_the_seed_decide(engine):
    seeds = list(range(20))
    drawn = await engine.generate("tiny-grey", seeds=seeds)
    assert drawn.labels == tuple(TINY_LABELS[index] for index in labels_from_seeds(seeds, 3))
    named = await engine.generate("tiny-grey", seeds=seeds, labels=drawn.labels)
    np.testing.assert_array_equal(drawn.images, named.images)


@pytest.mark.parametrize(
    ("kwargs", "error", "field"),
    [
        ({"model": "tiny"}, UnknownModel, "model"),
        ({"model": "tiny-rgb@2"}, UnknownModel, "model"),
        ({"model": "tiny-rgb@"}, UnknownModel, "model"),
        ({"seeds": [-1]}, InvalidRequest, "seed"),
        ({"seeds": [0, 2**32]}, InvalidRequest, "seeds"),
        ({"seeds": []}, InvalidRequest, "seeds"),
        ({"seeds": [1.5]}, InvalidRequest, "seed"),
        ({"seeds": list(range(65))}, TooLarge, "seeds"),
        ({"count": 0}, InvalidRequest, "count"),
        ({"count": 65}, TooLarge, "count"),
        ({"count": 2.0}, InvalidRequest, "count"),
        ({"count": True}, InvalidRequest, "count"),
        ({"count": 1, "seeds": [1]}, InvalidRequest, "count"),
        ({"latents": [[0.0] * 8], "seeds": [1]}, InvalidRequest, "latents"),
        ({"latents": [[0.0] * 7]}, InvalidRequest, "latents"),
        ({"latents": [[0.0] * 7 + [float("inf")]]}, InvalidRequest, "latents"),
        ({"latents": np.zeros((65, 8))}, TooLarge, "latents"),
        ({"label": "Square"}, InvalidRequest, "label"),
        ({"model": "tiny-grey", "label": "Hexagon"}, InvalidRequest, "label"),
        ({"model": "tiny-grey", "label": 3}, InvalidRequest, "label"),
        ({"model": "tiny-grey", "label": -1}, InvalidRequest, "label"),
        ({"model": "tiny-grey", "label": True}, InvalidRequest, "label"),
        ({"model": "tiny-grey", "label": ["Square"] * 2, "seeds": [1, 2, 3]}, InvalidRequest, "label"),
        ({"model": "tiny-grey", "latents": [[0.0] * 8]}, InvalidRequest, "label"),
        ({"truncation": float("nan")}, InvalidRequest, "truncation"),
        ({"truncation": -0.1}, InvalidRequest, "truncation"),
        ({"truncation": 2.01}, InvalidRequest, "truncation"),
        ({"priority": 0}, InvalidRequest, "priority"),
        ({"priority": 10}, InvalidRequest, "priority"),
        ({"timeout_s": 0}, InvalidRequest, "timeout_s"),
        ({"timeout_s": float("nan")}, InvalidRequest, "timeout_s"),
    ],
)
async def test_bad_arguments_are_named(engine, kwargs, error, field):
    kwargs = {"model": "tiny-rgb", **kwargs}
    if "label" in kwargs:
        kwargs["labels"] = kwargs.pop("label")
    with pytest.raises(error) as caught:
        await engine.generate(kwargs.pop("model"), **kwargs)
    assert caught.value.field == field and type(caught.value) is error
    assert all(stats.queue_rows == 0 and stats.rows_total == 0 for stats in engine.stats().values())


async def test_errors_list_what_would_be_right(engine):
    with pytest.raises(UnknownModel) as error:
        await engine.generate("nope")
    assert error.value.allowed == ["tiny-grey", "tiny-rgb"]
    with pytest.raises(InvalidRequest) as error:
        await engine.generate("tiny-grey", labels="Hexagon")
    assert error.value.allowed == list(TINY_LABELS)


async def test_a_deadline_ends_a_request(engine):
    with pytest.raises(DeadlineExceeded):
        await engine.generate("tiny-rgb", seeds=range(60), timeout_s=1e-9)
    assert (await engine.generate("tiny-rgb", seeds=[1], timeout_s=60)).images.shape == (1, 8, 8, 3)


PICTURES = st.tuples(
    st.sampled_from(["tiny-rgb", "tiny-grey"]),
    st.integers(0, 2**32 - 1) | st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.5, 1.0, 1.7]),
)


REQUESTS = st.lists(st.lists(PICTURES, min_size=1, max_size=6), min_size=1, max_size=6)
SPLITS = [(1, 1), (1, 3), (2, 4), (3, 6), (2, 32)]
"""Lanes and batch caps."""


async def draw(engine, requests):
    """All at once: every picture as a request of its own, and each group's seeds as one request."""
    asked, calls = [], []
    for group in requests:
        name, truncation = group[0][0], group[0][3]
        conditional = name == "tiny-grey"
        for one, seed, label, cut in group:
            asked.append([(one, seed, label if one == "tiny-grey" else None, cut)])
            calls.append(engine.generate(one, seeds=[seed], labels=asked[-1][0][2], truncation=cut))
        asked.append([(name, seed, label if conditional else None, truncation) for _, seed, label, _ in group])
        labels = [label for _, _, label, _ in group] if conditional else None
        seeds = [seed for _, seed, _, _ in group]
        calls.append(engine.generate(name, seeds=seeds, labels=labels, truncation=truncation))
    return list(zip(await asyncio.gather(*calls), asked, strict=True))


def hold_the_seed_promise(root, examples):
    """Concurrent requests of any size, on several lanes and batch caps, against plain onnxruntime, bit for bit."""
    with asyncio.Runner() as runner:
        engines = [Engine(options(root, lanes=lanes, max_batch=cap)) for lanes, cap in SPLITS]
        for engine in engines:
            runner.run(engine.open())

        @given(REQUESTS, st.sampled_from(engines))
        @settings(max_examples=examples, deadline=None)
        def hold(requests, engine):
            for drawn, pictures in runner.run(draw(engine, requests)):
                for image, (name, seed, label, truncation) in zip(drawn.images, pictures, strict=True):
                    np.testing.assert_array_equal(image, alone(root, f"{name}@1", seed, label, truncation))

        try:
            hold()
            sizes = set().union(*(stats.batch_rows for engine in engines for stats in engine.stats().values()))
            assert 1 in sizes and len(sizes) >= 3, "the search must have met batches of several sizes"
        finally:
            for engine in engines:
                runner.run(engine.close())


def test_a_seed_is_one_picture_alone_or_in_any_batch(tiny_models):
    hold_the_seed_promise(tiny_models, 60)


@pytest.mark.fuzz
def test_a_seed_is_one_picture_over_two_thousand_searches(tiny_models):
    hold_the_seed_promise(tiny_models, 2000)


def rewrite(folder, name, content):
    """Replace a file and record its hash, so that only what is in it is wrong."""
    (folder / name).write_bytes(content)
    fields = json.loads((folder / "manifest.json").read_text())
    spec = fields["golden"] if name == "golden.npz" else fields["graphs"]["generator"]
    spec["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(fields))


def other_golden(folder):
    with np.load(folder / "golden.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["generator/image"] = np.clip(arrays["generator/image"].astype(int) + 2, 0, 255).astype(np.uint8)
    rewrite(folder, "golden.npz", npz_bytes(arrays))


def fixed_batch(content):
    model = onnx.load_from_string(content)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model.SerializeToString()


def renamed_input(content):
    model = onnx.load_from_string(content)
    model.graph.input[0].name = "latent"
    model.graph.node[0].input[0] = "latent"
    return model.SerializeToString()


def edit(folder, **changes):
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**fields, **changes}))


DAMAGE = {
    "missing file": (lambda f: (f / "generator.onnx").unlink(), "missing"),
    "wrong hash": (lambda f: (f / "generator.onnx").write_bytes(tiny_graph(channels=3, seed=9)), "sha256"),
    "wrong golden": (other_golden, "differs from golden by up to 2 levels"),
    "wrong size": (lambda f: rewrite(f, "generator.onnx", tiny_graph(channels=3, side=16)), "shape"),
    "wrong channels": (lambda f: rewrite(f, "generator.onnx", tiny_graph(channels=1)), "shape"),
    "fixed batch": (lambda f: rewrite(f, "generator.onnx", fixed_batch((f / "generator.onnx").read_bytes())), "shape"),
    "other input": (
        lambda f: rewrite(f, "generator.onnx", renamed_input((f / "generator.onnx").read_bytes())),
        "latent",
    ),
    "other weights": (lambda f: rewrite(f, "generator.onnx", tiny_graph(channels=3, seed=9)), "golden"),
    "not onnx": (lambda f: rewrite(f, "generator.onnx", b"not onnx at all"), "generator.onnx"),
    "malformed manifest": (lambda f: (f / "manifest.json").write_text("{"), "JSON"),
    "wrong folder": (lambda f: edit(f, name="another"), "another@1"),
    "two latents": (lambda f: edit(f, generate={"latent_dim": 9}), "latent_dim"),
}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_a_bad_model_is_refused_by_name_and_the_others_serve(tmp_path, kind):
    write_tiny(tmp_path, "good")
    damage, says = DAMAGE[kind]
    damage(write_tiny(tmp_path, "bad"))
    async with Engine(options(tmp_path)) as engine:
        assert engine.ready and list(engine.refused) == ["bad@1"]
        assert says in engine.refused["bad@1"]
        assert (await engine.generate("good", seeds=[1])).images.shape == (1, 8, 8, 3)
        with pytest.raises(UnknownModel) as error:
            await engine.generate("bad")
        assert error.value.allowed == ["good"]
        with pytest.raises(PackageError):
            await engine.load("bad")


async def test_a_model_that_answers_nan_is_refused(tmp_path):
    """Its golden rows are finite where they were recorded; here they are not."""
    graph = tiny_graph(channels=3, poison=True)
    draft = tiny_draft("bad", channels=3)
    spec = draft.graphs["generator"]
    score = spec.inputs[0].model_copy(update={"name": "score", "shape": ("batch", 1)})
    spec = spec.model_copy(update={"outputs": (*spec.outputs, score)})
    golden = golden_of(graph, {"z": -np.abs(latents_from_seeds([0, 1], 8))})
    golden["generator/score"] = np.zeros((2, 1), np.float32)
    write_package(
        tmp_path,
        draft.model_copy(update={"graphs": {"generator": spec}}),
        graphs={"generator": graph},
        golden=golden,
        card="",
        samples_png=SAMPLES_PNG,
    )
    async with Engine(options(tmp_path)) as engine:
        assert "not finite" in engine.refused["bad@1"] and not engine.ready


async def test_what_cudnn_chooses_by_is_part_of_what_pictures_depend_on(tiny_models):
    """Other algorithms, other last bits: an ETag from a replica that chose otherwise must not fit."""
    async with Engine(options(tiny_models)) as engine:
        info = engine.model("tiny-rgb")
    plans = {name: dataclasses.replace(plan, search="DEFAULT") for name, plan in info.plans.items()}
    assert dataclasses.replace(info, plans=plans).fingerprint == f"{info.fingerprint}|DEFAULT"


async def test_a_real_run_that_answers_nan_fails_alone(tmp_path):
    graph = tiny_graph(channels=3, poison=True)
    draft = tiny_draft("half", channels=3)
    spec = draft.graphs["generator"]
    score = spec.inputs[0].model_copy(update={"name": "score", "shape": ("batch", 1)})
    spec = spec.model_copy(update={"outputs": (*spec.outputs, score)})
    write_package(
        tmp_path,
        draft.model_copy(update={"graphs": {"generator": spec}}),
        graphs={"generator": graph},
        golden=golden_of(graph, {"z": np.abs(latents_from_seeds([0, 1], 8))}),
        card="",
        samples_png=SAMPLES_PNG,
    )
    async with Engine(options(tmp_path, lanes=1)) as engine:
        z = np.abs(latents_from_seeds(range(8), 8))
        z[5, 0] = -1.0
        calls = [engine.generate("half", latents=row) for row in z]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(result, RunFailed) for result in results] == [index == 5 for index in range(8)]
        assert engine.stats()["half@1"].apart_total == 1


def small_graph(nodes, initializers, told=()):
    """z of eight numbers to an image of eight pixels; `told`: shapes of what lies between."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 2, 4, 1])],
        initializers,
        value_info=told,
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def normalising_graph():
    """Training-mode batch statistics: subtracts the batch's mean, so neighbours show in every row."""
    nodes = [
        helper.make_node("ReduceMean", ["z", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["z", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "gain"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["bytes", "shape"], ["image"]),
    ]
    constants = {"gain": 50.0, "low": 0.0, "high": 255.0}
    initializers = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([0], np.int64), "axis"))
    initializers.append(numpy_helper.from_array(np.array([-1, 2, 4, 1], np.int64), "shape"))
    return small_graph(nodes, initializers)


def summing_graph():
    """Weighs z for each pixel, and sums over z: in another order where a row is alone."""
    weights = np.random.RandomState(0).randn(1, 8, 8).astype(np.float32) * 40
    tensors = {"weights": weights, "low": np.float32(0), "high": np.float32(255)}
    whole = {"axes": [1], "behind": [2], "shape": [-1, 2, 4, 1]}
    initializers = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in tensors.items()]
    initializers += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in whole.items()]
    nodes = [
        helper.make_node("Unsqueeze", ["z", "behind"], ["column"]),
        helper.make_node("Mul", ["column", "weights"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "axes"], ["sums"]),
        helper.make_node("Clip", ["sums", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["bytes", "shape"], ["image"]),
    ]
    told = helper.make_tensor_value_info("weighed", TensorProto.FLOAT, ["batch", 8, 8])
    return small_graph(nodes, initializers, [told])


@pytest.mark.parametrize(
    ("make", "note"), [(normalising_graph, "influence one another"), (summing_graph, "summed in another order")]
)
async def test_rows_that_influence_one_another_run_alone(tmp_path, make, note):
    graph = make()
    draft = tiny_draft("mixed", channels=1)
    spec = draft.graphs["generator"]
    image = spec.outputs[0].model_copy(update={"shape": ("batch", 2, 4, 1)})
    write_package(
        tmp_path,
        draft.model_copy(update={"graphs": {"generator": spec.model_copy(update={"outputs": (image,)})}}),
        graphs={"generator": graph},
        golden=golden_of(graph, {"z": latents_from_seeds([0, 1], 8)}),
        card="",
        samples_png=SAMPLES_PNG,
    )
    async with Engine(options(tmp_path)) as engine:
        plan = engine.model("mixed").plan
        assert plan.rows_independent is False and plan.max_batch == 1 and note in plan.note
        both = await engine.generate("mixed", seeds=[1, 2])
        single = await engine.generate("mixed", seeds=[2])
        np.testing.assert_array_equal(both.images[1], single.images[0])


async def test_a_new_folder_is_served_without_a_restart(tmp_path):
    write_tiny(tmp_path, "first")
    async with Engine(options(tmp_path, poll_models_s=0.01)) as engine:
        before = await engine.generate("first", seeds=[1])
        write_tiny(tmp_path, "second", seed=4)
        write_tiny(tmp_path, "first", seed=5)
        async with asyncio.timeout(30):
            while {model.manifest.ref for model in engine.models()} != {"first@1", "first@2", "second@1"}:
                await asyncio.sleep(0.01)
                await engine.generate("first@1", seeds=[1])
        after = await engine.generate("first", seeds=[1])
        assert after.model == "first@2" and (after.images != before.images).any()
        pinned = await engine.generate("first@1", seeds=[1])
        np.testing.assert_array_equal(pinned.images, before.images)


async def test_a_folder_that_is_repaired_is_taken_up(tmp_path):
    folder = write_tiny(tmp_path, "tiny")
    content = (folder / "generator.onnx").read_bytes()
    (folder / "generator.onnx").write_bytes(content[:100])
    async with Engine(options(tmp_path, poll_models_s=0.01)) as engine:
        assert not engine.ready and "tiny@1" in engine.refused
        (folder / "generator.onnx").write_bytes(content)
        async with asyncio.timeout(30):
            while engine.refused or not engine.ready:
                await asyncio.sleep(0.01)
                assert len(engine.models()) <= 1


async def test_swapping_versions_under_load_loses_no_request(tmp_path):
    write_tiny(tmp_path, "tiny", seed=1)
    async with Engine(options(tmp_path, versions_kept=1, lanes=2, max_batch=4)) as engine:
        stop = asyncio.Event()

        async def client():
            drawn = []
            while not stop.is_set():
                drawn.append(await engine.generate("tiny", seeds=[7, 8]))
            return drawn

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        for seed in (2, 3):
            await asyncio.sleep(0.05)
            write_tiny(tmp_path, "tiny", seed=seed)
            await engine.load("tiny")
        await asyncio.sleep(0.05)
        stop.set()
        for drawn in await asyncio.gather(*clients):
            served = [result.model for result in drawn]
            assert served == sorted(served) and set(served) == {"tiny@1", "tiny@2", "tiny@3"}
            for result in drawn:
                np.testing.assert_array_equal(result.images[1], alone(tmp_path, result.model, 8, None, 1.0))
        assert [model.manifest.ref for model in engine.models()] == ["tiny@3"]


async def test_a_bad_new_version_leaves_the_old_one_serving(tmp_path):
    write_tiny(tmp_path, "tiny")
    async with Engine(options(tmp_path)) as engine:
        other_golden(write_tiny(tmp_path, "tiny", seed=2))
        with pytest.raises(PackageError, match="golden"):
            await engine.load("tiny")
        assert (await engine.generate("tiny", seeds=[1])).model == "tiny@1"
        assert list(engine.refused) == ["tiny@2"] and engine.ready


async def test_one_version_is_unloaded_and_the_others_stay(tmp_path):
    for version in (1, 2):
        write_tiny(tmp_path, "tiny", version=version)
    async with Engine(options(tmp_path, versions_kept=2)) as engine:
        with pytest.raises(UnknownModel):
            await engine.unload("tiny", 3)
        await engine.unload("tiny", 1)
        assert [model.manifest.ref for model in engine.models()] == ["tiny@2"]


async def test_what_a_version_has_done_stays_when_it_goes(tmp_path, monkeypatch):
    """Counters that vanish, or begin anew, hide what happened last from whoever adds them up."""
    write_tiny(tmp_path, "tiny")
    async with Engine(options(tmp_path)) as engine:
        await engine.generate("tiny", seeds=[1, 2, 3])
        await engine.load("tiny")  # in its own place
        await engine.generate("tiny", seeds=[4])
        found = engine.stats()["tiny@1"]
        assert (found.rows_total, found.ended_total["answered"]) == (4, 2) and found.lanes
        await engine.unload("tiny")
        while engine.stats()["tiny@1"].lanes:  # noqa: ASYNC110 - it finishes what it has begun
            await asyncio.sleep(0.01)
        found = engine.stats()["tiny@1"]
        assert (found.rows_total, found.queue_rows, found.row_s) == (4, 0, 0.0)
        assert found.gone, "though it was loaded twice"
        await engine.load("tiny")
        assert engine.stats()["tiny@1"].rows_total == 4 and engine.stats()["tiny@1"].lanes
        assert engine.serving_stats()["tiny@1"].rows_total == 0, "of what serves now alone"
        await engine.unload("tiny")
        monkeypatch.setattr("service.engine.repository.PAST_S", -1.0)
        while engine.stats():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_model_whose_threads_do_not_start_is_refused_and_the_others_serve(tmp_path, monkeypatch):
    write_tiny(tmp_path, "tiny")
    write_tiny(tmp_path, "wide")
    real = Repository._batchers

    def failing(self, prepared):
        if prepared.manifest.name == "wide":
            raise RuntimeError("can't start new thread")
        return real(self, prepared)

    monkeypatch.setattr(Repository, "_batchers", failing)
    async with Engine(options(tmp_path)) as engine:
        assert [model.manifest.name for model in engine.models()] == ["tiny"]
        assert "can't start new thread" in engine.refused["wide@1"]


async def test_unloading_and_loading_again(tmp_path):
    write_tiny(tmp_path, "tiny")
    write_tiny(tmp_path, "other")
    async with Engine(options(tmp_path, poll_models_s=0.01)) as engine:
        await engine.unload("tiny")
        await asyncio.sleep(0.1)
        assert [model.manifest.name for model in engine.models()] == ["other"], "polling does not undo an unload"
        with pytest.raises(UnknownModel):
            await engine.unload("tiny")
        assert (await engine.load("tiny")).manifest.ref == "tiny@1"
        with pytest.raises(UnknownModel) as error:
            await engine.load("tiny", 2)
        assert error.value.field == "version" and error.value.allowed == [1]
        with pytest.raises(UnknownModel) as error:
            await engine.load("nothing")
        assert error.value.allowed == ["other", "tiny"]


async def test_reloading_changed_files_of_a_version(tmp_path):
    folder = write_tiny(tmp_path, "tiny", seed=1)
    newer = write_tiny(tmp_path / "elsewhere", "tiny", seed=2)
    async with Engine(options(tmp_path)) as engine:
        before = (await engine.generate("tiny", seeds=[1])).images
        shutil.copytree(newer, folder, dirs_exist_ok=True)
        await engine.load("tiny", 1)
        after = (await engine.generate("tiny", seeds=[1])).images
        assert (before != after).any()


async def test_only_the_newest_versions_are_kept(tmp_path):
    for seed in range(4):
        write_tiny(tmp_path, "tiny", seed=seed)
    async with Engine(options(tmp_path, versions_kept=2)) as engine:
        assert [model.manifest.version for model in engine.models()] == [4, 3]
        assert (await engine.load("tiny", 1)).manifest.version == 1, "asked for by name"
        assert (await engine.generate("tiny")).model == "tiny@4"


async def test_names_that_are_still_being_written_are_passed_over(tmp_path):
    write_tiny(tmp_path, "tiny")
    for name in (".hidden", "_staging", "copy.tmp"):
        shutil.copytree(tmp_path / "tiny", tmp_path / name)
        shutil.copytree(tmp_path / "tiny" / "1", tmp_path / "tiny" / name)
    (tmp_path / "README.md").write_text("a file")
    shutil.copytree(tmp_path / "tiny", tmp_path / "Bad_Name")
    (tmp_path / "tiny" / "latest").mkdir()
    (tmp_path / "tiny" / "01").mkdir()
    async with Engine(options(tmp_path)) as engine:
        assert [model.manifest.ref for model in engine.models()] == ["tiny@1"]
        assert set(engine.refused) == {"Bad_Name", "tiny/latest", "tiny/01"}


async def test_a_missing_models_folder_is_said(tmp_path):
    with pytest.raises(PackageError, match="not a folder"):
        await Engine(options(tmp_path / "nowhere")).open()


async def test_draining(tiny_models):
    engine = Engine(options(tiny_models, lanes=1))
    with pytest.raises(NotReady):
        await engine.generate("tiny-rgb")
    await engine.open()
    accepted = [asyncio.ensure_future(engine.generate("tiny-rgb", seeds=[seed])) for seed in range(20)]
    await asyncio.sleep(0)
    await engine.drain(30)
    assert not engine.ready
    assert all(task.done() and task.result().images.shape == (1, 8, 8, 3) for task in accepted)
    with pytest.raises(NotReady):
        await engine.generate("tiny-rgb")
    await engine.close()
    assert engine.models() == []


async def test_a_task_that_is_not_served(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["batch", "height", "width", 3])],
    )
    opset = [helper.make_opsetid("", OPSET)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    image = tiny_draft("x", channels=3).graphs["generator"].outputs[0]
    ends = [image.model_copy(update={"name": name, "shape": ("batch", "height", "width", 3)}) for name in "xy"]
    changes = {
        "tasks": ("translate",),
        "generate": None,
        "translate": TranslateSpec(),
        "graphs": {"generator": GraphDraft(opset=OPSET, inputs=ends[:1], outputs=ends[1:])},
    }
    write_package(
        tmp_path,
        tiny_draft("copy", channels=3).model_copy(update=changes),
        graphs={"generator": content},
        golden=golden_of(content, {"x": np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)}),
        card="",
        samples_png=SAMPLES_PNG,
    )
    write_tiny(tmp_path, "tiny")
    async with Engine(options(tmp_path)) as engine:
        assert engine.refused == {}
        with pytest.raises(TaskNotServed) as error:
            await engine.generate("copy")
        assert error.value.field == "model" and error.value.allowed == ["tiny"]


async def test_equal_seeded_requests_under_way_run_once(tiny_models):
    async with Engine(options(tiny_models, lanes=1, max_batch=4)) as engine:
        asked = [engine.generate("tiny-rgb", seeds=[3, 4], truncation=0.5) for _ in range(20)]
        drawn = await asyncio.gather(*asked, engine.generate("tiny-rgb", seeds=[3, 5], truncation=0.5))
        stats = engine.stats()["tiny-rgb@1"]
    assert stats.rows_total == 4, "two pictures for twenty, two for the one that asked for others"
    assert sorted(one.coalesced for one in drawn) == [False] * 2 + [True] * 19
    for one in drawn[:20]:
        assert np.array_equal(one.images, drawn[0].images)
        assert one.timings.queue_s >= 0 and one.timings.run_s >= 0
    assert not np.array_equal(drawn[20].images, drawn[0].images)


async def test_drawn_seeds_and_given_latents_are_never_coalesced(tiny_models):
    async with Engine(options(tiny_models, lanes=1, max_batch=4)) as engine:
        z = np.zeros((1, 8), np.float32)
        asked = [engine.generate("tiny-rgb", latents=z) for _ in range(3)]
        drawn = await asyncio.gather(*asked, *(engine.generate("tiny-rgb", count=1) for _ in range(3)))
        assert engine.stats()["tiny-rgb@1"].rows_total == 6
    assert not any(one.coalesced for one in drawn)


async def test_a_follower_draws_for_itself_when_the_first_leaves(tiny_models):
    async with Engine(options(tiny_models, lanes=1, max_batch=4)) as engine:
        first, second = (asyncio.create_task(engine.generate("tiny-rgb", seeds=[9])) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert np.array_equal((await second).images[0], alone(tiny_models, "tiny-rgb@1", 9, None, 1.0))
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_a_lone_request_of_a_small_model_stays_on_the_loop_and_draws_the_same(tiny_models):
    async with Engine(options(tiny_models, lanes=1)) as engine:
        lanes = [graph.batcher._lanes[0] for model in engine._repository.loaded for graph in model.graphs.values()]
        started = []
        for lane in lanes:
            lane.start = lambda job: started.append(job)
        for seed in range(5):
            drawn = await engine.generate("tiny-rgb", seeds=[seed], lone=True)
            assert np.array_equal(drawn.images[0], alone(tiny_models, "tiny-rgb@1", seed, None, 1.0))
    assert started == []
