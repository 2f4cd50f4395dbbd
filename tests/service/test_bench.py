"""The load generator against a real server on a real port, and its arithmetic."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fakeengine import FakeEngine, manifest

from service.__main__ import main
from service.api.app import create_app
from service.bench import Connections, Plan, _batches, measure
from service.settings import Settings


@asynccontextmanager
async def serving(engine):
    """The app on a free port of this machine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(64)
        config = uvicorn.Config(create_app(Settings(), engine), log_config=None, access_log=False)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([taken]))
        await engine.opened.wait()
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


def plan(url: str, **changes) -> Plan:
    usual = {"seconds": 0.3, "clients": 3, "rate": None, "images": 1, "format": "png", "label": None}
    return Plan(url=url, model="faces", **usual | changes)


@pytest.mark.parametrize("changes", [{}, {"rate": 60.0}, {"images": 5, "clients": 2}])
async def test_counts_what_the_server_counts(tmp_path, changes):
    engine = FakeEngine(tmp_path, manifest("faces"))
    async with serving(engine) as url:
        report = await measure(plan(url, **changes))
    asked = len(engine.calls) - 1  # the first request only asks whether such requests are served
    assert report["requests"] == asked and report["ends"] == {"200": asked}
    assert sum(report["runs_by_rows"].values()) == asked
    seeds = [seed for call in engine.calls[1:] for seed in call["seeds"]]
    assert len(set(seeds)) == len(seeds) == asked * changes.get("images", 1)
    assert report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"] <= report["p999_ms"] <= report["max_ms"]
    assert report["images_per_s"] > 0 and report["server_cpu_ms_per_image"] >= 0


async def test_latency_counts_from_the_intended_start(tmp_path):
    """Every request but the first is held for 0.3 s; those that were due meanwhile are charged for it."""
    engine = FakeEngine(tmp_path, manifest("faces"))
    async with serving(engine) as url:
        engine.gate = asyncio.Event()
        engine.gate.set()

        async def hold():
            while len(engine.calls) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            engine.gate.clear()
            await asyncio.sleep(0.3)
            engine.gate.set()

        held = asyncio.create_task(hold())
        report = await measure(plan(url, rate=100.0, seconds=0.2))
        await held
    assert report["max_ms"] >= 200


@pytest.mark.parametrize("rate", [None, 200.0])
async def test_a_run_can_be_ended_before_its_time(tmp_path, rate):
    engine, stop = FakeEngine(tmp_path, manifest("faces")), asyncio.Event()
    async with serving(engine) as url:
        run = asyncio.create_task(measure(plan(url, rate=rate, seconds=600.0), stop))
        while len(engine.calls) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        stop.set()
        report = await run
    assert report["ends"] == {"200": len(engine.calls) - 1}


async def test_a_connection_that_was_closed_while_idle_is_not_used_again(tmp_path):
    engine = FakeEngine(tmp_path, manifest("faces"))
    async with serving(engine) as url:
        connections = Connections(url)
        assert (await connections.send("GET", "/livez"))[0] == 200
        ((reader, writer),) = connections._idle
        writer.write(b"no HTTP\r\n\r\n")  # answered with 400, and closed
        await reader.read()
        assert (await connections.send("GET", "/livez"))[0] == 200
        connections.close()


async def test_a_refused_request_ends_it_with_the_reason(tmp_path):
    async with serving(FakeEngine(tmp_path, manifest("faces"))) as url:
        with pytest.raises(SystemExit, match="unconditional"):
            await measure(plan(url, label="Sneaker"))


def test_no_server():
    with pytest.raises(SystemExit, match="nothing answers"):
        main(["bench", "--url", "http://127.0.0.1:9", "--model", "x"])


@pytest.mark.parametrize("flag", ["--clients", "--seconds", "--images", "--rate"])
def test_flags_that_make_no_sense(flag):
    with pytest.raises(SystemExit, match=f"{flag}: .* must be above 0"):
        main(["bench", "--model", "x", flag, "0"])


def test_buckets_become_counts():
    name = 'ganymede_batch_rows_bucket{{model="{}",le="{}"}}'
    server = {
        name.format(model, bound): 2.0 * total
        for model in "ab"
        for bound, total in (("1.0", 1), ("2.0", 1), ("4.0", 3), ("+Inf", 4))
    }
    assert _batches(server | {"other": 5.0}) == {"1": 4, "3-4": 8, "5 or more": 4}
