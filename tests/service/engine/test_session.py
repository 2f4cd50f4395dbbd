"""Sessions: what a provider really is, what a graph must look like, what an answer must be."""

import types

import numpy as np
import onnxruntime
import pytest
from fakesession import POISONS, SPEC, FakeSession, answers, rows

from service.engine import providers
from service.engine.lanes import run_parts
from service.engine.providers import DeviceOptions, candidates, cuda_options, missing, provider_list, tensorrt_options
from service.engine.session import OrtSession, check_golden, check_outputs, check_signature
from service.errors import GoldenMismatch, GraphMismatch, ProviderUnavailable, RunFailed
from service.manifest import GraphSpec, TensorSpec
from service.package import read_golden, read_package


def tiny_session(tiny_models, **kwargs):
    folder = tiny_models / "tiny-rgb" / "1"
    spec = read_package(folder).graphs["generator"]
    return OrtSession(folder / spec.file, spec, model="tiny-rgb@1", **{"providers": ("cpu",), **kwargs})


CUDA = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


class TestProviders:
    def test_cpu_is_what_it_says(self, tiny_models):
        session = tiny_session(tiny_models)
        assert session.provider == "cpu" and session.why == ()

    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_auto_ends_on_the_cpu_and_says_why_nothing_better(self, tiny_models, monkeypatch):
        monkeypatch.setattr(providers, "_cuda_devices", lambda: 0)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
        chosen = candidates(("auto",))
        assert chosen.names == ("webgpu", "cpu")
        assert chosen.skipped == dict.fromkeys(("tensorrt", "cuda"), "no NVIDIA driver with a device")
        session = tiny_session(tiny_models, providers=("auto",))
        assert session.provider == "cpu" and len(session.why) == 3

    def test_a_silent_fallback_is_seen(self, tiny_models, monkeypatch):
        """ONNX Runtime accepts a provider that this build lacks and runs on the CPU without an error."""
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
        monkeypatch.setattr(providers, "missing", lambda name: None)
        monkeypatch.setattr(providers, "_preload_cuda", lambda: None)
        real = onnxruntime.InferenceSession

        def falls_back(path, options, providers, **_):
            return real(path, options, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
        session = tiny_session(tiny_models, providers=("auto",))
        assert session.provider == "cpu"
        assert [note.split(":")[0] for note in session.why] == ["tensorrt", "cuda", "webgpu"]
        assert all("fell back" in note for note in session.why)
        with pytest.raises(ProviderUnavailable, match="fell back"):
            tiny_session(tiny_models, providers=("cuda",))

    def test_what_is_no_better_needs_no_reason(self, monkeypatch):
        """An onnxruntime for NVIDIA devices lacks WebGPU; that is nothing to say of a session on CUDA."""
        monkeypatch.setattr(providers, "missing", lambda name: None if name in ("cuda", "cpu") else "not here")
        monkeypatch.setattr(providers, "_preload_cuda", lambda: None)
        chosen = candidates(("auto",))
        assert chosen.names == ("cuda", "cpu")
        assert chosen.passed_over("cuda") == ("tensorrt: not here",)
        assert chosen.passed_over("cpu") == ("tensorrt: not here", "webgpu: not here")

    def test_why_a_provider_could_not_be_made_is_told(self, tiny_models, monkeypatch, capsys):
        """Left to itself ONNX Runtime prints the reason and hands out a session on the CPU instead."""
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
        monkeypatch.setattr(providers, "missing", lambda name: None if name in ("cuda", "cpu") else "not here")
        monkeypatch.setattr(providers, "_preload_cuda", lambda: None)
        real = onnxruntime.InferenceSession._create_inference_session

        def create(session, asked, *rest):
            if asked[0][0] == "CUDAExecutionProvider":
                raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient\nand more lines")
            return real(session, asked, *rest)

        monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
        session = tiny_session(tiny_models, providers=("cuda", "cpu"))
        assert session.provider == "cpu"
        assert session.why == ("cuda: CUDA failure 35: CUDA driver version is insufficient",)
        assert capsys.readouterr().out == ""
        with pytest.raises(ProviderUnavailable, match="CUDA failure 35"):
            tiny_session(tiny_models, providers=("cuda",))

    def test_plans_are_kept_by_the_name_of_the_device(self, monkeypatch):
        """What its kernels answer holds for no other kind of device. Against a stand-in for the driver."""

        class Driver:
            def cuDeviceGet(self, device, number):
                device._obj.value = number
                return 0

            def cuDeviceGetName(self, name, length, device):
                name.value = b"NVIDIA H%d" % (200 + device.value)
                return 0

        monkeypatch.setattr(providers, "_cuda_devices", lambda: 2)
        monkeypatch.setattr(providers.ctypes, "CDLL", lambda name: Driver())
        look = providers.device_name.__wrapped__  # not what was found before
        assert [look("cuda", 0), look("tensorrt", 1)] == ["NVIDIA H200", "NVIDIA H201"]
        assert [look("webgpu", 0), look("cpu", 0), look("cuda", 2)] == ["", "", ""]

    def test_what_was_named_must_work(self, monkeypatch):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(ProviderUnavailable, match="cuda: not in the installed onnxruntime"):
            candidates(("cuda",))
        assert candidates(("cuda", "cpu")).names == ("cpu",)

    def test_unknown_names_list_the_known(self):
        with pytest.raises(ProviderUnavailable, match="'rocm' is unknown; there are auto, tensorrt, cuda, webgpu, cpu"):
            candidates(("rocm",))

    def test_cuda_libraries_are_looked_for_only_where_cuda_is_tried(self, monkeypatch):
        calls = []
        monkeypatch.setattr(providers, "_preload_cuda", lambda: calls.append("preloaded"))
        candidates(("cpu",))
        assert calls == []
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
        monkeypatch.setattr(providers, "_cuda_devices", lambda: 1)
        assert "cuda" in candidates(("auto",)).names and calls == ["preloaded"]
        assert missing("cuda") is None


class TestOptions:
    """What CUDA and TensorRT are told."""

    def test_cuda_keeps_full_precision_and_takes_no_more_than_asked(self):
        assert cuda_options(DeviceOptions()) == CUDA
        assert cuda_options(DeviceOptions(memory_bytes=2**31))["gpu_mem_limit"] == "2147483648"

    def test_cudnns_choice_is_told_where_it_is_not_the_usual_and_nothing_is_printed_of_it(
        self, tiny_models, monkeypatch
    ):
        told = cuda_options(DeviceOptions(search="DEFAULT"))
        assert told == {**CUDA, "cudnn_conv_algo_search": "DEFAULT"}
        levels = []
        monkeypatch.setattr(onnxruntime, "set_default_logger_severity", levels.append)
        tiny_session(tiny_models, device=DeviceOptions())
        assert levels == []
        assert tiny_session(tiny_models, device=DeviceOptions(search="DEFAULT")).search == "DEFAULT" and levels == [3]

    def test_the_first_device_needs_no_number_others_do(self):
        """Where it is given, ONNX Runtime looks for a plugin of that number and warns that there is none."""
        for build in (cuda_options, tensorrt_options):
            assert "device_id" not in build(DeviceOptions()) and build(DeviceOptions(), 2)["device_id"] == "2"

    def test_tensorrt_caches_its_engines_where_there_is_a_cache(self, tmp_path):
        assert tensorrt_options(DeviceOptions()) == {"trt_fp16_enable": "0"}
        options = tensorrt_options(DeviceOptions(memory_bytes=2**30, fp16=True, cache=tmp_path))
        assert options["trt_fp16_enable"] == options["trt_engine_cache_enable"] == "1"
        assert options["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
        assert options["trt_max_workspace_size"] == "1073741824"

    def test_what_a_provider_cannot_run_the_next_one_does(self):
        names = {name: [one for one, _ in provider_list(name, DeviceOptions())] for name in providers.PROVIDERS}
        assert names["tensorrt"] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        assert names["webgpu"] == ["WebGpuExecutionProvider", "CPUExecutionProvider"]
        assert names["cpu"] == ["CPUExecutionProvider"]

    def test_outputs_are_bound_to_devices_and_not_on_the_cpu(self, tiny_models):
        """On the CPU the same call with the CPU as the device gives the same bits, so the binding itself is tried."""
        session, given = tiny_session(tiny_models), {"z": np.ones((3, 8), np.float32)[:, ::-1]}
        real, calls = session._session, []

        class Spy:
            def run(self, *args):
                calls.append("run")
                return real.run(*args)

            def io_binding(self):
                binding = real.io_binding()
                bind = binding.bind_output
                binding.bind_output = lambda name, device, device_id: (calls.append(device), bind(name, "cpu"))
                return binding

            def run_with_iobinding(self, *args):
                calls.append("bound")
                real.run_with_iobinding(*args)

        session._session = Spy()
        plain = session.run(given)
        session.provider = "webgpu"
        bound = session.run(given)
        assert calls == ["run", "gpu", "bound"]
        np.testing.assert_array_equal(plain["image"], bound["image"])


class TestSignature:
    def nodes(self, **changes):
        node = {"name": "x", "type": "tensor(float)", "shape": ["batch", "width"], **changes}
        other = {**node, "name": "y", "shape": ["n", None]}
        return [types.SimpleNamespace(**node)], [types.SimpleNamespace(**other)]

    def test_what_fits_passes(self):
        check_signature(SPEC, *self.nodes(), model="m@1")

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "z"},
            {"type": "tensor(double)"},
            {"shape": ["batch", "width", 1]},
            {"shape": [1, "width"]},
            {"shape": ["batch", 4]},
        ],
    )
    def test_what_does_not_is_named(self, changes):
        with pytest.raises(GraphMismatch, match=r"m@1: fake.onnx"):
            check_signature(SPEC, *self.nodes(**changes), model="m@1")

    def test_a_fixed_size_may_be_open_in_the_file_but_not_another(self):
        fixed = SPEC.model_copy(update={"inputs": (SPEC.inputs[0].model_copy(update={"shape": ("batch", 3)}),)})
        for size, fits in ((3, True), ("anything", True), (None, True), (4, False)):
            inputs, outputs = self.nodes(shape=["batch", size])
            if fits:
                check_signature(fixed, inputs, outputs, model="m@1")
            else:
                with pytest.raises(GraphMismatch):
                    check_signature(fixed, inputs, outputs, model="m@1")


def test_outputs_may_be_multiples_of_inputs():
    image = TensorSpec(name="x", kind="image", dtype="uint8", shape=("batch", "height", "width", 3))
    larger = image.model_copy(update={"name": "y", "shape": ("batch", "2*height", "2*width", 3)})
    spec = GraphSpec(file="g.onnx", sha256="0" * 64, opset=20, inputs=(image,), outputs=(larger,))
    inputs = {"x": np.zeros((2, 4, 5, 3), np.uint8)}
    check_outputs(spec, inputs, {"y": np.zeros((2, 8, 10, 3), np.uint8)})
    with pytest.raises(RunFailed, match=r"\[2, 8, 10, 3\]"):
        check_outputs(spec, inputs, {"y": np.zeros((2, 8, 8, 3), np.uint8)})


@pytest.mark.parametrize("kind", POISONS)
def test_every_wrong_answer_is_a_failed_run(kind):
    session = FakeSession()
    outcome = run_parts(session, [rows([1, 2, 3], poison=kind), rows([4, 5])], lambda index: True)
    assert isinstance(outcome.answers[0], RunFailed)
    np.testing.assert_array_equal(outcome.answers[1]["y"], answers(rows([4, 5]))["y"])
    assert outcome.runs == 6 and outcome.failures == 2 and outcome.ended_s >= outcome.started_s


def test_rows_that_nobody_waits_for_do_not_run_apart():
    session = FakeSession()
    run_parts(session, [rows([1, 2], poison="nan"), rows([4, 5])], lambda index: index == 0)
    assert [4.0] not in session.batches


class TestGolden:
    image = SPEC.model_copy(
        update={"outputs": (TensorSpec(name="y", kind="image", dtype="uint8", shape=("batch", 100, 100, 1)),)}
    )
    recorded = np.full((1, 100, 100, 1), 100, np.uint8)

    def check(self, spec, answer, recorded):
        session = types.SimpleNamespace(spec=spec, run=lambda inputs: {"y": answer})
        check_golden(session, {**rows([1] * len(recorded)), "y": recorded}, model="m@1")

    def test_one_level_everywhere_passes(self):
        self.check(self.image, self.recorded + 1, self.recorded)
        self.check(self.image, self.recorded - 1, self.recorded)

    def test_one_value_in_ten_thousand_may_differ_by_more_two_may_not(self):
        answer = self.recorded.copy()
        answer[0, 3, 3] = 0
        self.check(self.image, answer, self.recorded)
        answer[0, 4, 4] = 255
        with pytest.raises(GoldenMismatch, match=r"up to 155 levels, by more than one on 2 of 10000"):
            self.check(self.image, answer, self.recorded)

    def test_half_precision_may_differ_by_more(self):
        session = types.SimpleNamespace(spec=self.image, run=lambda inputs: {"y": self.recorded + 4})
        golden = {**rows([1]), "y": self.recorded}
        check_golden(session, golden, model="m@1", fp16=True)
        with pytest.raises(GoldenMismatch, match="more than one"):
            check_golden(session, golden, model="m@1")
        session.run = lambda inputs: {"y": self.recorded + 5}
        with pytest.raises(GoldenMismatch, match="more than four"):
            check_golden(session, golden, model="m@1", fp16=True)

    def test_levels_do_not_wrap_around(self):
        with pytest.raises(GoldenMismatch):
            self.check(self.image, np.full_like(self.recorded, 255), np.zeros_like(self.recorded))

    def test_floats_within_a_thousandth(self):
        recorded = np.array([[1.0, -2.0], [100.0, 0.0]], np.float32)
        self.check(SPEC, recorded * np.float32(1.0005), recorded)
        self.check(SPEC, recorded + np.float32(0.001), recorded)  # small beside the tensor's size
        for wrong in (recorded * np.float32(1.002), recorded + np.float32(0.1)):
            with pytest.raises(GoldenMismatch, match="relative"):
                self.check(SPEC, wrong, recorded)

    def test_not_finite_is_a_failed_run(self):
        recorded = np.ones((1, 2), np.float32)
        with pytest.raises(RunFailed):
            self.check(SPEC, recorded * np.nan, recorded)

    def test_a_real_model_passes_its_own(self, tiny_models):
        folder = tiny_models / "tiny-rgb" / "1"
        golden = read_golden(folder, read_package(folder))["generator"]
        check_golden(tiny_session(tiny_models), golden, model="tiny-rgb@1")
        with pytest.raises(GoldenMismatch):
            check_golden(tiny_session(tiny_models), {**golden, "image": golden["image"] ^ 2}, model="tiny-rgb@1")


def test_onnxruntimes_errors_are_failed_runs(tiny_models):
    with pytest.raises(RunFailed, match="tiny-rgb@1"):
        tiny_session(tiny_models).run({"z": np.zeros((1, 3), np.float32)})
