"""Everything that can be wrong with a request, and what the answer says. Never a 5xx for a client's mistake."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import errors
from service.api import problems

JSON = {"content-type": "application/json"}


def check(reply, status: int) -> dict:
    """The members that every problem has."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert body["status"] == status and body["type"].startswith("urn:ganymede:problem:")
    assert body["title"] and body["detail"] and body["request_id"] == reply.headers["x-request-id"]
    return body


@pytest.mark.parametrize(
    "body, status, field, says",
    [
        ({}, 422, "model", "model is missing"),
        ({"model": 3}, 422, "model", "must be a name"),
        ({"model": "dresses"}, 404, "model", "dresses"),
        ({"model": "photo-x2", "seed": 1}, 422, "model", "POST /upscale"),
        ({"model": "clothes", "label": "Hat"}, 422, "label", "Hat"),
        ({"model": "clothes", "label": 99}, 422, "label", "99"),
        ({"model": "clothes", "label": True}, 422, "label", "must be a label"),
        ({"model": "clothes", "label": ["Sneaker", "Sneaker"]}, 422, "label", "2 entries for 1"),
        ({"model": "clothes", "label": []}, 422, "label", "array of 0"),
        ({"model": "clothes", "label": [1] * 65}, 422, "label", "array of 65"),
        ({"model": "faces", "label": "x"}, 422, "label", "unconditional"),
        ({"model": "faces", "format": "gif"}, 422, "format", "png, jpeg, webp"),
        ({"model": "faces", "as": "tar"}, 422, "as", "image, json, zip, grid"),
        ({"model": "faces", "as": "image", "count": 2}, 422, "as", "json, zip, grid"),
        ({"model": "faces", "count": 65}, 422, "count", "at most 64"),
        ({"model": "faces", "count": 0}, 422, "count", "from 1"),
        ({"model": "faces", "count": 10**400}, 422, "count", "at most 64"),
        ({"model": "faces", "seeds": "0-4294967295"}, 422, "seeds", "at most 64"),
        ({"model": "faces", "seeds": list(range(65))}, 422, "seeds", "at most 64"),
        ({"model": "faces", "seeds": "5-1"}, 422, "seeds", "backwards"),
        ({"model": "faces", "seeds": "1,,2"}, 422, "seeds", "ranges"),
        ({"model": "faces", "seeds": []}, 422, "seeds", "must be"),
        ({"model": "faces", "seeds": [1, True]}, 422, "seeds", "seeds[1]"),
        ({"model": "faces", "seed": 1.0}, 422, "seed", "whole number"),
        ({"model": "faces", "seed": True}, 422, "seed", "whole number"),
        ({"model": "faces", "seed": "7"}, 422, "seed", "whole number"),
        ({"model": "faces", "seed": -1}, 422, "seed", "from 0 to 4294967295"),
        ({"model": "faces", "seed": 2**32}, 422, "seed", "from 0 to 4294967295"),
        ({"model": "faces", "seed": 10**400}, 422, "seed", "from 0 to 4294967295"),
        ({"model": "faces", "seed": 1, "count": 1}, 422, "count", "exclude each other"),
        ({"model": "faces", "truncation": 2.1}, 422, "truncation", "from 0 to 2"),
        ({"model": "faces", "truncation": True}, 422, "truncation", "finite"),
        ({"model": "faces", "truncation": 10**400}, 422, "truncation", "finite"),
        ({"model": "faces", "latents": [1, 2, 3]}, 422, "latents", "4 numbers"),
        ({"model": "faces", "latents": [[1, 2, 3, 4], [1]]}, 422, "latents", "latents[1]"),
        ({"model": "faces", "latents": [1, 2, 3, "4"]}, 422, "latents", "no number"),
        ({"model": "faces", "latents": [1, 2, 3, False]}, 422, "latents", "no number"),
        ({"model": "faces", "latents": [1, 2, 3, 1e39]}, 422, "latents", "between"),
        ({"model": "faces", "latents": [1, 2, 3, 10**400]}, 422, "latents", "between"),
        ({"model": "faces", "latents": [[]]}, 422, "latents", "latents[0]"),
        ({"model": "faces", "latents": [[1, 2, 3, 4]] * 65}, 422, "latents", "at most 64"),
        ({"model": "faces", "sed": 7}, 422, "sed", "did you mean 'seed'"),
        ({"model": "faces", "labels": 7}, 422, "labels", "did you mean 'label'"),
        ({"model": "faces", "zzzzzz": 7}, 422, "zzzzzz", "known are"),
        ({"model": "faces", "as_": "json"}, 422, "as_", "did you mean 'as'"),
    ],
)
async def test_wrong_fields(client, body, status, field, says):
    problem = check(await client.post("/generate", json=body), status)
    assert problem["field"] == field and says in problem["detail"]
    if status == 422:
        assert problem["errors"][0]["pointer"].partition("/")[2].partition("/")[0] == field


async def test_allowed_values_are_listed(client):
    assert check(await client.post("/generate", json={"model": "x"}), 404)["allowed"] == [
        "clothes",
        "faces",
        "photo-x2",
    ]
    assert "Sneaker" in check(await client.post("/generate", json={"model": "clothes", "label": "x"}), 422)["allowed"]
    assert check(await client.post("/generate", json={"model": "faces", "format": "x"}), 422)["allowed"] == [
        "png",
        "jpeg",
        "webp",
    ]


async def test_a_body_of_thousands_of_names_is_answered(client):
    """Each name is compared with the known ones, so only the first few may be."""
    body = {f"k{number}": 1 for number in range(60_000)}
    assert len(check(await client.post("/generate", json=body), 422)["errors"]) == 9
    pairs = b",".join(b'"k%d":1' % number for number in [*range(60_000), 59_999])
    assert check(await client.post("/generate", content=b"{" + pairs + b"}", headers=JSON), 422)["field"] == "k59999"
    check(await client.post("/generate", json={"model": "faces", "x" * 500_000: 1}), 422)
    check(await client.post("/generate", json={"model": "faces", "seeds": "1," * 400_000}), 422)
    check(await client.post("/generate", json={"model": "faces", "sed": None}), 422)


async def test_all_wrong_fields_are_told_at_once(client):
    problem = check(await client.post("/generate", json={"seed": -1, "truncation": "x", "sed": 1}), 422)
    assert {error["pointer"] for error in problem["errors"]} == {"#/model", "#/seed", "#/truncation", "#/sed"}


@pytest.mark.parametrize(
    "content, status",
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"faces"', 400),
        (b'{"model": "faces"} {}', 400),
        (b"\xff\xfe{}", 400),
        (b'{"model": "fa\xffces"}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000, 400),
        (b'{"model": "faces", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "faces", "seed": 1, "seed": 2}', 422),
        (b'{"model": "faces", "seed": NaN}', 422),
        (b'{"model": "faces", "truncation": NaN}', 422),
        (b'{"model": "faces", "truncation": -Infinity}', 422),
        (b'{"model": "faces", "truncation": 1e999}', 422),
        (b'{"model": "faces", "latents": [1, 2, 3, Infinity]}', 422),
        (b'{"model": "\\ud800"}', 404),
        (b'{"model": "clothes", "label": "\\ud800"}', 422),
        (b'{"\\ud800": 1, "model": "faces"}', 422),
        (b'{"model": "faces", "seeds": "\xd9\xa3"}', 422),
    ],
)
async def test_odd_bodies(client, content, status):
    check(await client.post("/generate", content=content, headers=JSON), status)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_other_content_types(client, content_type):
    headers = {"content-type": content_type} if content_type else {}
    reply = await client.post("/generate", content=b'{"model":"faces"}', headers=headers)
    check(reply, 415)
    assert reply.headers["accept-post"] == "application/json, application/x-npy"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/x.y+json"]
)
async def test_json_content_types(client, content_type):
    reply = await client.post("/generate", content=b'{"model":"faces"}', headers={"content-type": content_type})
    assert reply.status_code == 200


async def test_body_limit_by_length_and_by_stream(client, engine):
    too_long = b'{"model": "' + b"x" * (1 << 20) + b'"}'
    problem = check(await client.post("/generate", content=too_long, headers=JSON), 413)
    assert problem["allowed"] == [1 << 20]

    async def stream():
        for _ in range(64):
            yield b" " * (1 << 15)

    check(await client.post("/generate", content=stream(), headers=JSON), 413)
    assert engine.calls == []


async def test_paths_and_methods(client):
    check(await client.get("/nothing"), 404)
    check(await client.get("/models/%2e%2e/card"), 404)
    check(await client.get("/playground/..%2fapp.py"), 404)
    reply = await client.put("/generate")
    check(reply, 405)
    assert reply.headers["allow"] == "GET, HEAD, POST"
    check(await client.post("/generate/", json={"model": "faces"}), 404)
    check(await client.delete("/models"), 405)
    assert (await client.get("/project")).headers["allow"] == "POST"


@pytest.mark.parametrize(
    "error, status, retry",
    [
        (errors.Overloaded("full", retry_after_s=1.2, reason="queue_full"), 429, ("2", "1200")),
        (errors.Overloaded("full", retry_after_s=0.02, reason="queue_full"), 429, ("1", "20")),
        (errors.Overloaded("full", reason="no_time"), 429, ("1", "1000")),
        (errors.NotReady("draining", reason="draining"), 503, ("1", "1000")),
        (errors.DeadlineExceeded("late", reason="deadline"), 504, (None, None)),
        (errors.RunFailed("the run failed"), 500, (None, None)),
        (errors.TooLarge("too many", field="count", allowed=[64]), 422, (None, None)),
    ],
)
async def test_the_engines_errors(client, engine, error, status, retry):
    engine.error = error
    reply = await client.post("/generate", json={"model": "faces", "seed": 1})
    problem = check(reply, status)
    assert (reply.headers.get("retry-after"), reply.headers.get("retry-after-ms")) == retry
    assert problem["detail"] == error.detail
    if isinstance(error, errors.Unavailable):
        assert problem["reason"] == error.reason


async def test_a_refusal_without_a_reason_has_its_code(client, engine):
    engine.error = errors.DeadlineExceeded("late")
    assert check(await client.post("/generate", json={"model": "faces"}), 504)["reason"] == "deadline-exceeded"
    assert 'ganymede_rejected_total{reason="deadline-exceeded"} 1.0' in (await client.get("/metrics")).text


async def test_details_are_cut_short(client):
    assert len(check(await client.get("/models/" + "x" * 5000), 404)["detail"]) <= 1000


async def test_the_unexpected_tells_nothing(client, engine, caplog):
    engine.error = ZeroDivisionError("secret inside")
    reply = await client.post("/generate", json={"model": "faces", "seed": 1})
    problem = check(reply, 500)
    assert "secret" not in reply.text and "Traceback" not in reply.text
    assert problem["request_id"] in caplog.text and "secret inside" in caplog.text


def test_every_error_class_has_a_status():
    def below(base):
        return {base}.union(*(below(cls) for cls in base.__subclasses__()))

    for cls in below(errors.GanymedeError):
        assert problems.kind_of(cls).status in range(400, 600)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["faces", "clothes", "0-3", 10**400, "png", "json", "Sneaker"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["model", "seed", "seeds", "count", "latents", "label", "truncation", "format", "as", "steps"])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(names, values, max_size=5), named=st.booleans())
async def test_no_json_makes_a_server_error(client, body, named):
    if named:
        body = {**body, "model": "clothes"}
    reply = await client.post("/generate", content=json.dumps(body).encode(), headers=JSON)
    assert reply.status_code in (200, 400, 404, 422), (body, reply.text)


async def test_pointers_are_escaped(client):
    reply = await client.post("/generate", json={"model": "faces", "a/b~c d": 1})
    assert check(reply, 422)["errors"][0]["pointer"] == "#/a~1b~0c%20d"
    reply = await client.post("/generate", content=rb'{"model": "faces", "\ud800": 1}', headers=JSON)
    assert check(reply, 422)["errors"][0]["pointer"] == "#/%3F"


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"model": "clothes", "seeds": [1, 2, -1]}, "#/seeds/2"),
        ({"model": "clothes", "label": ["Sneaker", 2, []], "seeds": [1, 2, 3]}, "#/label/2"),
        ({"model": "clothes", "latents": [[1, 2], [1, "x"]]}, "#/latents/1"),
        ({"model": "clothes", "latents": [[1, 2], [1, 1e300]]}, "#/latents/1/1"),
        ({"model": "clothes", "styles": [{"seed": 1, "layers": "x"}]}, "#/styles/0/layers"),
        ({"model": "clothes", "mix": [{"seed": 1}, {"sede": 1}]}, "#/mix/1"),
        ({"model": "clothes", "directions": {"a": "x"}}, "#/directions/a"),
        ({"model": "clothes", "directions": {"A b[0]": "x"}}, "#/directions"),
    ],
)
async def test_pointers_lead_into_a_field(client, body, at):
    assert check(await client.post("/generate", json=body), 422)["errors"][0]["pointer"] == at


async def test_a_body_that_does_not_come_is_not_waited_for(client, engine):
    async def stream():
        yield b'{"model":'
        await asyncio.Event().wait()

    reply = await client.post("/generate", content=stream(), headers={**JSON, "x-request-timeout-ms": "10"})
    assert check(reply, 408)["field"] == "body" and reply.headers["connection"] == "close"
    assert engine.calls == []


async def test_a_body_lost_to_an_upgrade_is_explained(client):
    headers = {**JSON, "upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings", "content-length": "49"}
    assert "HTTP/1.1" in check(await client.post("/generate", content=b"", headers=headers), 400)["detail"]
    assert "HTTP/1.1" not in check(await client.post("/generate", content=b"", headers=JSON), 400)["detail"]
