"""What the system tells of this process: CPU time, files, start, and the C library's account of its memory."""

import ctypes
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

_SELF = Path("/proc/self")
_M_ARENA_MAX = -8  # glibc's malloc.h


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


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
    """Have all threads share so many of the C library's heaps; whether there was something to tell.

    glibc gives each new thread a heap of its own, up to eight for each core. Threads come and go with every version of
    a model, and what a version held would be strewn over all of them: memory that is free, and yet not to be given
    back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    return bool(mallopt(_M_ARENA_MAX, number))


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
