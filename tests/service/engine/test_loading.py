"""Loading: lanes on every device, devices that are left out, loads that hang. The devices are stand-ins on the CPU."""

import asyncio
import logging
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tinymodels import SAMPLES_PNG, tiny_draft, tiny_graph, write_picture_model, write_tiny

from service.engine import loading, providers
from service.engine.batcher import Batcher
from service.engine.loading import prepare
from service.engine.options import EngineOptions
from service.engine.profile import Plan
from service.engine.providers import device_ids, provider_list
from service.engine.repository import Repository
from service.engine.session import OrtSession
from service.errors import FileInvalid, PackageError, ProviderUnavailable, RunFailed, UnknownModel
from service.manifest import Task
from service.package import write_package


def accept(manifest):
    """No pipeline is asked."""


def options(root, **changes):
    return EngineOptions(**{"models": root, "providers": ("auto",), "profile_s": 0, "poll_models_s": None, **changes})


class Stand(OrtSession):
    """A session on the CPU that says it were on an NVIDIA device, and keeps which device ran how many rows."""

    ran, broken, other_bits = [], set(), set()

    def __init__(self, path, spec, *, providers, device_id=None, device=None, **rest):
        super().__init__(path, spec, providers=("cpu",), device=device, **rest)
        if tuple(providers) != ("cpu",):
            self.provider = "cuda"
            self.device_id = device_ids("cuda", device.ids)[0] if device_id is None else device_id
            if self.device_id in self.broken:
                raise RunFailed("CUDA failure 2: out of memory")

    def run(self, inputs, watch=None):
        self.ran.append((self.device_id, id(self)))
        answers = dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        return {name: array ^ 1 for name, array in answers.items()} if self.device_id in self.other_bits else answers


@pytest.fixture
def devices(monkeypatch):
    """Three NVIDIA devices."""
    monkeypatch.setattr(loading, "OrtSession", Stand)
    monkeypatch.setattr(providers, "_cuda_devices", lambda: 3)
    for name, empty in (("ran", []), ("broken", set()), ("other_bits", set())):
        monkeypatch.setattr(Stand, name, empty)
    return Stand


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path, "tiny")


async def graph_of(folder, **changes):
    return (await prepare(folder, options(folder.parent.parent, **changes), accept)).graphs["generator"]


def device_of(shaped):
    """The device of a session that keeps to planned shapes."""
    (session,) = {session.device_id: session for session in shaped.sessions}.values()
    return session.device_id


class TestDevices:
    async def test_each_has_lanes_and_one_session_for_them(self, folder, devices):
        graph = await graph_of(folder, lanes=2)
        assert graph.plan.devices == (0, 1, 2) and graph.plan.lanes == 2 and len(graph.sessions) == 6
        assert len({id(session) for session in graph.sessions}) == 3
        assert [device_of(session._session) for session in graph.sessions] == [0, 0, 1, 1, 2, 2]
        assert "on each of the devices 0, 1, 2" in str(graph.plan)

    async def test_lanes_of_all_share_one_queue(self, folder, devices):
        graph = await graph_of(folder)
        batcher = Batcher(graph.sessions, graph.plan.policy, name="tiny@1")
        devices.ran.clear()
        z = np.random.RandomState(1).randn(60, 8).astype(np.float32)
        answers = await asyncio.gather(*(batcher.submit({"z": z[i : i + 1]}) for i in range(60)))
        await batcher.close()
        assert {device for device, _ in devices.ran} == {0, 1, 2}
        expected = graph.sessions[0]._session.sessions[0].run({"z": z})["image"]
        np.testing.assert_array_equal(np.concatenate([answer.outputs["image"] for answer in answers]), expected)

    async def test_only_those_that_were_asked_for(self, folder, devices):
        graph = await graph_of(folder, devices=(2, 0))
        assert graph.plan.devices == (2, 0)
        assert [device_of(session._session) for session in graph.sessions] == [2, 0]

    async def test_one_that_is_not_there_is_refused_with_those_that_are(self, folder, devices):
        with pytest.raises(ProviderUnavailable, match="no device 7; there are 0, 1, 2"):
            await graph_of(folder, devices=(7,))

    async def test_one_that_does_not_work_is_left_out_and_named(self, folder, devices):
        devices.broken.add(1)
        graph = await graph_of(folder)
        assert graph.plan.devices == (0, 2)
        assert [note for note in graph.why if "device 1 is left out" in note and "out of memory" in note]

    async def test_one_that_was_asked_for_must_work(self, folder, devices):
        devices.broken.add(1)
        with pytest.raises(RunFailed):
            await graph_of(folder, devices=(0, 1))

    async def test_one_that_draws_other_bits_is_left_out(self, folder, devices):
        """The same seed must be the same picture, whichever lane takes it."""
        devices.other_bits.add(2)
        graph = await graph_of(folder)
        assert graph.plan.devices == (0, 1) and any("other bits" in note for note in graph.why)

    async def test_a_session_made_anew_stays_on_its_device(self, folder, devices):
        graph = await graph_of(folder)
        (again,) = graph.sessions[2]._make(False).sessions
        assert (again.device_id, again.provider, again.watch) == (2, "cuda", None)
        assert graph.sessions[2]._make(True).provider == "cpu"

    def test_what_cuda_and_tensorrt_are_told(self):
        told = {name: dict(provider_list(name, providers.DeviceOptions(), 2)) for name in ("cuda", "tensorrt")}
        assert told["cuda"]["CUDAExecutionProvider"]["device_id"] == "2"
        assert told["tensorrt"]["CUDAExecutionProvider"]["device_id"] == "2"
        assert told["tensorrt"]["TensorrtExecutionProvider"]["device_id"] == "2"

    def test_others_have_one(self, monkeypatch):
        monkeypatch.setattr(providers, "_cuda_devices", lambda: 3)
        assert device_ids("cpu", (1, 2)) == device_ids("webgpu", (1, 2)) == (0,)
        assert device_ids("cuda") == device_ids("tensorrt") == (0, 1, 2)


class ByShape(Stand):
    """Untold it takes other kernels for eight rows than for fewer, whose last bits differ; never when told a search."""

    bits, seconds_a_row, broken_search = 1, 0.0, False

    def run(self, inputs, watch=None):
        answers, count = super().run(inputs, watch), len(inputs["z"])
        if self.search:
            time.sleep(self.seconds_a_row * count)
            return {name: array ^ (2 if self.broken_search else 0) for name, array in answers.items()}
        if count == 8:
            answers["image"][2] ^= self.bits
        return answers


class TestDependence:
    """What a device does whose kernels follow the number of rows."""

    @pytest.fixture
    def by_shape(self, devices, monkeypatch):
        monkeypatch.setattr(providers, "_cuda_devices", lambda: 1)
        monkeypatch.setattr(loading, "OrtSession", ByShape)
        for name, usual in (("bits", 1), ("seconds_a_row", 0.0), ("broken_search", False)):
            monkeypatch.setattr(ByShape, name, usual)
        return ByShape

    async def test_the_search_that_is_the_same_for_every_number_of_rows_is_taken(self, folder, by_shape, caplog):
        with caplog.at_level(logging.WARNING):
            graph = await graph_of(folder, profile_s=1.0)
        assert graph.plan.search == "DEFAULT" and graph.plan.rows_independent and graph.plan.max_batch > 1
        assert [note for note in graph.why if "algorithms" in note and "DEFAULT" in note and "ms a row" in note]
        assert any("DEFAULT" in record.getMessage() for record in caplog.records)
        assert {session.search for session in graph.sessions[0]._session.sessions} == {"DEFAULT"}
        (again,) = graph.sessions[0]._make(False).sessions
        assert again.search == "DEFAULT", "made anew as it was"
        z = np.random.RandomState(1).randn(8, 8).astype(np.float32)
        together = graph.sessions[0].run({"z": z})["image"]
        alone = [graph.sessions[0].run({"z": z[row : row + 1]})["image"] for row in range(8)]
        np.testing.assert_array_equal(together, np.concatenate(alone))

    async def test_not_where_it_is_dearer_than_rows_apart(self, folder, by_shape):
        by_shape.seconds_a_row = 0.01
        graph = await graph_of(folder, profile_s=1.0)
        assert (graph.plan.search, graph.plan.max_batch, graph.plan.sizes) == ("", 1, (1,))
        assert not graph.plan.rows_independent and any("cheaper" in note for note in graph.why)

    async def test_not_where_it_answers_otherwise_than_recorded(self, folder, by_shape):
        by_shape.broken_search = True
        graph = await graph_of(folder, profile_s=1.0)
        assert (graph.plan.search, graph.plan.max_batch) == ("", 1)
        assert any("fails" in note and "golden" in note for note in graph.why)

    async def test_it_is_remembered_with_the_plan(self, folder, by_shape, tmp_path):
        first = await graph_of(folder, profile_s=1.0, cache=tmp_path / "cache")
        by_shape.ran.clear()
        again = await graph_of(folder, profile_s=1.0, cache=tmp_path / "cache")
        assert again.plan.source == "cached" and again.plan.search == "DEFAULT" and again.why == first.why
        assert {session.search for session in again.sessions[0]._session.sessions} == {"DEFAULT"}
        assert len(by_shape.ran) < 20, "nothing was looked at anew"

    async def test_pictures_of_any_size_run_apart_with_the_usual_kernels(self, tmp_path, by_shape, monkeypatch):
        """Batches were looked at in one size alone, and the others would only be slower."""
        folder = write_picture_model(tmp_path, "picture", Task.TRANSLATE)
        monkeypatch.setattr(ByShape, "run", wavering)
        graph = await graph_of(folder, profile_s=1.0)
        assert (graph.plan.search, graph.plan.max_batch) == ("", 1) and any("runs alone" in note for note in graph.why)


def wavering(session, inputs, watch=None):
    """A run in which the first of several pictures is one level off."""
    answers = Stand.run(session, inputs, watch)
    if len(next(iter(inputs.values()))) > 1:
        for array in answers.values():
            array[0] ^= 1
    return answers


class Short(Stand):
    """Lacks memory for more than `room` rows; sessions after the first `bad` have that much, those before none."""

    room, bad, made = 0, 0, 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.number = Short.made
        Short.made += self.provider == "cuda"

    def run(self, inputs, watch=None):
        count = len(next(iter(inputs.values())))
        if self.provider == "cuda" and (count > self.room or self.number < self.bad):
            raise RunFailed("tiny@1: the run failed: Available memory of 119296 is smaller than requested bytes")
        return super().run(inputs, watch)


class TestShortage:
    """A device without the memory that the load would like."""

    @pytest.fixture
    def short(self, devices, monkeypatch):
        monkeypatch.setattr(providers, "_cuda_devices", lambda: 1)
        monkeypatch.setattr(loading, "OrtSession", Short)
        for name in ("room", "bad", "made"):
            monkeypatch.setattr(Short, name, 0)
        return Short

    @pytest.mark.parametrize("profile_s", [0, 0.5])
    @pytest.mark.parametrize(("room", "planned"), [(1, 1), (2, 2), (3, 2), (9, 8)])
    async def test_smaller_runs_are_planned(self, folder, short, room, planned, profile_s):
        short.room = room
        graph = await graph_of(folder, providers=("cuda",), profile_s=profile_s)
        assert graph.plan.provider == "cuda" and graph.plan.max_batch <= planned == max(graph.plan.sizes)
        z = np.random.RandomState(1).randn(planned, 8).astype(np.float32)
        assert graph.sessions[0].run({"z": z})["image"].shape[0] == planned
        assert graph.sessions[0].notes == ()

    async def test_a_session_whose_arena_is_stuck_is_made_anew(self, folder, short):
        short.room, short.bad = 4, 1
        graph = await graph_of(folder, providers=("cuda",))
        assert graph.plan.provider == "cuda" and graph.plan.max_batch == 1
        assert any("out of memory while loading, tried anew" in note for note in graph.why)

    async def test_the_cpu_is_the_last_resort_and_that_is_told(self, folder, short):
        graph = await graph_of(folder, providers=("cuda",))
        assert graph.plan.provider == "cpu" and graph.sessions[0].provider == "cpu"
        assert any("the CPU runs it" in note for note in graph.why)
        assert graph.sessions[0]._make(False).provider == "cpu", "the plan is for the CPU"
        assert graph.sessions[0].run({"z": np.zeros((3, 8), np.float32)})["image"].shape[0] == 3

    async def test_other_faults_refuse_the_model_as_ever(self, folder, short, monkeypatch):
        def run(session, inputs, watch=None):
            raise RunFailed("tiny@1: the run failed: an illegal instruction was encountered")

        monkeypatch.setattr(Short, "run", run)
        with pytest.raises(RunFailed, match="illegal"):
            await graph_of(folder, providers=("cuda",))


def looping_model(root, name):
    """A real model whose recorded row drives it into a Loop that never ends."""
    model = onnx.load_model_from_string(tiny_graph(channels=3))
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Identity", ["v_in"], ["v_out"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go_in", TensorProto.BOOL, []),
            value("v_in", TensorProto.FLOAT, ["batch", 8]),
        ],
        [value("go_out", TensorProto.BOOL, []), value("v_out", TensorProto.FLOAT, ["batch", 8])],
    )
    model.graph.node[0].input[0] = "looked"
    nodes = [
        helper.make_node("ReduceMax", ["z"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["large"]),
        helper.make_node("Loop", ["", "large", "z"], ["looked"], body=body),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(10, np.float32), "limit"))
    golden = {"generator/z": np.full((2, 8), 20, np.float32), "generator/image": np.zeros((2, 8, 8, 3), np.uint8)}
    graph = {"generator": model.SerializeToString()}
    return write_package(
        root, tiny_draft(name, channels=3), graphs=graph, golden=golden, card="#\n", samples_png=SAMPLES_PNG
    )


class TestHangs:
    async def test_a_graph_that_loops_is_refused_and_the_others_serve(self, tmp_path):
        write_tiny(tmp_path, "after")
        write_tiny(tmp_path, "before")
        looping_model(tmp_path, "between")
        repository = Repository(options(tmp_path, providers=("cpu",), load_timeout_s=0.5), accept)
        assert await repository.refresh() == ["after@1", "before@1"]
        reason = repository.refused["between@1"]
        assert "hangs" in reason and "running generator.onnx on its recorded rows" in reason and "0.5 s" in reason
        while any("between" in thread.name for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # its run was ended, and with it its thread
        await repository.close()

    async def test_a_thread_that_cannot_be_ended_is_left_behind(self, folder, monkeypatch):
        release = threading.Event()
        monkeypatch.setattr(loading, "END_S", 0.05)
        monkeypatch.setattr(loading, "verify_package", lambda folder: release.wait())
        with pytest.raises(FileInvalid, match="tiny@1: loading hangs: reading the files"):
            await prepare(folder, options(folder.parent.parent, load_timeout_s=0.05), accept)
        release.set()

    async def test_a_load_that_moves_is_not_ended(self, folder, monkeypatch):
        """Many steps that each take less than the timeout, together more."""
        slow = OrtSession.run

        def run(self, inputs, watch=None):
            time.sleep(0.1)
            return slow(self, inputs, watch)

        monkeypatch.setattr(OrtSession, "run", run)
        changes = {"providers": ("cpu",), "load_timeout_s": 0.6, "profile_s": 5.0}
        began = time.monotonic()
        assert (await graph_of(folder, **changes)).plan.source == "measured"
        assert time.monotonic() - began > 1.2, "two timeouts long"

    async def test_cancelling_ends_it(self, tmp_path):
        folder = looping_model(tmp_path, "loop")
        task = asyncio.create_task(prepare(folder, options(tmp_path, providers=("cpu",)), accept))
        while not any("loop" in thread.name for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while any("loop" in thread.name for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class TestRepository:
    @pytest.fixture
    async def repository(self, tmp_path):
        for version in (1, 2):
            write_tiny(tmp_path, "tiny", seed=version, version=version)
        repository = Repository(options(tmp_path, providers=("cpu",)), accept)
        await repository.refresh()
        yield repository
        await repository.close()

    async def test_load_and_unload_take_either_way_of_naming_a_version(self, repository):
        await repository.unload("tiny@1")
        await repository.unload("tiny", 2)
        assert repository.loaded == []
        assert (await repository.load("tiny@1")).ref == "tiny@1"
        assert (await repository.load("tiny", 2)).ref == "tiny@2"
        assert (await repository.load("tiny@2", 2)).ref == "tiny@2"
        await repository.unload("tiny")
        assert repository.loaded == [] and (await repository.load("tiny")).ref == "tiny@2"

    @pytest.mark.parametrize("ref", ["@", "@2", "tiny@", "tiny@x", "tiny@02", "tiny@9", "other@1"])
    async def test_a_wrong_reference_is_named_as_it_was_given(self, repository, ref):
        for call in (repository.load, repository.unload):
            with pytest.raises(UnknownModel) as caught:
                await call(ref)
            assert "''" not in caught.value.detail
        with pytest.raises(UnknownModel) as caught:
            repository.resolve(ref)
        assert "''" not in caught.value.detail and (ref in caught.value.detail or ref == "other@1")

    async def test_two_versions_contradict_each_other(self, repository):
        with pytest.raises(UnknownModel, match="tiny@1"):
            await repository.load("tiny@1", 2)

    async def test_a_missing_folder_is_said_once_for_each_time_that_it_goes(self, repository, tmp_path):
        hidden = tmp_path.with_name("hidden")
        for _ in range(2):
            tmp_path.rename(hidden)
            with pytest.raises(FileInvalid):
                await repository.refresh()
            assert await repository.refresh() == await repository.refresh() == []
            assert len(repository.loaded) == 2
            hidden.rename(tmp_path)
            assert await repository.refresh() == []

    async def test_a_refused_model_is_named_once_a_line(self, repository, tmp_path, caplog):
        folder = write_tiny(tmp_path, "bad")
        (folder / "generator.onnx").write_bytes(b"other")
        with caplog.at_level(logging.ERROR):
            await repository.refresh()
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("refused bad@1: ") and line.count("bad@1") == 1
        assert "bad@1" not in repository.refused["bad@1"]
        with pytest.raises(PackageError, match="bad@1"):
            await repository.load("bad")


def test_a_plan_reads_as_a_sentence():
    plan = Plan(lanes=2, threads=1, max_batch=16, min_share=4, row_s=0.0012, rows_independent=True, provider="cpu")
    assert str(plan) == "2 lanes of 1 thread, runs of up to 16 rows, 1.2 ms a row, measured"
    other = Plan(1, 4, 1, 1, 0.25, rows_independent=False, provider="cuda", source="cached", devices=(3,))
    assert str(other) == "1 lane of 4 threads on device 3, one row a run, 250 ms a row, cached"


async def test_only_runs_of_the_size_that_was_measured_may_stay_on_the_loop(tmp_path):
    """A tile of a large picture takes a thousand times what the recorded rows of a few pixels take."""
    write_tiny(tmp_path, "faces")
    write_picture_model(tmp_path, "paint", Task.TRANSLATE)
    for name, may in (("faces", True), ("paint", False)):
        found = await prepare(tmp_path / name / "1", options(tmp_path), accept)
        assert (found.graphs["generator"].lone_s > 0) is may
