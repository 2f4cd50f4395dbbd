"""Request ids, timings, logs, the client that leaves: all through the complete stack."""

import asyncio
import json
import logging
import time
from pathlib import Path

import httpx
import pytest
from apiclient import client_of
from prometheus_client.parser import text_string_to_metric_families

import service
from service.api.record import JsonFormatter, TextFormatter


async def sample(client, name: str, **labels) -> float:
    text = (await client.get("/metrics")).text
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name == name and labels.items() <= one.labels.items():
                return one.value
    return 0.0


def test_no_middleware_hides_the_disconnect():
    """Starlette's BaseHTTPMiddleware wraps `receive`, so that a handler never learns that its client left."""
    for path in Path(service.__file__).parent.rglob("*.py"):
        code = "".join(line for line in path.read_text().splitlines(True) if "Never BaseHTTPMiddleware" not in line)
        assert "BaseHTTPMiddleware" not in code and ".middleware(" not in code, path


@pytest.mark.parametrize("given", ["abc-123", "A" * 128, "trace:1/2+3=4@5_6.7"])
async def test_a_sane_request_id_is_kept(client, given):
    assert (await client.get("/livez", headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "A" * 129, "a b", 'a"b', "-a", "é", "a\tb"])
async def test_any_other_is_replaced(client, given):
    first = (await client.get("/livez", headers={b"x-request-id": given.encode()})).headers["x-request-id"]
    second = (await client.get("/livez", headers={b"x-request-id": given.encode()})).headers["x-request-id"]
    assert first not in (given, second) and len(first) == 16


async def leave_while_waiting(client, engine, *, leave_after_body: bool = True):
    """Send a request, leave once the engine holds it, and return what the app then sent."""
    engine.gate = asyncio.Event()
    body = json.dumps({"model": "faces", "seed": 1}).encode()
    incoming: asyncio.Queue = asyncio.Queue()
    await incoming.put({"type": "http.request", "body": body[:5], "more_body": True})
    if leave_after_body:
        await incoming.put({"type": "http.request", "body": body[5:], "more_body": False})
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/generate",
        "raw_path": b"/generate",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    serving = asyncio.create_task(client.app(scope, incoming.get, send))
    async with asyncio.timeout(5):
        while leave_after_body and not engine.calls:  # noqa: ASYNC110  # the fake tells nobody
            await asyncio.sleep(0.001)
        await incoming.put({"type": "http.disconnect"})
        await serving
    await asyncio.sleep(0)
    return sent


async def test_a_client_that_leaves_cancels_its_entry(client, engine):
    sent = await leave_while_waiting(client, engine)
    assert engine.cancelled == 1
    assert all(not message.get("body") for message in sent)
    assert await sample(client, "ganymede_requests_total", code="499", model="faces@1") == 1
    assert await sample(client, "ganymede_images_total", model="faces@1") == 0


async def test_a_client_that_leaves_in_its_body_never_reaches_the_engine(client, engine):
    await leave_while_waiting(client, engine, leave_after_body=False)
    assert engine.calls == []
    assert await sample(client, "ganymede_requests_total", code="499") == 1


async def test_one_set_of_timings_is_header_metrics_and_log(client, caplog):
    with caplog.at_level(logging.INFO, "ganymede.access"):
        reply = await client.post("/generate", json={"model": "faces", "seeds": [1, 2]}, headers={"x-request-id": "r1"})
    (line,) = [record.fields for record in caplog.records if record.name == "ganymede.access"]
    assert line["request_id"] == "r1" and line["status"] == 200 and line["model"] == "faces@1"
    assert (line["images"], line["batch_rows"], line["bytes"]) == (2, 2, len(reply.content))
    header = dict(part.split(";dur=") for part in reply.headers["server-timing"].split(", "))
    for stage in ("read", "queue", "run", "encode"):
        assert float(header[stage]) == line[f"{stage}_ms"]
        labels = {"model": "faces@1", "task": "generate", "stage": stage}
        total = await sample(client, "ganymede_stage_seconds_sum", **labels)
        assert total * 1000 == pytest.approx(line[f"{stage}_ms"], abs=0.001)


async def test_the_access_log_can_be_off(engine, caplog):
    async with client_of(engine, access_log=False) as client:
        with caplog.at_level(logging.INFO, "ganymede.access"):
            await client.get("/livez")
    assert not [record for record in caplog.records if record.name == "ganymede.access"]


async def test_logs_hold_no_query_and_no_line_breaks(client, caplog):
    with caplog.at_level(logging.INFO, "ganymede.access"):
        await client.get("/models/a%0ab?token=secret", headers={"authorization": "Bearer secret"})
    lines = [TextFormatter().format(record) for record in caplog.records if record.name == "ganymede.access"]
    assert len(lines) == 1 and "secret" not in lines[0] and "\n" not in lines[0] and "/models/a%0ab" in lines[0]


async def test_a_line_of_text_tells_every_field_once(client, caplog):
    with caplog.at_level(logging.INFO, "ganymede.access"):
        await client.get("/livez", headers={"x-request-id": "r2"})
    (record,) = [record for record in caplog.records if record.name == "ganymede.access"]
    line = TextFormatter().format(record)
    at = time.strftime("%H:%M:%S", time.localtime(record.created))
    told = " ".join(f"{key}={record.fields[key]}" for key in record.fields if key not in ("method", "path", "status"))
    assert line == f"{at} INFO    GET /livez 200  {told}" and "request_id=r2" in told
    usual = logging.Formatter("%(asctime)s %(filename)s:%(lineno)d %(process)d %(threadName)s %(message)s")
    assert usual.format(record).endswith("GET /livez 200"), "anybody's format finds all that it may name"


async def test_json_logs_are_json(client, engine, caplog):
    engine.error = ZeroDivisionError("inside")
    with caplog.at_level(logging.INFO, "ganymede"):
        await client.post("/generate", json={"model": "faces"}, headers={"x-request-id": "r9"})
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if "ganymede" in record.name]
    access = next(line for line in lines if line["logger"] == "ganymede.access")
    assert (access["request_id"], access["status"], access["level"]) == ("r9", 500, "info")
    assert any("ZeroDivisionError" in line.get("exception", "") for line in lines)


async def test_while_draining_answers_end_their_connections(client):
    assert "connection" not in (await client.get("/livez")).headers
    client.parts.draining = True
    assert (await client.get("/livez")).headers["connection"] == "close"


TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_a_trace_is_taken_up_in_the_answer_and_the_log(client, caplog):
    with caplog.at_level(logging.INFO, logger="ganymede.access"):
        answer = await client.get("/livez", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    version, trace, span, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != "b7ad6b7169203331", "this server's own span"
    fields = caplog.records[-1].fields
    assert (fields["trace_id"], fields["span_id"]) == (trace, span)


async def test_flags_that_nobody_knows_are_not_handed_on(client):
    given = f"00-{TRACE}-b7ad6b7169203331-ff"
    assert (await client.get("/livez", headers={"traceparent": given})).headers["traceparent"].endswith("-03")


async def test_a_later_version_of_the_header_is_read_as_the_first(client):
    given = f"cc-{TRACE}-b7ad6b7169203331-01-what-the-future-will-bring"
    assert (await client.get("/livez", headers={"traceparent": given})).headers["traceparent"].startswith(f"00-{TRACE}")


@pytest.mark.parametrize(
    "given",
    [
        "",
        TRACE,
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331",
        f"00-{TRACE}-b7ad6b7169203331-01-more",
    ],
)
async def test_a_trace_that_breaks_the_standard_is_begun_anew(client, given):
    traces = [
        (await client.get("/livez", headers={"traceparent": given})).headers["traceparent"].split("-")[1]
        for _ in range(2)
    ]
    assert TRACE not in traces and len(set(traces)) == 2 and all(len(trace) == 32 for trace in traces)


async def test_the_stages_leave_no_gap(client, engine):
    """They add up to 95 % of the whole, however long the engine, the loop or the encoder take."""
    await client.post("/generate", json={"model": "faces", "seed": 1})  # what is imported at first use
    engine.gate = asyncio.Event()
    asking = asyncio.create_task(client.post("/generate", json={"model": "faces", "seed": 2}))
    await asyncio.sleep(0.5)  # long beside what a busy machine takes away between two stages
    engine.gate.set()
    reply = await asking
    stages = {
        name: float(value)
        for name, value in (part.split(";dur=") for part in reply.headers["server-timing"].split(", "))
    }
    total = stages.pop("total")
    assert total >= 250
    assert 0.95 * total <= sum(stages.values()) <= 1.01 * total


async def test_a_client_is_alone_while_no_other_connection_asks(engine):
    async def ask(client, seed):
        await client.post("/generate", json={"model": "faces", "seed": seed})
        return engine.calls[-1]["lone"]

    async with client_of(engine) as first:
        transport = httpx.ASGITransport(app=first.app, client=("10.0.0.2", 2))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as second:
            await ask(first, 1)
            await asyncio.sleep(0.03)
            assert await ask(first, 2) is True
            assert await ask(second, 3) is False, "another connection asked just now"
            assert await ask(first, 4) is False
            await asyncio.sleep(0.03)
            assert await ask(first, 5) is True
            engine.gate = asyncio.Event()
            waiting = [asyncio.create_task(ask(first, seed)) for seed in (6, 7)]
            while len(engine.calls) < 7:  # noqa: ASYNC110  # the fake counts calls and has no event
                await asyncio.sleep(0.001)
            assert engine.calls[-1]["lone"] is False, "one is being answered"
            engine.gate.set()
            await asyncio.gather(*waiting)
