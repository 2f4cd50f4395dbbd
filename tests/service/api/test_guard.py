"""Keys, scopes, rates, names and origins, over sockets: what is refused on one way is refused on the other."""

import asyncio
import json
import logging
import re

import pytest
from apiclient import client_of
from sockets import served

from service.api import guard as guarding
from service.api.app import SECURITY_HEADERS, create_app
from service.api.record import JsonFormatter
from service.engine.fairness import Share
from service.keys import Key, digest_of, new_secret
from service.settings import Settings

ALICE, OPS = new_secret(), new_secret()
KEYS = ";".join(
    [
        Key("alice", digest_of(ALICE.encode()), share=2.0).line,
        Key("ops", digest_of(OPS.encode()), frozenset({"generate", "admin"})).line,
    ]
)
BOTH = pytest.mark.parametrize("fast", [True, False])


def post(head: str = "", path: str = "/generate", body: bytes = b'{"model":"faces","seed":7}') -> bytes:
    sent = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{head}"
    return f"{sent}content-length: {len(body)}\r\n\r\n".encode() + body


def get(path: str, head: str = "host: x\r\n") -> bytes:
    return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()


END = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def taken_apart(answers: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Every answer of a connection: status, headers, body."""
    found = []
    while answers:
        head, _, answers = answers.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        length = int(headers.get("content-length", 0))
        found.append((int(lines[0].split()[1]), headers, answers[:length]))
        answers = answers[length:]
    return found


async def asked(engine, monkeypatch, *requests: bytes, fast: bool, **settings):
    """The answers to these requests, one connection each."""
    async with served(engine, monkeypatch, fast=fast, **settings) as app:
        answers = [taken_apart(await app.talk(request + END))[0] for request in requests]
        assert bool(app.fast) == (fast and any(b"/generate" in request for request in requests))
        return answers


@BOTH
@pytest.mark.parametrize(
    "head, status, code",
    [
        ("", 401, "key-missing"),
        ("authorization: Bearer \r\n", 401, "key-missing"),
        ("authorization: Basic YTpi\r\n", 401, "key-missing"),
        ("authorization: Bearer gany_wrong\r\n", 401, "key-unknown"),
        (f"authorization: Bearer {ALICE[:-1]}\r\n", 401, "key-unknown"),
        (f"authorization: Bearer {digest_of(ALICE.encode()).hex()}\r\n", 401, "key-unknown"),
        (f"authorization: Bearer {ALICE}\r\n", 200, None),
        (f"authorization: bearer  {ALICE}\r\n", 200, None),
        (f"x-api-key: {ALICE}\r\n", 200, None),
        (f"x-api-key: {OPS}\r\n", 200, None),
    ],
    # Keys are new in each process, and workers must name their tests alike.
    ids=["none", "empty", "basic", "wrong", "cut short", "its hash", "right", "lower case", "x-api-key", "operator's"],
)
async def test_a_picture_needs_a_key(engine, monkeypatch, fast, head, status, code):
    requests = post(head), get("/generate?model=faces&seed=7", f"host: x\r\n{head}")
    for found, headers, body in await asked(engine, monkeypatch, *requests, fast=fast, keys=KEYS):
        assert found == status, body
        if code is not None:
            problem = json.loads(body)
            assert headers["content-type"] == "application/problem+json" and headers["www-authenticate"][:6] == "Bearer"
            assert problem["type"].endswith(f":{code}") and problem["request_id"] == headers["x-request-id"]
    assert bool(engine.calls) == (status == 200), "nothing was drawn for nobody"


async def test_which_paths_are_open(engine):
    async with client_of(engine, keys=KEYS) as client:
        for path in ("/livez", "/readyz", "/metrics", "/", "/docs", "/openapi.json", "/playground/app.js"):
            assert (await client.get(path)).status_code == 200, path
        paths = set(create_app(client.parts.settings, engine).openapi()["paths"]) - guarding.OPEN
        for path in {*paths, "/nothing", "/models/faces/samples.png", "/livez/"}:
            for method in ("GET", "POST", "PUT"):
                reply = await client.request(method, path.replace("{name}", "faces"))
                assert reply.status_code == 401, (method, path)


@pytest.mark.parametrize("path", ["/models/faces/load", "/%6dodels/faces/load", "/models/%66aces/unload"])
async def test_operators_calls_need_the_scope_and_the_setting(engine, path):
    for admin in (True, False):
        async with client_of(engine, keys=KEYS, admin=admin) as client:
            refused = await client.post(path, headers={"x-api-key": ALICE})
            assert (refused.status_code, refused.json()["type"][-13:]) == (403, "scope-missing")
            assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
            let_in = await client.post(path, headers={"x-api-key": OPS})
            assert let_in.status_code in ((200, 204) if admin else (403,))
            if not admin:
                assert let_in.json()["type"].endswith(":admin-off")
        if "unload" in path:
            return


@BOTH
async def test_what_was_got_with_a_key_is_in_no_shared_cache(engine, monkeypatch, fast):
    request = get("/generate?model=faces&seed=7", f"host: x\r\nx-api-key: {ALICE}\r\n")
    for settings, word in (({"keys": KEYS}, "private"), ({}, "public")):
        requests = request, request.replace(b"/generate?model=faces&seed=7", b"/models/faces/samples.png")
        for _, headers, _ in await asked(engine, monkeypatch, *requests, fast=fast, **settings):
            assert headers["cache-control"].startswith(word + ",")


async def test_the_document_says_how_a_key_is_sent(engine):
    for settings, schemes in (({"keys": KEYS}, {"key": {"type": "http", "scheme": "bearer"}}), ({}, None)):
        document = create_app(Settings(**settings), engine).openapi()
        assert document["components"].get("securitySchemes") == schemes


async def test_keys_come_and_go_without_a_restart(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(guarding, "REREAD_S", 0.0)
    path = tmp_path / "keys"
    path.write_text("")
    async with client_of(engine, keys_file=path) as client:

        async def status(secret):
            return (await client.get("/models", headers={"x-api-key": secret})).status_code

        assert await status(ALICE) == 401
        path.write_text(KEYS.replace(";", "\n"))
        assert (await status(ALICE), await status(OPS)) == (200, 200)
        path.write_text("nonsense")
        assert await status(ALICE) == 200
        path.write_text(KEYS.split(";")[1])
        assert (await status(ALICE), await status(OPS)) == (401, 200)


@BOTH
async def test_nothing_secret_is_in_the_logs(engine, monkeypatch, fast, caplog):
    with caplog.at_level(logging.DEBUG):
        heads = [f"authorization: Bearer {ALICE}\r\n", f"x-api-key: {OPS}x\r\n", "authorization: Bearer gany_mine\r\n"]
        requests = [post(head) for head in heads] + [post(heads[0], path="/models/faces/load")]
        answers = await asked(engine, monkeypatch, *requests, fast=fast, keys=KEYS, admin=True)
        assert [status for status, _, _ in answers] == [200, 401, 401, 403]
        engine.error = ZeroDivisionError("a bug")
        await asked(engine, monkeypatch, post(heads[0]), fast=fast, keys=KEYS)
    told = "\n".join(JsonFormatter().format(record) for record in caplog.records)
    told += "".join(body.decode("latin-1") for _, _, body in answers[1:])
    assert '"caller": "alice"' in told and "ZeroDivisionError" in told
    for secret in (ALICE, OPS, "gany_mine", digest_of(ALICE.encode()).hex(), digest_of(OPS.encode()).hex()):
        assert secret not in told
    settings = (await _settings_of(engine)).settings
    assert digest_of(ALICE.encode()).hex() not in repr(settings) + settings.model_dump_json()


async def _settings_of(engine):
    async with client_of(engine, keys=KEYS) as client:
        return client.parts


@BOTH
async def test_who_asks_too_often_is_told_when_it_may(engine, monkeypatch, fast):
    key = Key("quick", digest_of(b"q"), rate_per_s=2.0, burst=3.0).line  # slow beside a busy machine's pauses
    async with served(engine, monkeypatch, fast=fast, keys=f"{KEYS};{key}", rate_per_s=1000.0) as app:

        async def ask(head="x-api-key: q\r\n"):
            return taken_apart(await app.talk(post(head) + END))[0]

        answers = [await ask() for _ in range(5)]
        refused = [answer for answer in answers if answer[0] == 429]
        assert [status for status, _, _ in answers][:3] == [200] * 3 and refused
        _, headers, body = refused[-1]
        problem = json.loads(body)
        assert problem["type"].endswith(":rate-limited") and problem["reason"] == "rate_limit"
        assert int(headers["retry-after"]) == 1 and 0 < int(headers["retry-after-ms"]) <= 500
        assert (await ask(f"x-api-key: {ALICE}\r\n"))[0] == 200, "another key is another bucket"
        await asyncio.sleep(int(headers["retry-after-ms"]) / 1000)
        assert (await ask())[0] == 200
        text = (await app.client.get("/metrics")).text
        assert re.search(r'ganymede_rejected_total\{reason="rate_limit"\} [1-9]', text)


@BOTH
async def test_without_keys_an_address_is_a_client(engine, monkeypatch, fast):
    settings = {"rate_per_s": 0.001, "rate_burst": 1.0}
    heads = ["x-forwarded-for: 1.1.1.1, 10.0.0.1\r\n", "x-forwarded-for: 1.1.1.1, 10.0.0.2\r\n"] * 2
    for forwarded, statuses in ((True, [200, 200, 429, 429]), (False, [200, 429, 429, 429])):
        requests = [post(head) for head in heads]
        answers = await asked(engine, monkeypatch, *requests, fast=fast, forwarded=forwarded, **settings)
        assert [status for status, _, _ in answers] == statuses
    assert [status for status, _, _ in await asked(engine, monkeypatch, get("/livez"), fast=False, **settings)] == [200]


@BOTH
async def test_clients_take_turns_under_their_keys_names(engine, monkeypatch, fast):
    shares, generate = [], engine.generate

    async def noting(model, share=None, **rest):
        shares.append(share)
        return await generate(model, **rest)

    engine.generate = noting
    requests = post(f"x-api-key: {ALICE}\r\n"), post(f"x-api-key: {OPS}\r\n")
    await asked(engine, monkeypatch, *requests, fast=fast, keys=KEYS, fair=True)
    await asked(engine, monkeypatch, post(), fast=fast, fair=True)
    await asked(engine, monkeypatch, post(), fast=fast)
    assert shares == [Share("alice", 2.0), Share("ops"), Share("127.0.0.1"), None]


@BOTH
@pytest.mark.parametrize(
    "host, status",
    [
        ("gan.example.org", 200),
        ("GAN.example.org:8000", 200),
        ("gan.example.org:", 200),
        ("a.b.example.net", 200),
        ("example.net", 421),
        ("evilexample.net", 421),
        ("gan.example.org.evil.org", 421),
        ("127.0.0.1:8000", 421),
        ("", 421),
    ],
)
async def test_a_server_answers_to_its_own_names(engine, monkeypatch, fast, host, status):
    sent = post().replace(b"host: x", f"host: {host}".encode())
    (found,) = await asked(engine, monkeypatch, sent, fast=fast, hosts="gan.example.org, *.example.net")
    assert found[0] == status
    probes = [get(path, "host: 10.0.0.7\r\n") for path in ("/livez", "/readyz", "/metrics")]
    answers = await asked(engine, monkeypatch, *probes, fast=fast, hosts="gan.example.org")
    assert [found[0] for found in answers] == [200, 200, 200], "probes and scrapes come by address"


@BOTH
async def test_scripts_of_other_origins(engine, monkeypatch, fast):
    ours, others = "origin: https://app.example.org\r\n", "origin: https://evil.example.org\r\n"
    preflight = (
        f"OPTIONS /generate HTTP/1.1\r\nhost: x\r\n{ours}access-control-request-method: POST\r\n"
        "access-control-request-headers: authorization, content-type\r\n\r\n"
    ).encode()
    key = f"x-api-key: {ALICE}\r\n"
    requests = preflight, post(ours + key), post(ours), post(others + key)
    async with served(engine, monkeypatch, fast=fast, keys=KEYS, origins="https://app.example.org") as app:
        asked_first, drawn, refused, foreign = [taken_apart(await app.talk(one + END))[0] for one in requests]
        plain = taken_apart(await app.talk(post(key) + END))[0]
        assert len(app.fast) == (1 if fast else 0), "without an origin it is as fast as ever"
    assert asked_first[0] == 200 and asked_first[1]["access-control-allow-origin"] == "https://app.example.org"
    assert "authorization" in asked_first[1]["access-control-allow-headers"].lower()
    assert drawn[0] == 200 and drawn[1]["access-control-allow-origin"] == "https://app.example.org"
    assert "X-Seed" in drawn[1]["access-control-expose-headers"] and drawn[2] == plain[2]
    assert refused[0] == 401 and "access-control-allow-origin" in refused[1], "a script may read why"
    assert "Origin" in plain[1]["vary"] and "Origin" in drawn[1]["vary"], "who keeps one must not give it to the other"
    assert "access-control-allow-origin" not in foreign[1] and "access-control-allow-origin" not in plain[1]


@BOTH
async def test_security_headers_are_on_every_answer_once(engine, monkeypatch, fast):
    requests = post(), post(body=b"{"), get("/livez"), get("/docs"), get("/nothing"), get("/models/faces/samples.png")
    async with served(engine, monkeypatch, fast=fast, security_headers=True) as app:
        for request in requests:
            head = (await app.talk(request + END)).partition(b"\r\n\r\n")[0].lower()
            for name, value in SECURITY_HEADERS:
                assert head.count(b"\r\n" + name + b": ") == 1 and value.lower() in head


async def test_with_nothing_set_there_is_no_guard(engine):
    async with client_of(engine) as client:
        assert client.app.state.front.guard is None
        head = (await client.get("/livez")).headers
        assert not {name.decode() for name, _ in SECURITY_HEADERS} & set(head)
        assert (await client.post("/models/faces/load")).json()["type"].endswith(":admin-off")


@pytest.mark.parametrize("path", ["/interpolate", "/project", "/translate", "/upscale"])
async def test_every_way_to_a_picture_needs_a_key(engine, path):
    async with client_of(engine, keys=KEYS) as client:
        refused = await client.post(path, json={})
        assert (refused.status_code, refused.json()["type"][-11:]) == (401, "key-missing")
        let_in = await client.post(path, json={}, headers={"x-api-key": ALICE})
        assert let_in.status_code in (400, 415, 422)
