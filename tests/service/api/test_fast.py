"""The hot endpoints over real sockets, both ways: what a client sees does not tell which way its request took."""

import asyncio
import json
import logging
import re
from types import SimpleNamespace

import pytest
from sockets import served

from service.api import connection
from service.errors import DeadlineExceeded, NotReady, Overloaded, RunFailed

JSON = b"content-type: application/json\r\n"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def post(body: bytes | str | dict, head: bytes = JSON, url: bytes = b"/generate", version: bytes = b"1.1") -> bytes:
    if isinstance(body, dict):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    return b"POST %b HTTP/%b\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (url, version, head, len(body), body)


def get(query: str, head: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b /generate?%b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (method, query.encode(), head)


END = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
FACES, CLOTHES = {"model": "faces", "seed": 7}, {"model": "clothes", "seed": 7}

GOOD = {
    "one": post(FACES),
    "another seed": post({"model": "faces", "seed": 8}),
    "label": post({**CLOTHES, "label": "sneaker"}),
    "label beyond ASCII": post({**CLOTHES, "label": "Čepice"}),
    "label by index": post({**CLOTHES, "label": 2, "truncation": 0.5}),
    "truncation": post({**FACES, "truncation": 1e-3}),
    "seeds": post({"model": "faces", "seeds": [1, 2, 1]}),
    "ranges": post({"model": "clothes", "seeds": "0,4-6", "as": "zip"}),
    "grid": post({"model": "faces", "seeds": "1-5", "as": "grid", "format": "webp"}),
    "count": post({"model": "faces", "count": 2}),
    "no seed": post({"model": "faces"}),
    "latents": post({"model": "faces", "latents": [0, 1, 2.5, -1]}),
    "json": post({**FACES, "as": "json"}),
    "jpeg": post({**FACES, "format": "jpeg"}),
    "accept": post(FACES, JSON + b"accept: image/webp, image/*;q=0.5\r\n"),
    "accept in two lines": post(FACES, JSON + b"accept: text/plain\r\naccept: image/jpeg\r\n"),
    "nulls": post('{"model": "faces", "seed": null, "seeds": [5], "as": null}'),
    "spaces": post(' \n{ "seed" : 12 ,\t"model":"faces" } '),
    "escapes": post('{"m\\u006fdel": "faces", "seed": 3}'),
    "text like a seed": post('{"model": "clothes", "label": "Trouser", "seed": 0}'),
    "last seed": post({"model": "faces", "seed": 2**32 - 1}),
    "priority and deadline": post(FACES, JSON + b"x-priority: 2\r\nx-request-timeout-ms: 5000\r\n"),
    "charset": post(FACES, b"Content-Type: application/json; charset=utf-8\r\n"),
    "problem json": post(FACES, b"content-type: application/vnd.x+json\r\n"),
    "id": post(FACES, JSON + b"x-request-id: abc-1\r\n"),
    "odd id": post(FACES, JSON + b"x-request-id: a b\r\n"),
    "trace": post(FACES, JSON + b"traceparent: " + TRACE + b"\r\n"),
    "url": get("model=faces&seed=7"),
    "pinned url": get("seed=7&model=faces%401&format=png&truncation=0.5"),
    "label in url": get("model=clothes&label=%C4%8Cepice&seed=4"),
    "copy is current": get("model=faces&seed=7", b"if-none-match: *\r\n"),
    "copy is not": get("model=faces&seed=7", b'if-none-match: "x"\r\n'),
}
BAD = {
    "unknown model": post({"model": "nobody", "seed": 1}),
    "another task": post({"model": "photo-x2", "seed": 1}),
    "seed too large": post({"model": "faces", "seed": 2**32}),
    "seed negative": post({"model": "faces", "seed": -1}),
    "seed a fraction": post('{"model": "faces", "seed": 1.5}'),
    "seed with an exponent": post('{"model": "faces", "seed": 1e2}'),
    "seed with a zero before": post('{"model": "faces", "seed": 01}'),
    "seed twice": post('{"model": "faces", "seed": 1, "seed": 1}'),
    "seed and count": post({"model": "faces", "seed": 1, "count": 2}),
    "seed inside": post('{"model": "faces", "label": {"seed": 1}}'),
    "seed in a text": post('{"model": "faces\\",\\"seed\\":1, ", "label": "\\"seed\\":2,"}'),
    "unknown field": post({"model": "faces", "sed": 1, "lable": 2}),
    "not a number": post('{"model": "faces", "truncation": NaN, "seed": 1}'),
    "too many": post({"model": "faces", "count": 65}),
    "no JSON": post("model=faces"),
    "cut off": post('{"model": "faces", "seed": 1'),
    "more behind": post('{"model": "faces", "seed": 1} 2'),
    "an array": post("[1]"),
    "deep": post("[" * 5000),
    "many digits": post('{"model": "faces", "seed": %s}' % ("9" * 5000)),
    "no UTF-8": post(b'{"model": "faces", "label": "\xff"}'),
    "surrogate": post('{"model": "\\ud800", "seed": 1}'),
    "empty": post(b""),
    "no type": post(FACES, b""),
    "a form": post(FACES, b"content-type: application/x-www-form-urlencoded\r\n"),
    "not acceptable": post(FACES, JSON + b"accept: text/html\r\n"),
    "wrong label": post({**CLOTHES, "label": "Hat"}),
    "wrong priority": post(FACES, JSON + b"x-priority: 10\r\n"),
    "wrong deadline": post(FACES, JSON + b"x-request-timeout-ms: soon\r\n"),
    "empty query": get(""),
    "wrong query": get("model=faces&seed=x"),
    "no seed in query": get("model=faces"),
    "twice in query": get("model=faces&seed=1&seed=2"),
    "unknown in query": get("model=faces&seed=1&sed=2"),
    "unknown model in query": get("model=nobody&seed=1"),
    "not acceptable url": get("model=faces&seed=1", b"accept: text/html\r\n"),
    "wrong deadline in url": get("model=faces&seed=1", b"x-request-timeout-ms: 0\r\n"),
    "large seed in query": get("model=faces&seed=99999999999999"),
}
UNUSUAL = {
    "chunked": b"POST /generate HTTP/1.1\r\nhost: x\r\n%btransfer-encoding: chunked\r\n\r\n" % JSON
    + b'1d\r\n{"model": "faces", "seed": 7}\r\n0\r\n\r\n',
    "expects": post(FACES, JSON + b"expect: 100-continue\r\n"),
    "large": post('{"model": "faces", "seed": 7}' + " " * 20_000),
    "too large": post('{"model": "faces", "seed": 7}' + " " * (1 << 20)),
    "old": post(FACES, version=b"1.0"),
    "closes": post(FACES, JSON + b"connection: close\r\n"),
    "upgrades": post(FACES, JSON + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"),
    "query of a post": post(FACES, url=b"/generate?seed=1"),
    "whole URL": post(FACES, url=b"http://x/generate"),
    "encoded path": post(FACES, url=b"/gener%61te"),
    "slash": post(FACES, url=b"/generate/"),
    "head": get("model=faces&seed=7", method=b"HEAD"),
    "put": post(FACES).replace(b"POST", b"PUT"),
    "get with a body": get("model=faces&seed=7", b"content-length: 2\r\n") + b"{}",
    "get without a query": b"GET /generate HTTP/1.1\r\nhost: x\r\n\r\n",
}


def seen(answer: bytes) -> bytes:
    """An answer without what differs from one request to the next."""
    answer = re.sub(rb"\r\n(server-timing|date): [^\r]*", b"", answer)
    answer = re.sub(rb"\r\nx-request-id: [0-9a-f]{16}\r", b"\r\nx-request-id: ?\r", answer)
    answer = re.sub(rb"(\r\ntraceparent: 00-)([0-9a-f]{32})-[0-9a-f]{16}", _trace, answer)
    answer = re.sub(rb'"request_id": "[0-9a-f]{16}"', b'"request_id": ?', answer)
    answer = re.sub(rb'"encode_s":[0-9.e-]+', b'"encode_s":?', answer)
    return re.sub(rb"(?<=content-length: )\d+(?=\r\ncontent-type: application/json\r\n)", b"?", answer)


def _trace(found: re.Match) -> bytes:
    return found[1] + (found[2] if found[2] in TRACE else b"?")


@pytest.mark.parametrize("name", [*GOOD, *BAD, *UNUSUAL])
async def test_both_ways_say_the_same(engine, monkeypatch, name):
    sent = {**GOOD, **BAD, **UNUSUAL}[name]
    async with served(engine, monkeypatch, fast=False) as asgi:
        wanted = [seen(await asgi.talk(sent * 2 + END)), seen(await asgi.talk(sent + END))]
        assert not asgi.fast
    async with served(engine, monkeypatch) as fast:
        found = [seen(await fast.talk(sent * 2 + END)), seen(await fast.talk(sent + END))]
        assert bool(fast.fast) == (name not in UNUSUAL), "which way it took"
    assert found == wanted
    assert wanted[0].startswith(b"HTTP/1.1 ") or name == "too large"  # which may be reset while it is sent
    if name in GOOD:
        assert wanted[0].split(b"\r\n")[0] in (b"HTTP/1.1 200 OK", b"HTTP/1.1 304 Not Modified")


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("the queue is full", retry_after_s=1.2, reason="queue_full"),
        NotReady("loading", reason="loading"),
        DeadlineExceeded("too late"),
        RunFailed("the model failed"),
        ZeroDivisionError("inside"),
    ],
)
async def test_both_ways_fail_alike(engine, monkeypatch, error):
    engine.error = error
    answers = []
    for fast in (False, True):
        async with served(engine, monkeypatch, fast=fast) as server:
            answers.append(seen(await server.talk(post(FACES) + get("model=faces&seed=1") + END)))
            assert bool(server.fast) == fast
            text = (await server.client.get("/metrics")).text
            answers.append(sorted(line for line in text.splitlines() if line.startswith("ganymede_rejected_total")))
            answers.append([line for line in text.splitlines() if line.startswith("ganymede_requests_total")])
    assert answers[:3] == answers[3:]
    assert b"inside" not in answers[0]


async def test_both_ways_count_and_log_the_same(engine, monkeypatch, caplog):
    told = []
    for fast in (False, True):
        caplog.clear()
        async with served(engine, monkeypatch, fast=fast) as server:
            with caplog.at_level(logging.INFO, "ganymede.access"):
                await server.talk(post(CLOTHES, JSON + b"x-request-id: r1\r\n") + post("{}") + END)
            lines = [record.fields for record in caplog.records if record.name == "ganymede.access"]
            text = (await server.client.get("/metrics")).text
        for line in lines:
            assert all(line.pop(name) for name in ("trace_id", "span_id")) and line.pop("duration_ms") > 0
            assert len(line.pop("request_id")) == 16 or line["path"] == "/generate"
        stages = [{key: key.endswith("_ms") or value for key, value in line.items()} for line in lines]
        counts = [
            line
            for line in text.splitlines()
            if re.match(r"ganymede_(requests_total|images_total|stage_seconds_count)", line)
        ]
        told.append((stages, counts))
    assert told[0] == told[1]


async def test_requests_in_one_piece_are_answered_in_their_order(engine, monkeypatch):
    async with served(engine, monkeypatch) as server:
        sent = b"".join(post({"model": "faces", "seed": seed}) for seed in range(20))
        answer = await server.talk(sent + END)
        assert re.findall(rb"x-seed: (\d+)", answer) == [b"%d" % seed for seed in range(20)]
        assert answer.count(b"HTTP/1.1 200 OK") == 21 and answer.endswith(b"}")


@pytest.mark.parametrize("name", [*GOOD, *BAD, *UNUSUAL])
async def test_a_request_that_comes_again_on_its_connection_is_answered_the_same(engine, monkeypatch, name):
    """Each time in a piece of its own, so that its head may be known."""
    sent = {**GOOD, **BAD, **UNUSUAL}[name]
    said = []
    for fast in (False, True):
        async with served(engine, monkeypatch, fast=fast) as server:
            said.append((await one_by_one(server, monkeypatch, [sent, sent, sent, END]))[0])
            assert bool(server.fast) == (fast and name not in UNUSUAL)
    assert said[0] == said[1]


async def one_by_one(server, monkeypatch, requests) -> tuple[list[bytes], list[bytes]]:
    """Each sent when the one before is answered: all that is said, and the methods of the heads that were parsed."""
    heads, said = [], []
    original = connection.BoundedConnection.on_headers_complete

    def complete(self) -> None:
        heads.append(self.parser.get_method())
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(connection.BoundedConnection, "on_headers_complete", complete)
        reader, writer = await asyncio.open_connection(*server.address)
        async with asyncio.timeout(30):
            for request in requests:
                try:
                    writer.write(request)
                    said.append(seen(await whole_answer(reader, request.startswith(b"HEAD"))))
                except (ConnectionResetError, asyncio.IncompleteReadError):
                    break  # closed by an answer before
        writer.close()
    return said, heads


async def whole_answer(reader, bare: bool = False) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return head + await reader.readexactly(0 if bare or length is None else int(length[1]))


async def test_only_a_whole_request_under_the_same_head_is_spared_the_parser(engine, monkeypatch):
    first, second = post({"model": "faces", "seed": 3}), post({"model": "faces", "seed": 4})
    longer, other = post({"model": "faces", "seed": 10}), post(FACES, JSON + b"x-priority: 2\r\n")
    async with served(engine, monkeypatch) as server:
        sent = [first, second, first, longer, longer, second, other, other, get("model=faces&seed=1")]
        said, heads = await one_by_one(server, monkeypatch, sent)
        seeds = [re.search(rb"x-seed: (\d+)", answer)[1] for answer in said]
        assert seeds == [b"3", b"4", b"3", b"10", b"10", b"4", b"7", b"7", b"1"]
        assert len(heads) == 5, "first, longer, second, other and the link"
        assert len({re.search(rb"x-image: (\w+)|$", answer)[0] for answer in said}) >= 1


async def test_a_known_head_in_pieces_or_with_more_behind_is_parsed(engine, monkeypatch):
    first, second = post({"model": "faces", "seed": 3}), post({"model": "faces", "seed": 4})
    async with served(engine, monkeypatch) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        async with asyncio.timeout(30):
            for pieces in ([first], [second[:20], second[20:]], [first[:-3], first[-3:]], [b"\r\n", second]):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.02)
                seed = b"x-seed: 3" if pieces[0].startswith(b"POST") and b"".join(pieces) == first else b"x-seed: 4"
                assert seed in await whole_answer(reader)
            writer.write(first + second + END)
            rest = await reader.read()
        assert re.findall(rb"x-seed: (\d)", rest) == [b"3", b"4"] and rest.count(b"HTTP/1.1 200") == 3
        writer.close()


async def test_a_known_head_takes_the_asgi_way_while_the_server_drains(engine, monkeypatch):
    async with served(engine, monkeypatch) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        async with asyncio.timeout(30):
            writer.write(post(FACES))
            await whole_answer(reader)
            server.client.parts.draining = True
            writer.write(post(FACES))
            assert b"connection: close" in await whole_answer(reader) and len(server.fast) == 1
        writer.close()
        server.client.parts.draining = False


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # the fake tells nobody
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("behind", [b"", post({"model": "faces", "seed": 8}), END])
async def test_a_client_that_leaves_withdraws_its_request(engine, monkeypatch, behind):
    engine.gate = asyncio.Event()
    async with served(engine, monkeypatch) as server:
        _, writer = await asyncio.open_connection(*server.address)
        writer.write(post(FACES) + behind)
        await until(lambda: engine.calls)
        assert server.client.parts.metrics.in_flight == 1
        writer.close()
        await until(lambda: engine.cancelled == 1)
        await until(lambda: server.client.parts.metrics.in_flight == 0)
        text = (await server.client.get("/metrics")).text
        assert 'ganymede_requests_total{model="faces@1",task="generate",code="499"} 1.0' in text
        assert len(server.fast) == 1


@pytest.mark.parametrize(
    "wait_s, head, fast", [(0.0, b"", True), (0.12, b"", False), (0.0, b"x-request-timeout-ms: 9000\r\n", False)]
)
async def test_a_body_behind_its_head_is_waited_for(engine, monkeypatch, wait_s, head, fast):
    # Far from what a busy machine's pauses are, either way.
    monkeypatch.setattr(connection, "BODY_WAIT_S", 0.05 if wait_s else 10.0)
    async with served(engine, monkeypatch) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        sent = post(FACES, JSON + head)
        for piece in (sent[:-20], sent[-20:-7]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        await asyncio.sleep(wait_s)
        writer.write(sent[-7:] + END)
        async with asyncio.timeout(20):
            answer = await reader.read()
        assert b"x-seed: 7\r\n" in answer and answer.count(b"HTTP/1.1 200 OK") == 2
        assert bool(server.fast) == fast
        writer.close()


async def test_a_body_that_never_comes_is_408_and_one_that_is_cut_off_499(engine, monkeypatch):
    async with served(engine, monkeypatch, timeout_s=0.2) as server:
        assert (await server.talk(post(FACES)[:-3])).startswith(b"HTTP/1.1 408 ")
        _, writer = await asyncio.open_connection(*server.address)
        writer.write(post(FACES)[:-3])
        await until(lambda: any(one._hot is not None for one in server.state.connections))
        writer.close()
        await until(lambda: not server.state.connections and not server.client.parts.metrics.in_flight)
        text = (await server.client.get("/metrics")).text
        assert 'code="499"} 1.0' in text and not engine.calls and not server.fast


async def test_while_draining_the_answer_ends_the_connection(engine, monkeypatch):
    engine.gate = asyncio.Event()
    async with served(engine, monkeypatch) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(post(FACES))
        await until(lambda: engine.calls)
        server.client.parts.draining = True
        for one in list(server.state.connections):
            one.shutdown()
        engine.gate.set()
        async with asyncio.timeout(20):
            answer = await reader.read()
        assert b"x-seed: 7" in answer and answer.count(b"connection: close") == 1 and len(server.fast) == 1
        writer.close()
        server.client.parts.draining = False


async def test_large_pictures_are_encoded_in_a_thread(engine, monkeypatch):
    monkeypatch.setattr("service.api.pictures.INLINE_BYTES", 0)
    async with served(engine, monkeypatch) as server:
        answer = await server.talk(post(FACES) + END)
        assert b"x-seed: 7" in answer and len(server.fast) == 1
        assert any(thread.name.startswith("encode") for thread in server.client.parts.encoders._threads)


async def test_an_error_while_encoding_is_500(engine, monkeypatch, caplog):
    async with served(engine, monkeypatch) as server:
        monkeypatch.setattr("service.api.pictures.encode_pngs", lambda *_: 1 / 0)
        answer = await server.talk(post(FACES) + post({"model": "faces", "seeds": [1, 2]}) + END)
        assert answer.count(b"HTTP/1.1 500 ") == 2 and b"division" not in answer
        assert "ZeroDivisionError" in caplog.text and server.client.parts.metrics.in_flight == 0


async def test_a_client_that_does_not_read_is_not_answered_ahead(engine, monkeypatch):
    """Beyond what the transport may hold, requests take the way that waits."""
    async with served(engine, monkeypatch) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(post(FACES))
        await reader.readuntil(b"\r\n\r\n")
        (one,) = server.state.connections
        one.pause_writing()
        writer.write(post(FACES) + END)
        await asyncio.sleep(0.05)
        assert len(server.fast) == 1
        one.resume_writing()
        async with asyncio.timeout(20):
            assert (await reader.read()).count(b"HTTP/1.1 200") == 2
        writer.close()


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(engine, monkeypatch):
    async with served(engine, monkeypatch) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        await until(lambda: server.state.connections)
        (one,) = server.state.connections
        one.timeout_keep_alive = 1.0
        engine.gate = asyncio.Event()
        writer.write(post(FACES))
        await asyncio.sleep(1.2)  # longer than a connection may be idle; this one is not
        engine.gate.set()
        await reader.readuntil(b"IEND")
        for seed in range(3):
            await asyncio.sleep(0.1)
            writer.write(post({"model": "faces", "seed": seed}))
            assert (await reader.readuntil(b"IEND")).count(b"200 OK") == 1
        async with asyncio.timeout(20):
            await reader.read()
        assert not server.state.connections
        writer.close()


@pytest.mark.parametrize("limit", [0, 1, 1000])
async def test_what_the_kernel_does_not_take_at_once_follows(engine, monkeypatch, limit):
    """Answers go out past the transport as far as the socket takes them; the rest goes through it, in order."""
    sent = post(FACES) * 3 + post({"model": "faces", "seeds": "0-40", "as": "zip"}) + post(CLOTHES) + END
    async with served(engine, monkeypatch) as server:
        wanted = seen(await server.talk(sent))
    given = []

    def write(descriptor: int, data: bytes) -> int:
        if len(given) % 2 or not limit:
            given.append(0)
            raise BlockingIOError
        given.append(real(descriptor, data[:limit]))
        return given[-1]

    real = connection.os.write
    monkeypatch.setattr(connection, "os", SimpleNamespace(write=write, name="posix"))
    async with served(engine, monkeypatch) as server:
        assert seen(await server.talk(sent)) == wanted
    assert given


def test_the_wait_for_a_body_is_short_beside_any_deadline():
    assert connection.BODY_WAIT_S <= 0.1


async def test_a_head_that_began_behind_another_is_not_known_by_its_tail(engine, monkeypatch):
    """Two heads in one read, the second cut off within its seed: what ends it must not stand for a head of its own."""
    url = b"GET /generate?model=faces&seed=%s HTTP/1.1\r\nhost: x\r\n\r\n"
    whole, tail = url % b"1", url.partition(b"%s")[2]
    async with served(engine, monkeypatch) as app:
        reader, writer = await asyncio.open_connection(*app.address)
        async with asyncio.timeout(30):
            for begun in (b"1", b"3"):
                writer.write(whole + url.partition(b"%s")[0] + begun)
                assert (await head_of(reader))["x-seed"] == "1"
                writer.write(b"2" + tail)
                assert (await head_of(reader))["x-seed"] == begun.decode() + "2"
            writer.write(url % b"4")
            assert (await head_of(reader))["x-seed"] == "4"
        writer.close()


async def head_of(reader) -> dict[str, str]:
    """An answer's headers; its body is read."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    assert lines[0].startswith("HTTP/1.1 200"), lines
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    await reader.readexactly(int(headers["content-length"]))
    return headers


@pytest.mark.parametrize("zeros", [b"", b"0" * 9, b"0" * 25])
async def test_zeros_before_a_length_hide_nothing(engine, monkeypatch, zeros):
    async with served(engine, monkeypatch, max_body_bytes=20_000) as app:
        head = b"POST /generate HTTP/1.1\r\nhost: x\r\n" + JSON + b"content-length: " + zeros
        small = json.dumps(FACES).encode()
        told = await app.talk(head + b"%d\r\n\r\n%b" % (len(small), small) + END)
        assert told.startswith(b"HTTP/1.1 200 ")
        large = small[:-1] + b" " * 30_000 + b"}"
        assert (await app.talk(head + b"%d\r\n\r\n%b" % (len(large), large) + END)).startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_leaves_is_missed_though_another_request_waits_behind(engine, monkeypatch):
    engine.gate = asyncio.Event()
    async with served(engine, monkeypatch, fast=False) as app:
        _, writer = await asyncio.open_connection(*app.address)
        writer.write(post(FACES) + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(30):
            while not engine.calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            writer.close()
            while not engine.cancelled:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert engine.cancelled == 1
