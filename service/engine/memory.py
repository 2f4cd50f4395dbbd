"""Memory of the process and of NVIDIA devices, as the systems count it: ONNX Runtime tells nothing of its arenas."""

import ctypes
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PAGES = Path("/proc/self/statm")


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory, all processes' together."""

    used_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class MemoryStats:
    """What is held now, and totals since the start.

    `resident_bytes`: the process' memory in RAM, None where the system does not tell. `devices`: those that models use,
    by CUDA's number. `shrinks_total`, `given_back_bytes_total`: what idle models gave back. `woken_total`: models
    loaded because somebody asked for them; `evicted_total`: those that gave way to others.
    """

    resident_bytes: int | None
    devices: Mapping[int, DeviceMemory] = field(default_factory=dict)
    shrinks_total: int = 0
    given_back_bytes_total: int = 0
    woken_total: int = 0
    evicted_total: int = 0


def memory_stats(
    devices: Sequence[int], shrinks: int = 0, given_back_bytes: int = 0, woken: int = 0, evicted: int = 0
) -> MemoryStats:
    """A snapshot; cheap enough for every scrape."""
    found = {number: memory for number in devices if (memory := device_memory(number)) is not None}
    return MemoryStats(resident_bytes(), found, shrinks, given_back_bytes, woken, evicted)


def resident_bytes(pages: Path = _PAGES) -> int | None:
    """The process' memory in RAM; None where there is no /proc."""
    try:
        return int(pages.read_text().split()[1]) * _page_bytes()
    except (OSError, ValueError, IndexError):
        return None


def trim() -> bool:
    """Give the C library's free memory back to the system; whether there was something to call."""
    call = _malloc_trim()
    if call is None:
        return False
    call(0)
    return True


@functools.cache
def _page_bytes() -> int:
    import mmap  # here: the rest of this module needs none

    return mmap.PAGESIZE


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's own; other C libraries have none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except OSError:
        return None
    return found


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def device_memory(number: int) -> DeviceMemory | None:
    """An NVIDIA device's memory by CUDA's number; None where driver or NVML do not tell.

    NVML numbers devices otherwise than CUDA (CUDA_VISIBLE_DEVICES, its order), so they are matched by their address on
    the bus.
    """
    libraries = _nvidia()
    if libraries is None:
        return None
    cuda, nvml = libraries
    address, device, handle, memory = ctypes.create_string_buffer(32), ctypes.c_int(), ctypes.c_void_p(), _Memory()
    steps: tuple[Callable[[], int], ...] = (
        lambda: int(cuda.cuDeviceGet(ctypes.byref(device), number)),
        lambda: int(cuda.cuDeviceGetPCIBusId(address, len(address), device)),
        lambda: int(nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(handle))),
        lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))),
    )
    if any(step() != 0 for step in steps):
        return None
    return DeviceMemory(memory.used, memory.total)


@functools.cache
def _nvidia() -> tuple[Any, Any] | None:
    """The driver's library and NVML, both begun; None without them."""
    names = ("nvcuda.dll", "nvml.dll") if sys.platform == "win32" else ("libcuda.so.1", "libnvidia-ml.so.1")
    try:
        cuda, nvml = (ctypes.CDLL(name) for name in names)
    except OSError:
        return None
    return (cuda, nvml) if cuda.cuInit(0) == 0 and nvml.nvmlInit_v2() == 0 else None
