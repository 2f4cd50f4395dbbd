"""The series: bounded labels, both text formats, what the engine knows."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as text_families

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


async def test_junk_names_add_no_series(client):
    await client.post("/generate", json={"model": "junk"})
    await client.get("/junk")
    await client.get("/models/junk")
    await samples(client)  # the scrape itself is counted
    before = set(await samples(client))
    for number in range(300):
        await client.post("/generate", json={"model": f"junk-{number}"})
        await client.post("/generate", json={"model": "faces", f"junk{number}": 1})
        await client.get(f"/junk/{number}")
        await client.get(f"/models/junk-{number}/card")
    series = {key for key in set(await samples(client)) - before if not key[0].startswith("process_")}
    assert {key[1] for key in series} <= {
        (("reason", "invalid-request"),),
        (("code", "422"), ("model", "other"), ("task", "generate")),
    }


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
    from apiclient import client_of

    await client.post("/generate", json={"model": "faces", "seed": 1})
    async with client_of(engine) as other:
        assert not [key for key in await samples(other) if key[0] == "ganymede_images_total"]
