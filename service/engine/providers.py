"""Which execution provider runs a model: what was asked, what this machine has, what was really obtained, and why.

ONNX Runtime lists every provider it was built with, present or not, and falls back to the CPU without an error; so
each candidate is looked at before it is tried, and what a session got is read back afterwards.
"""

import ctypes
import ctypes.util
import functools
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from service.errors import ProviderUnavailable

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""Our names, in the order that `auto` tries them, and ONNX Runtime's."""

OUTPUT_DEVICES = {"tensorrt": "cuda", "cuda": "cuda", "webgpu": "gpu"}
"""Where a run's outputs stay until they are copied once, as ONNX Runtime's IO binding calls it; the CPU needs none."""


@dataclass(frozen=True)
class DeviceOptions:
    """What providers other than the CPU are told.

    Args:
        memory_bytes: most memory of the device that one session's arena may take; None: all that there is.
        fp16: let TensorRT compute in half precision: faster, and answers a little different.
        cache: a writable folder in which TensorRT keeps its built engines, which take minutes to build.
        ids: the NVIDIA devices to use, as CUDA numbers them; None: all that the driver shows.
        search: how cuDNN chooses the algorithms of convolutions, in ONNX Runtime's words; empty: as it does untold.
    """

    memory_bytes: int | None = None
    fp16: bool = False
    cache: Path | None = None
    ids: tuple[int, ...] | None = None
    search: str = ""


def cuda_options(device: DeviceOptions, device_id: int = 0) -> dict[str, str]:
    """For CUDAExecutionProvider. The arena takes what is asked and not the next power of two: it never gives back."""
    # TF32 keeps 10 bits of mantissa: enough to move pixels between batch sizes, so it stays off.
    options = {**_numbered(device_id), "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    if device.memory_bytes is not None:
        options["gpu_mem_limit"] = str(device.memory_bytes)
    if device.search:
        options["cudnn_conv_algo_search"] = device.search
    return options


def tensorrt_options(device: DeviceOptions, device_id: int = 0) -> dict[str, str]:
    """For TensorrtExecutionProvider; `memory_bytes` bounds its workspace, which is what it sizes by itself."""
    options = {**_numbered(device_id), "trt_fp16_enable": "1" if device.fp16 else "0"}
    if device.memory_bytes is not None:
        options["trt_max_workspace_size"] = str(device.memory_bytes)
    if device.cache is not None:
        folder = str(device.cache / "tensorrt")
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return options


def _numbered(device_id: int) -> dict[str, str]:
    """Names a device, but for the first, which is taken anyway: ONNX Runtime 1.26 and newer look for a plugin where
    the number is given, and warn at each session that there is none.
    """
    return {"device_id": str(device_id)} if device_id else {}


def provider_list(name: str, device: DeviceOptions, device_id: int = 0) -> list[tuple[str, dict[str, str]]]:
    """What a session is asked for: the provider, and those that run the nodes which it cannot."""
    build = {"tensorrt": tensorrt_options, "cuda": cuda_options}
    order = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cpu": ("cpu",)}.get(name, (name, "cpu"))
    return [(PROVIDERS[one], build[one](device, device_id) if one in build else {}) for one in order]


def device_ids(name: str, asked: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The devices of a provider that are to be used, at least one.

    ONNX Runtime picks WebGPU's device by itself and cannot be told another one, and the CPU is one device: what was
    asked is not for them.

    Raises:
        ProviderUnavailable: a device that was asked for is not there.
    """
    if name not in ("cuda", "tensorrt"):
        return (0,)
    there = tuple(range(_cuda_devices())) or (0,)
    absent = [number for number in asked or () if number not in there]
    if absent:
        raise ProviderUnavailable(f"devices: there is no device {absent[0]}; there are {', '.join(map(str, there))}")
    return asked or there


def arenas(name: str, device_id: int = 0) -> str:
    """The arenas of a session that can give memory back, as ONNX Runtime's run options name them."""
    return f"cpu:0;gpu:{device_id}" if name in ("cuda", "tensorrt") else "cpu:0"


@dataclass(frozen=True)
class Candidates:
    """Providers worth trying, best first, and why others are not: by name, in the order of what was asked for."""

    names: tuple[str, ...]
    required: bool
    skipped: Mapping[str, str]
    order: tuple[str, ...]

    def passed_over(self, name: str) -> tuple[str, ...]:
        """One line for each that would have been tried before this one."""
        before = self.order[: self.order.index(name)]
        return tuple(f"{one}: {self.skipped[one]}" for one in before if one in self.skipped)


def candidates(asked: Sequence[str]) -> Candidates:
    """Turn what was asked into what can be tried on this machine.

    Raises:
        ProviderUnavailable: an unknown name, or a provider asked by name that cannot work here.
    """
    unknown = [name for name in asked if name not in PROVIDERS and name != "auto"]
    if unknown:
        allowed = ", ".join(["auto", *PROVIDERS])
        raise ProviderUnavailable(f"providers: {unknown[0]!r} is unknown; there are {allowed}")
    automatic = "auto" in asked
    wanted = list(dict.fromkeys(PROVIDERS if automatic else asked))
    why_not = {name: reason for name in wanted if (reason := missing(name)) is not None}
    usable = tuple(name for name in wanted if name not in why_not)
    if not usable:
        raise ProviderUnavailable("providers: " + "; ".join(f"{name}: {why}" for name, why in why_not.items()))
    if "cuda" in usable or "tensorrt" in usable:
        _preload_cuda()
    return Candidates(usable, not automatic, why_not, tuple(wanted))


def missing(name: str) -> str | None:
    """Why a provider cannot work here, or None where it is worth a try."""
    if PROVIDERS[name] not in ort.get_available_providers():
        return "not in the installed onnxruntime"
    if name in ("cuda", "tensorrt") and not _cuda_devices():
        return "no NVIDIA driver with a device"
    if name == "tensorrt" and not (ctypes.util.find_library("nvinfer") or importlib.util.find_spec("tensorrt_libs")):
        return "TensorRT is not installed"
    return None


@functools.cache
def _cuda_devices() -> int:
    """Devices that the NVIDIA driver shows; 0 without a driver. Asks the driver itself, no toolkit needed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@functools.cache
def device_name(provider: str, number: int) -> str:
    """What the NVIDIA driver calls a device; empty for other providers, or where it does not tell."""
    if provider not in ("cuda", "tensorrt") or number >= _cuda_devices():
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:  # a driver that is made up
        return ""
    failed = driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetName(name, len(name), device)
    return "" if failed else name.value.decode(errors="replace")


@functools.cache
def _preload_cuda() -> None:
    """Find the CUDA and cuDNN libraries of the nvidia-* wheels; only where CUDA will be tried, for it costs time."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
