"""The series: bounded labels, both text formats, what the engine knows."""

import asyncio
import subprocess
from dataclasses import dataclass, field, replace

import pytest
from apiclient import client_of
from fakeengine import idle
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from service.engine.memory import DeviceMemory, MemoryStats
from service.engine.stats import totals_of
from service.metrics import Metrics

OPEN = "application/openmetrics-text; version=1.0.0"


async def samples(client) -> dict:
    text = (await client.get("/metrics")).text
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in text_families(text) for s in f.samples}


async def test_requests_images_and_runs_are_counted(client):
    await client.post("/generate", json={"model": "faces", "seeds": [1, 2, 3]})
    await client.post("/generate", json={"model": "faces", "seed": 1})
    await client.post("/generate", json={"model": "faces", "seed": -1})
    found = await samples(client)
    faces, task = ("model", "faces@1"), ("task", "generate")
    assert found["ganymede_requests_total", (("code", "200"), faces, task)] == 2
    assert found["ganymede_requests_total", (("code", "422"), ("model", "other"), task)] == 1
    assert found["ganymede_images_total", (faces, task)] == 4
    assert found["ganymede_runs_total", (faces,)] == 2
    assert found["ganymede_batch_rows_sum", (faces,)] == 4
    assert found["ganymede_batch_rows_bucket", (("le", "1.0"), faces)] == 1
    assert found["ganymede_batch_rows_bucket", (("le", "4.0"), faces)] == 2
    assert found["ganymede_rejected_total", (("reason", "invalid-request"),)] == 1


async def test_only_pictures_that_go_out_are_counted(client):
    assert (await client.head("/generate?model=faces&seed=1")).status_code == 200
    found = await samples(client)
    assert not any(name == "ganymede_images_total" for name, _ in found)


async def test_what_is_gone_has_totals_and_no_gauges(client, engine):
    engine.stats_by_ref["before@1"] = totals_of(replace(idle(), runs_total=5, rows_total=9))
    found = await samples(client)
    before = (("model", "before@1"),)
    assert found["ganymede_rows_total", before] == 9 and ("ganymede_lanes", before) not in found


async def test_paths_and_methods_that_are_not_served_are_counted(client):
    for _ in range(3):
        await client.get("/nothing/here")
        await client.delete("/generate")
    found = await samples(client)
    assert found["ganymede_rejected_total", (("reason", "not-found"),)] == 3
    assert found["ganymede_rejected_total", (("reason", "method-not-allowed"),)] == 3


async def ask(app, method: str, path: str, body: bytes = b"") -> int:
    """One request to the app itself: ten thousand through a client library would take a minute."""
    sent = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("test", 1)}
    headers = [(b"host", b"test"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await app({**scope, "headers": headers, "server": ("test", 80)}, receive, send)
    return sent[0]["status"]


@pytest.mark.slow
async def test_ten_thousand_junk_names_add_no_series(client):
    def junk(number: int) -> list[tuple]:
        return [
            ("POST", "/generate", b'{"model": "junk-%d"}' % number),
            ("POST", "/generate", b'{"model": "faces", "junk%d": 1}' % number),
            ("GET", f"/junk/{number}"),
            ("GET", f"/models/junk-{number}/card"),
            ("DELETE", f"/models/junk-{number}"),
        ]

    for request in junk(0):
        await ask(client.app, *request)
    await samples(client)  # the scrape itself is counted
    before = set(await samples(client))
    for number in range(1, 2001):
        assert {await ask(client.app, *request) for request in junk(number)} <= {404, 405, 422}
    after = await samples(client)
    assert set(after) == before
    assert sum(value for (name, _), value in after.items() if name == "ganymede_requests_total") >= 10_000


async def test_requests_in_flight_come_back_to_nothing(client, engine):
    engine.gate = asyncio.Event()
    waiting = [asyncio.create_task(client.post("/generate", json={"model": "faces", "seed": n})) for n in range(3)]
    while len(engine.calls) < 3:  # noqa: ASYNC110  # the fake counts calls and has no event
        await asyncio.sleep(0.001)
    scrape = 1
    assert (await samples(client))["ganymede_requests_in_flight", ()] == 3 + scrape
    waiting[0].cancel()
    engine.gate.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await samples(client))["ganymede_requests_in_flight", ()] == scrape


async def test_memory_is_told_with_and_without_a_gpu(client, engine):
    found = await samples(client)
    assert found["process_resident_memory_bytes", ()] == engine.memory_stats.resident_bytes
    assert not [name for name, _ in found if name.startswith("ganymede_device_memory")]
    engine.memory_stats = MemoryStats(5, {1: DeviceMemory(30, 80)}, 2, 4096)
    found = await samples(client)
    assert found["ganymede_device_memory_used_bytes", (("device", "1"),)] == 30
    assert found["ganymede_device_memory_bytes", (("device", "1"),)] == 80
    assert found["ganymede_arena_shrinks_total", ()] == 2
    assert found["ganymede_arena_given_back_bytes_total", ()] == 4096
    engine.memory_stats = MemoryStats(None)  # a system that does not tell
    assert ("process_resident_memory_bytes", ()) not in await samples(client)


async def test_lanes_and_queue_are_told(client, engine):
    busy = replace(idle(), lanes=4, lanes_busy=3, queue_rows=7, queue_age_s=0.25, rejected_total={"queue_full": 1})
    engine.stats_by_ref["faces@1"] = busy
    engine.stats_by_ref["broken@1"] = replace(idle(), lanes=0)
    found = await samples(client)
    faces = (("model", "faces@1"),)
    assert found["ganymede_lanes_busy_ratio", faces] == 0.75
    assert found["ganymede_lanes_busy_ratio", (("model", "broken@1"),)] == 0
    assert found["ganymede_queue_rows", faces] == 7
    assert found["ganymede_queue_age_seconds", faces] == 0.25


@pytest.mark.parametrize(
    "accept, is_open",
    [
        (None, False),
        ("text/plain", False),
        (OPEN, True),
        (f"{OPEN},text/plain;version=0.0.4;q=0.5", True),
        (f"{OPEN};q=0.2,text/plain;version=0.0.4;q=0.5", False),
        ("text/html,*/*", False),
    ],
)
async def test_both_formats_parse(client, accept, is_open):
    await client.post("/generate", json={"model": "faces", "seed": 1})
    reply = await client.get("/metrics", headers={"accept": accept} if accept else {})
    assert reply.headers["content-type"].startswith("application/openmetrics-text" if is_open else "text/plain")
    families = {family.name for family in (open_families if is_open else text_families)(reply.text)}
    assert {"ganymede_requests", "ganymede_stage_seconds", "ganymede_queue_rows"} <= families
    assert reply.text.endswith("# EOF\n") is is_open


async def test_the_loop_is_watched(client):
    client.parts.metrics._lag.observe(0.003)
    assert (await samples(client))["ganymede_event_loop_lag_seconds_count", ()] >= 1


async def test_apps_share_nothing(client, engine):
    await client.post("/generate", json={"model": "faces", "seed": 1})
    async with client_of(engine) as other:
        assert not [key for key in await samples(other) if key[0] == "ganymede_images_total"]


async def test_what_waits_asks_for_replicas(client, engine):
    """Twenty rows of two seconds on two lanes: twenty seconds, to be worked off within ten."""
    assert (await samples(client))["ganymede_replicas_wanted", ()] < 1
    waiting = replace(idle(), queue_rows=20, row_s=2.0, lanes=2)
    engine.stats_by_ref["faces@1"] = waiting
    assert 2 <= (await samples(client))["ganymede_replicas_wanted", ()] < 4


@pytest.mark.promtool
async def test_promtool_has_nothing_to_say_of_a_loaded_server(tiny_models):
    async with client_of(None, models=tiny_models, profile_s=0, lanes=1) as client:
        asked = [{"model": "tiny-rgb", "seed": n} for n in range(20)]
        asked += [{"model": "tiny-grey", "seeds": [n, n + 1], "as": "json"} for n in range(20)]
        asked += [{"model": "nobody"}, {"model": "tiny-rgb", "seed": -1}]
        await asyncio.gather(*(client.post("/generate", json=body) for body in asked))
        await client.get("/nowhere")
        text = (await client.get("/metrics")).text
    assert 'ganymede_images_total{model="tiny-grey@1",task="generate"} 40' in text
    assert checked_by_promtool(text) == (0, "")
    assert checked_by_promtool(text.replace("ganymede_images_total", "ganymede_images"))[0] != 0


def checked_by_promtool(text: str) -> tuple[int, str]:
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@dataclass
class Finished:
    """What a request tells."""

    model: str
    task: str = "generate"
    status: int = 200
    images: int = 1
    stages: dict[str, float] = field(default_factory=lambda: {"run": 0.01})
    rejected: str | None = None
    coalesced: bool = False


def models_told(metrics: Metrics) -> set[str]:
    text = metrics.expose(as_openmetrics=False)[0].decode()
    return {s.labels["model"] for f in text_families(text) if f.name == "ganymede_images" for s in f.samples}


async def test_versions_that_are_gone_leave_the_page_after_a_while(engine, monkeypatch):
    """What is loaded or asleep stays, however old; of the others the last sixteen, for a quarter of an hour."""
    metrics, now_s = Metrics(engine, {}), [1000.0]
    monkeypatch.setattr("service.metrics.time.monotonic", lambda: now_s[0])
    engine.asleep = ["sleeper@1"]
    for model in ("faces@1", "sleeper@1", "other"):
        metrics.observe(Finished(model))
    sizes = []
    for version in range(1, 41):
        metrics.observe(Finished(f"swapped@{version}"))
        metrics.observe(Finished(f"swapped@{version}", task="interpolate"))
        now_s[0] += 1
        sizes.append(len(metrics.expose(as_openmetrics=False)[0]))
    stay = {"faces@1", "sleeper@1", "other"}
    assert models_told(metrics) == stay | {f"swapped@{version}" for version in range(25, 41)}
    assert sizes[5] < sizes[15] and max(sizes[16:]) - min(sizes[16:]) < 1000, sizes
    now_s[0] += 880
    assert models_told(metrics) == stay | {f"swapped@{version}" for version in range(25, 41)}
    now_s[0] += 10
    metrics.observe(Finished("swapped@40"))  # asked for before it went, answered after
    assert models_told(metrics) == stay | {f"swapped@{version}" for version in range(30, 41)}
    now_s[0] += 900
    assert models_told(metrics) == stay
