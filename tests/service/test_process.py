"""What a thread tells the system of itself, and memory that is there before it is written to."""

import ctypes
import os
import sys
import threading

import numpy as np
import pytest

from service import process
from service.process import SLICE_NS, go_first, populate, step_back

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have neither")
_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}


def slice_ns() -> int:
    """This thread's own slice; 0 for the usual one, and on systems that have none."""
    told = process._SchedAttr()
    number = _SCHED_GETATTR[os.uname().machine]
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(told), ctypes.sizeof(told), 0) == 0
    return told.runtime_ns


def apart(work) -> list:
    """What it returns on a thread of its own, whose priority ends with it."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found


@linux
def test_a_thread_that_goes_first_keeps_its_share_and_what_it_starts_is_as_ever():
    def work():
        before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        usual, told = slice_ns(), go_first()
        after = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return told, after - before, slice_ns() in (SLICE_NS, usual), apart(slice_ns)[0] - usual

    assert apart(work) == [(True, 0, True, 0)]


@linux
def test_what_goes_first_can_start_what_steps_back():
    def work():
        go_first()
        return apart(lambda: step_back() or os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))[0]

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert apart(work) == [min(19, before + process.BEHIND)]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(process.sys, "platform", platform)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda *_: pytest.fail("calls what is not there"))
    assert not go_first() and not populate(memoryview(bytearray(10)))


@linux
def test_memory_that_is_populated_keeps_what_it_holds():
    memory = np.arange(3 << 20, dtype=np.uint8)
    for part in (slice(None), slice(5_000, 9_001), slice(17, 18), slice(4, 4)):
        populate(memory.data[part])
    assert (memory == np.arange(3 << 20, dtype=np.uint8)).all()
