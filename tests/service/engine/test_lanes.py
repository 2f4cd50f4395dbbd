"""Lanes step back behind the event loop, where the system lets them."""

import os
import sys
import threading

import pytest

from service import process
from service.engine.lanes import ThreadLane
from service.process import BEHIND

NICEST = 19


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def run(job):
    lane, done, found = ThreadLane("one"), threading.Event(), []

    def record():
        found.append(job())
        done.set()

    lane.start(record)
    assert done.wait(10) and lane.close(10)
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no nice value of their own")
def test_a_lane_and_what_it_starts_go_behind_the_loop_and_the_loop_stays_where_it_is():
    before = niceness()

    def with_child():
        child = []
        thread = threading.Thread(target=lambda: child.append(niceness()))
        thread.start()
        thread.join()
        return niceness(), child[0]

    assert run(with_child) == (min(NICEST, before + BEHIND),) * 2
    assert niceness() == before


def test_a_lane_works_where_it_may_not_step_back(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(process.os, "setpriority", refuse, raising=False)
    assert run(lambda: 7) == 7


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(process.sys, "platform", platform)
    monkeypatch.setattr(
        process.os, "setpriority", lambda *_: pytest.fail("changes the whole process there"), raising=False
    )
    assert run(lambda: 7) == 7
