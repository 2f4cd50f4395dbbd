"""The load and the process accounts that the benchmarks stand on, against servers whose behaviour is known."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest

from benchmarks.load import NO_ANSWER, Period, closed_loop
from benchmarks.processes import Family, NotReady, free_port, running

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


@contextmanager
def answering(answer: Callable[[int, dict], tuple[float, bytes]]):
    """A server that answers request number n with bytes after a delay; empty bytes hang up. Yields port and bodies."""
    asked, numbers, started, port = [], itertools.count(), threading.Event(), free_port()

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                asked.append(json.loads(await reader.readexactly(length)))
                delay_s, data = answer(next(numbers), asked[-1])
                await asyncio.sleep(delay_s)
                if not data:
                    break
                for half in (data[: len(data) // 2], data[len(data) // 2 :]):  # no answer comes in one piece
                    writer.write(half)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        started.set()
        while started.is_set():  # noqa: ASYNC110  (set and cleared by another thread)
            await asyncio.sleep(0.01)
        server.close()

    thread = threading.Thread(target=asyncio.run, args=[run()])
    thread.start()
    started.wait()
    try:
        yield port, asked
    finally:
        started.clear()
        thread.join()


def bodies():
    return (b'{"model":"m","seed":%d}' % seed for seed in itertools.count())


def test_every_request_is_another_picture_and_every_answer_counts():
    with answering(lambda number, body: (0.02, OK)) as (port, asked):
        found = closed_loop(port, bodies(), 4, 0.5, lambda: 0.0, warm_s=0.1)
    seeds = [body["seed"] for body in asked]
    assert sorted(seeds) == list(range(len(seeds)))
    assert found.errors == 0 and found.ends["200"] == len(found.latencies_s)
    assert 0 < found.answered < len(asked), "the warm-up is not measured"
    assert min(found.latencies_s) >= 0.02
    assert found.rate == pytest.approx(found.answered / found.seconds)


def test_other_statuses_and_broken_connections_are_errors_and_no_answers():
    broken = {1: b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", 2: b""}
    with answering(lambda number, body: (0.005, broken.get(number % 4, OK))) as (port, _):
        found = closed_loop(port, bodies(), 2, 0.5, lambda: 0.0, warm_s=0.0)
    assert found.ends["503"] > 0 and found.ends[NO_ANSWER] > 0
    assert found.errors == found.ends["503"] + found.ends[NO_ANSWER]
    assert found.ends["200"] == len(found.latencies_s) > 0


def test_chunked_answers_are_whole_at_their_last_chunk():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    with answering(lambda number, body: (0.01, chunked)) as (port, _):
        found = closed_loop(port, bodies(), 1, 0.2, lambda: 0.0, warm_s=0.0)
    assert found.errors == 0 and found.answered > 0


def test_a_server_that_nobody_runs_gives_errors_alone():
    found = closed_loop(free_port(), bodies(), 2, 0.1, lambda: 0.0, warm_s=0.0)
    assert found.answered == 0 and found.errors > 0


def test_periods_pool():
    pooled = Period(2.0, 10, [0.1] * 10, server_cpu_s=1.0, client_cpu_s=0.5)
    pooled.ends["200"] += 10
    more = Period(1.0, 5, [0.4] * 5, server_cpu_s=0.5, client_cpu_s=0.1)
    more.ends["500"] += 2
    pooled.add(more)
    assert pooled.rate == 5 and pooled.cpu_ms == 100 and pooled.errors == 2
    assert pooled.percentile_ms(50) == pytest.approx(100) and pooled.percentile_ms(100) == pytest.approx(400)
    assert pooled.client_cores == pytest.approx(0.2)


GRANDCHILD = """
import time
while time.process_time() < 0.3: pass
print('spent', flush=True)
time.sleep(60)
"""
CHILD = "import subprocess,sys; print('pid', subprocess.Popen([sys.executable,'-c',{code!r}]).pid, flush=True){then}"


@pytest.mark.parametrize("then", ["; import time; time.sleep(60)", ""], ids=["parent stays", "parent ends"])
def test_the_whole_family_is_counted_and_ended(tmp_path, then):
    family = Family([sys.executable, "-c", CHILD.format(code=GRANDCHILD, then=then)], {}, tmp_path)
    try:
        while "spent" not in family.printed():
            time.sleep(0.02)
        pid = int(family.printed().split("pid ")[1].split()[0])
        assert family.cpu_s() >= 0.29, "the grandchild's time, though its parent may be gone"
        assert family.memory_bytes() > 2**20
    finally:
        family.stop()
    for _ in range(200):  # an orphan is a zombie until the first process of the machine collects it
        if not _runs(pid):
            break
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


def test_a_server_that_ends_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such card')"]
    with pytest.raises(NotReady, match=r"ended with status 1: no such card"), running(command, {}, tmp_path, 1, ["m"]):
        pass
    assert os.path.isdir(tmp_path)
