"""The service on a real GPU provider: WebGPU, which any machine has over a software device, or what GPU_PROVIDER names.

    GPU_PROVIDER=cuda python -m pytest -m gpu tests/gpu    # on a machine with an NVIDIA device

Says nothing of speed.
"""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tinymodels import write_tiny

from service.engine.engine import Engine, EngineOptions
from service.engine.idle import shrink
from service.engine.providers import PROVIDERS
from service.engine.recovery import RecoveringSession
from service.engine.session import IMAGE_LEVELS, IMAGE_SHARE, OrtSession, check_golden
from service.errors import RunFailed
from service.package import read_golden, read_package

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
PROVIDER = os.environ.get("GPU_PROVIDER", "webgpu")
SHIPPED = sorted(path.parent for path in (ROOT / "models").glob("*/*/manifest.json"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny(root, "tiny-rgb", channels=3, side=32)
    write_tiny(root, "tiny-grey", channels=1, labels=("Circle", "Square"), seed=1)
    return root


def session_of(folder, provider="auto"):
    manifest = read_package(folder)
    name, spec = list(manifest.graphs.items())[-1]
    return OrtSession(folder / spec.file, spec, model=manifest.ref, providers=(provider,)), read_golden(
        folder, manifest
    )[name]


def assert_same_picture(one, other):
    distance = np.abs(one.astype(np.int16) - other.astype(np.int16))
    assert one.shape == other.shape and (distance > IMAGE_LEVELS).sum() <= IMAGE_SHARE * distance.size


def test_auto_takes_the_gpu_and_says_why_nothing_better(models):
    session, _ = session_of(models / "tiny-rgb" / "1")
    assert session.provider == PROVIDER
    assert session._session.get_providers()[0] == PROVIDERS[PROVIDER]
    assert [note.split(":")[0] for note in session.why] == list(PROVIDERS)[: list(PROVIDERS).index(PROVIDER)]


def test_outputs_stay_on_the_device_until_they_are_copied(models):
    session, golden = session_of(models / "tiny-rgb" / "1")
    real, devices = session._session, []

    class Spy:
        def __getattr__(self, name):
            return getattr(real, name)

        def run_with_iobinding(self, binding, options):
            real.run_with_iobinding(binding, options)
            devices.extend(value.device_name() for value in binding.get_outputs())

    session._session = Spy()
    answer = session.run({"z": golden["z"]})["image"]
    assert devices and "cpu" not in devices
    assert_same_picture(answer, golden["image"])


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_pixels_are_the_cpus_in_any_batch(models, rows):
    z = np.random.RandomState(0).randn(8, 8).astype(np.float32)
    device, _ = session_of(models / "tiny-rgb" / "1")
    cpu, _ = session_of(models / "tiny-rgb" / "1", "cpu")
    together = device.run({"z": z[:rows]})["image"]
    assert_same_picture(together, cpu.run({"z": z[:rows]})["image"])
    alone = device.run({"z": z[rows - 1 : rows]})["image"]
    np.testing.assert_array_equal(together[-1:], alone)


def test_an_idle_session_gives_back_what_it_can_and_draws_the_same(models):
    """WebGPU has no arena on the device that could shrink; what is on the CPU does, and nothing else changes."""
    session, golden = session_of(models / "tiny-rgb" / "1")
    recovering = RecoveringSession(session, lambda on_cpu: session, model="tiny-rgb@1")
    before = recovering.run({"z": golden["z"]})["image"]
    assert shrink([recovering], {"z": golden["z"][:1]}) is not None
    np.testing.assert_array_equal(recovering.run({"z": golden["z"]})["image"], before)


def test_sessions_that_run_at_the_same_time_do_not_disturb_each_other(models):
    """Two models under load, and a third that is being loaded: on WebGPU all share one device and its encoder."""
    feeds = {"tiny-rgb": {"z": np.random.RandomState(0).randn(3, 8).astype(np.float32)}}
    feeds["tiny-grey"] = {**feeds["tiny-rgb"], "label": np.array([0, 1, 0])}
    served = {name: session_of(models / name / "1")[0] for name in feeds}
    expected = {name: served[name].run(feed)["image"] for name, feed in feeds.items()}
    wrong: list[str] = []

    def again(name, make):
        try:
            for _ in range(40):
                session = session_of(models / name / "1")[0] if make else served[name]
                if not np.array_equal(session.run(feeds[name])["image"], expected[name]):
                    wrong.append(f"{name}: other pixels")
        except Exception as error:
            wrong.append(f"{name}: {error}")

    jobs = [("tiny-rgb", False), ("tiny-grey", False), ("tiny-rgb", True)]
    threads = [threading.Thread(target=again, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


async def test_a_device_that_is_asked_for_must_be_there_where_one_can_be_asked_for(models):
    """ONNX Runtime cannot be told which device WebGPU is to take, so what is asked is for NVIDIA devices alone."""
    options = EngineOptions(models=models, providers=(PROVIDER,), poll_models_s=None, devices=(99,), profile_s=0)
    async with Engine(options) as engine:
        if PROVIDER == "webgpu":
            info = engine.model("tiny-rgb")
            assert engine.refused == {} and info.providers == (PROVIDER,) and info.plan.devices == (0,)
        else:
            assert set(engine.refused) == {"tiny-rgb@1", "tiny-grey@1"}
            assert all("there is no device 99" in reason for reason in engine.refused.values())


if SHIPPED:  # a fresh clone without models has no such test, rather than one that is skipped

    @pytest.mark.parametrize("folder", SHIPPED, ids=[f"{path.parent.name}@{path.name}" for path in SHIPPED])
    def test_shipped_models_answer_as_recorded(folder):
        session, golden = session_of(folder)
        assert session.provider == PROVIDER
        check_golden(session, golden, model=folder.parent.name)


async def test_the_engine_draws_the_same_on_either(models):
    drawn = {}
    for provider in ("auto", "cpu"):
        async with Engine(EngineOptions(models=models, providers=(provider,), poll_models_s=None)) as engine:
            assert engine.refused == {}
            info = engine.model("tiny-grey")
            drawn[provider] = await engine.generate("tiny-grey", seeds=range(12), labels="Square")
            assert info.providers == ((PROVIDER,) if provider == "auto" else ("cpu",))
            assert info.plan.lanes == 1 or provider == "cpu"
    assert_same_picture(drawn["auto"].images, drawn["cpu"].images)


def test_a_device_that_runs_out_of_memory_is_left_for_the_cpu(models):
    folder = models / "tiny-rgb" / "1"

    class Full:
        """A real session on the device whose runs all lack memory."""

        def __init__(self):
            self.session, self.golden = session_of(folder)
            self.spec, self.provider, self.max_rows = self.session.spec, self.session.provider, None

        def run(self, inputs, watch=None):
            self.session.run(inputs, watch)
            raise RunFailed("Failed to allocate memory for requested buffer of size 1")

    session = RecoveringSession(Full(), lambda on_cpu: session_of(folder, "cpu")[0] if on_cpu else Full(), model="m")
    golden = read_golden(folder, read_package(folder))["generator"]
    np.testing.assert_array_equal(session.run({"z": golden["z"]})["image"], golden["image"])
    assert session.provider == "cpu" and f"{PROVIDER} given up" in session.notes[-1]


def wait_for(look, timeout_s=120.0):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_the_server_from_end_to_end(models):
    line = [sys.executable, "-m", "service", "serve", "--models", str(models), "--port", "0"]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ})
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        address = wait_for(lambda: next((word for row in lines for word in row.split() if "http://" in word), None))
        wait_for(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        assert PROVIDER in httpx.get(f"{address}/models/tiny-rgb").text
        reply = httpx.post(f"{address}/generate", json={"model": "tiny-rgb", "seed": 7})
        assert reply.status_code == 200 and reply.headers["content-type"] == "image/png", reply.text
        picture = np.asarray(Image.open(io.BytesIO(reply.content)))
        assert f'provider="{PROVIDER}"' in httpx.get(f"{address}/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        reader.join()
    z = np.random.RandomState(7).randn(8).astype(np.float32)[None]
    cpu, _ = session_of(models / "tiny-rgb" / "1", "cpu")
    assert_same_picture(picture, cpu.run({"z": z})["image"][0])
