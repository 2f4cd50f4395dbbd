"""What the system tells of this process: CPU time, files, start, and the C library's account of its memory."""

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_SELF = Path("/proc/self")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
_LARGE = 2**20
"""Bytes from which a block is its own, given back when it is freed. Blocks that every request makes are smaller."""


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


BEHIND = 5
"""How much nicer a thread that computes is than the event loop's, and how much nicer than a lane's is one that holds a
new version against its recorded rows while others serve."""


def step_back() -> None:
    """Let the event loop go before this thread, and before those that it will start.

    What computes does so for as long as a core lets it; the loop works in short bursts, for which it would have to wait
    until the scheduler thinks that the other has had its share. On Linux each thread has its own nice value; elsewhere,
    or where it may not be changed, nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + BEHIND)


_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_RESET_ON_FORK = 1
SLICE_NS = 100_000
"""The shortest slice that Linux takes: about one request's turn of the loop."""


class _SchedAttr(ctypes.Structure):
    """Linux's struct sched_attr, as of its first version."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    ]


def go_first() -> bool:
    """Have this thread run as soon as it wakes, in short slices and without more of the processor's time; whether told.

    Linux from 6.12 on lets a thread choose its slice, and one with a shorter slice preempts one with a longer when it
    wakes; older ones, and other systems, take no notice. Threads that this one starts have the usual slice.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    asked = _SchedAttr(ctypes.sizeof(_SchedAttr), os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, SLICE_NS, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, ctypes.byref(asked), 0) == 0)


_MADV_POPULATE_WRITE = 23


def populate(memory: memoryview) -> bool:
    """Have the system give this memory its pages now, on this thread, other threads running; whether it did.

    A page is cleared when it is first written to. For megabytes that takes longer than to fill them does. What stands
    there stays. Linux from 5.14 on; elsewhere pages come as ever.

    Args:
        memory: writable bytes.
    """
    if sys.platform != "linux" or not memory.nbytes:
        return False
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = start - start % mmap.PAGESIZE
    size = ctypes.c_size_t(start + memory.nbytes - first)
    return bool(ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, _MADV_POPULATE_WRITE) == 0)


def cpu_s() -> float:
    """User and system CPU time of all threads so far, in seconds."""
    return time.process_time()


def virtual_bytes() -> int | None:
    """Address space in use; None where there is no /proc."""
    try:
        return int((_SELF / "statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def open_files() -> int | None:
    """Open file descriptors, connections among them; None where there is no /proc."""
    try:
        return len(os.listdir(_SELF / "fd"))
    except OSError:
        return None


def most_files() -> int | None:
    """How many may be open at most; None where the system has no such bound."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    bound = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if bound == resource.RLIM_INFINITY else bound


@functools.cache
def started_s() -> float | None:
    """When the process began, in seconds since 1970; None where there is no /proc."""
    try:
        fields = (_SELF / "stat").read_text().rpartition(")")[2].split()
        boots = (line.split()[1] for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        return float(next(boots)) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def heap_bytes() -> dict[str, int]:
    """Bytes that the C library has handed out, `used`, and holds back, `free`; empty where it does not tell.

    ONNX Runtime's arenas on the CPU take theirs there and tell nothing themselves.
    """
    call = _mallinfo2()
    if call is None:
        return {}
    info = call()
    return {"used": info.uordblks + info.hblkhd, "free": info.fordblks}


def bound_heaps(number: int) -> bool:
    """Have all threads share so many of the C library's heaps, and what is large go back at once; whether there was
    something to tell.

    glibc gives each new thread a heap of its own, up to eight for each core. Threads come and go with every version of
    a model, and what a version held would be strewn over all of them: memory that is free, and yet not to be given
    back. Nor does `malloc_trim` give back the top of any heap but the first, and whoever frees a large block has glibc
    put later ones of up to 32 MB there: tens of megabytes came and went with versions. Where the bounds are set, they
    stay.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    told = [mallopt(_M_ARENA_MAX, number), mallopt(_M_MMAP_THRESHOLD, _LARGE), mallopt(_M_TRIM_THRESHOLD, _LARGE)]
    return all(told)


@functools.cache
def _mallinfo2() -> Callable[[], _Mallinfo] | None:
    """Of glibc 2.33 and newer; other C libraries have none."""
    try:
        found = getattr(ctypes.CDLL(None), "mallinfo2", None)
    except (OSError, TypeError):  # Windows has no library without a name
        return None
    if found is not None:
        found.restype = _Mallinfo
    return found
