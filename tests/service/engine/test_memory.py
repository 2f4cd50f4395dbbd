"""Memory: counted as the system does, given back while a model is idle, and told."""

import asyncio
import ctypes
import gc
import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from fakesession import FakeSession, rows
from tinymodels import write_tiny

from service.engine import memory
from service.engine.idle import IdleLooks, shrink
from service.engine.memory import DeviceMemory, device_memory, memory_stats, resident_bytes, trim
from service.engine.options import EngineOptions
from service.engine.recovery import RecoveringSession
from service.engine.repository import Repository
from service.engine.session import OrtSession
from service.errors import RunFailed
from service.package import read_package


def stats(runs, busy=0, queued=0):
    return SimpleNamespace(runs_total=runs, lanes_busy=busy, queue_rows=queued)


class TestIdleLooks:
    def test_a_graph_is_named_once_after_its_last_run(self):
        looks = IdleLooks(10)
        assert looks.due({"a": stats(1)}, 0) == []
        assert looks.due({"a": stats(2)}, 9) == []
        assert looks.due({"a": stats(2)}, 18.9) == []
        assert looks.due({"a": stats(2)}, 19) == ["a"]
        assert looks.due({"a": stats(2)}, 100) == []
        assert looks.due({"a": stats(3)}, 101) == []
        assert looks.due({"a": stats(3)}, 111) == ["a"]

    def test_what_was_taken_while_loading_counts_too(self):
        looks = IdleLooks(10)
        assert [looks.due({"a": stats(0)}, now_s) for now_s in (0, 5, 10, 15)] == [[], [], ["a"], []]

    @pytest.mark.parametrize("busy", [{"busy": 1}, {"queued": 3}])
    def test_a_long_run_is_not_idle(self, busy):
        looks = IdleLooks(10)
        assert [looks.due({"a": stats(7, **busy)}, now_s) for now_s in (0, 20, 40)] == [[], [], []]

    def test_what_is_gone_is_forgotten(self):
        looks = IdleLooks(10)
        looks.due({"a": stats(1)}, 0)
        assert looks.due({}, 5) == []
        assert looks.due({"a": stats(1)}, 20) == []


@pytest.fixture
def session(tmp_path):
    folder = write_tiny(tmp_path, "tiny", side=64)
    spec = read_package(folder).graphs["generator"]
    return OrtSession(folder / spec.file, spec, model="tiny@1", providers=("cpu",))


def z(count):
    return {"z": np.random.RandomState(0).randn(count, 8).astype(np.float32)}


def test_a_large_batch_is_given_back(session):
    """Resident memory before a batch of some hundred megabytes, after it, and after the model was idle."""
    wrapped = RecoveringSession(session, None, model="tiny@1")
    wrapped.run(z(1))
    before = resident_bytes()
    wrapped.run(z(800))
    gc.collect()
    held = resident_bytes() - before
    given_back = shrink([wrapped, wrapped], z(1))
    assert held > 50e6 and given_back > 0.8 * held
    assert resident_bytes() - before < 0.2 * held


def test_the_answers_stay_the_same(session):
    expected = session.run(z(5))["image"]
    session.shrink(z(1))
    np.testing.assert_array_equal(session.run(z(5))["image"], expected)


def test_what_runs_meanwhile_is_not_harmed(session):
    expected, wrong, stop = session.run(z(32))["image"], [], threading.Event()

    def lane():
        while not stop.is_set():
            if not np.array_equal(session.run(z(32))["image"], expected):
                wrong.append(1)

    thread = threading.Thread(target=lane)
    thread.start()
    for _ in range(30):
        session.shrink(z(1))
    stop.set()
    thread.join()
    assert wrong == []


def test_the_run_options_name_the_devices_own_arena(session, monkeypatch):
    asked = []

    class Options:
        def add_run_config_entry(self, name, value):
            asked.append((name, value))

    class Inner:
        def run(self, *arguments):
            return [None]

        def io_binding(self):
            nothing = SimpleNamespace(bind_cpu_input=lambda *a: None, bind_output=lambda *a: None)
            return SimpleNamespace(**vars(nothing), copy_outputs_to_cpu=lambda: [None])

        def run_with_iobinding(self, binding, options):
            assert isinstance(options, Options)

    monkeypatch.setattr(onnxruntime, "RunOptions", Options)
    session._session = Inner()
    for session.provider, session.device_id in (("cpu", 0), ("webgpu", 0), ("cuda", 2), ("tensorrt", 1)):
        session.shrink(z(1))
    assert [value for _, value in asked] == ["cpu:0", "cpu:0", "cpu:0;gpu:2", "cpu:0;gpu:1"]
    assert {name for name, _ in asked} == {"memory.enable_memory_arena_shrinkage"}


def test_a_session_that_cannot_shrink_is_left_as_it_is():
    class Rigid(FakeSession):
        provider = "webgpu"

        def shrink(self, inputs):
            raise RunFailed("no arena")

    session = RecoveringSession(Rigid(), None, model="m@1")
    assert shrink([session], rows([1])) is None
    assert session.run(rows([1]))["y"].tolist() == [[3, 3]]


async def test_an_idle_model_is_shrunk_once_and_counted(tmp_path, monkeypatch):
    write_tiny(tmp_path, "tiny")
    shrunk = []
    monkeypatch.setattr(OrtSession, "shrink", lambda self, inputs: shrunk.append(len(inputs["z"])))
    options = EngineOptions(
        tmp_path, providers=("cpu",), lanes=3, threads_per_lane=1, profile_s=0, shrink_after_s=0.05
    )  # with more threads, as many cores would give them, each lane has a session of its own
    repository = Repository(options, lambda manifest: None)
    await repository.refresh()
    batcher = repository.resolve("tiny").graphs["generator"].batcher
    for expected in (1, 2):
        while repository.memory().shrinks_total < expected:  # noqa: ASYNC110 - a total has no event to wait for
            await asyncio.sleep(0.01)
        assert shrunk == [1] * expected, "three lanes, one session"
        await batcher.submit(z(2))
    await repository.close()


async def test_memory_is_kept_where_that_was_asked_for(tmp_path):
    options = EngineOptions(tmp_path, shrink_after_s=None)
    repository = Repository(options, lambda manifest: None)
    await repository.refresh()
    assert repository._shrinking is None and repository.memory().shrinks_total == 0
    await repository.close()


class TestProcess:
    def test_resident_memory_follows_what_is_taken(self):
        before = resident_bytes()
        block = np.ones(20_000_000)
        grown = resident_bytes() - before
        assert 0.9 * block.nbytes < grown < 1.5 * block.nbytes

    def test_where_the_system_does_not_tell(self, tmp_path):
        assert resident_bytes(tmp_path / "none") is None
        (tmp_path / "empty").write_text("")
        assert resident_bytes(tmp_path / "empty") is None

    def test_a_c_library_without_trim(self, monkeypatch):
        monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
        assert not trim()


class FakeLibraries:
    """A driver and an NVML that number two devices in opposite orders."""

    addresses = (b"00000000:81:00.0", b"00000000:01:00.0")

    def cuDeviceGet(self, device, number):
        if number >= len(self.addresses):
            return 101
        device._obj.value = number
        return 0

    def cuDeviceGetPCIBusId(self, address, length, device):
        address.value = self.addresses[device.value]
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, address, handle):
        handle._obj.value = 100 + self.addresses.index(address.value)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, found):
        found._obj.used, found._obj.total = handle.value, 1000
        return 0


def test_device_memory_is_matched_by_the_address_on_the_bus(monkeypatch):
    """Against stand-ins for the libraries: no NVIDIA hardware was at hand."""
    monkeypatch.setattr(memory, "_nvidia", lambda: (FakeLibraries(), FakeLibraries()))
    assert device_memory(1) == DeviceMemory(101, 1000) and device_memory(2) is None
    found = memory_stats([0, 1, 2], 3, 4)
    assert found.devices == {0: DeviceMemory(100, 1000), 1: DeviceMemory(101, 1000)}
    assert (found.shrinks_total, found.given_back_bytes_total) == (3, 4) and found.resident_bytes > 0


def test_device_memory_without_a_driver(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    memory._nvidia.cache_clear()
    assert device_memory(0) is None
    memory._nvidia.cache_clear()
