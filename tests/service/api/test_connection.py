"""Heads of requests that are too long or never end, and the order in which a server closes: over real sockets."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api import connection
from service.api.app import create_app
from service.api.connection import BoundedConnection
from service.api.server import DrainingServer
from service.settings import Settings


async def echo(scope, receive, send):
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(str(length)))]}
    )
    await send({"type": "http.response.body", "body": str(length).encode()})


@asynccontextmanager
async def connected():
    """Reader and writer of one connection to a server of `echo`."""
    config = uvicorn.Config(echo, http=BoundedConnection, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedConnection(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.close()
        server.close()


async def until_closed(reader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:  # closed with bytes of ours unread
        return b""


def request(head: bytes = b"", body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)


async def answer(reader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1])
    return await reader.readexactly(length)


def problem(told: bytes, status: int) -> dict[str, Any]:
    """The problem of an answer that ends the connection."""
    head, body = told.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/problem+json" in head and b"\r\ncontent-length: %d" % len(body) in head
    found = json.loads(body)
    assert found["status"] == status and found["type"].startswith("urn:ganymede:problem:")
    return found


async def test_bodies_and_later_requests_are_not_counted_as_heads():
    body = b"x" * (2 * connection.HEAD_MAX_BYTES)
    async with connected() as (reader, writer):
        for _ in range(3):
            writer.write(request(body=body))
            assert await answer(reader) == b"%d" % len(body)
        writer.write(request(b"x-long: " + b"a" * (connection.HEAD_MAX_BYTES // 2) + b"\r\n") * 2)
        assert [await answer(reader), await answer(reader)] == [b"0", b"0"]


@pytest.mark.parametrize("before", [b"", request(body=b"abc")])
async def test_a_head_without_end_is_refused(before):
    async with connected() as (reader, writer):
        if before:
            writer.write(before)
            assert await answer(reader) == b"3"
        writer.write(b"GET / HTTP/1.1\r\nx-endless: ")
        sent = 0
        try:
            while sent < 64 * connection.HEAD_MAX_BYTES and not writer.transport.is_closing():
                writer.write(b"a" * 8192)
                sent += 8192
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        if told := await until_closed(reader):
            assert problem(told, 431)["detail"].endswith(f"longer than {connection.HEAD_MAX_BYTES} bytes")
        assert sent < 64 * connection.HEAD_MAX_BYTES


@pytest.mark.parametrize("start", [b"", b"GET / HT", request(body=b"abc") + b"GET / HTTP/1.1\r\nx: "])
async def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch, start):
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    async with connected() as (reader, writer):
        writer.write(start)
        told = await reader.read()
        assert "did not end within" in problem(told[told.rindex(b"HTTP/1.1 ") :], 408)["detail"]


@pytest.mark.parametrize("sent", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nx y: 1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
async def test_what_is_not_http_is_told_so_as_a_problem(sent):
    async with connected() as (reader, writer):
        writer.write(sent)
        assert "not an HTTP/1.1 request" in problem(await reader.read(), 400)["detail"]


@pytest.mark.parametrize("hosts", [b"", b"host: a\r\nhost: b\r\n"])
async def test_a_request_has_one_host(hosts):
    async with connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")
        assert "exactly one Host" in problem(await reader.read(), 400)["detail"]
    async with connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.0\r\n" + hosts[:9] + b"\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def test_codings_that_are_not_read_are_refused_and_not_taken_for_plain_bytes():
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert "only 'chunked' is read" in problem(await reader.read(), 501)["detail"]
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert await answer(reader) == b"3"


@pytest.mark.parametrize("endless", [b"k: v\r\n" * 512, b"x" * 4096], ids=["lines", "one line"])
async def test_trailers_do_not_grow_without_end(endless):
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nk: ")
        sent = await endless_until_closed(writer, endless)
        assert sent < 16 * connection.HEAD_MAX_BYTES
        told = await until_closed(reader)
        assert not told or problem(told, 431)


async def test_extensions_of_a_chunk_do_not_either():
    async with connected() as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3;x=")
        assert await endless_until_closed(writer, b"y" * 4096) < 16 * connection.HEAD_MAX_BYTES


async def endless_until_closed(writer, piece: bytes) -> int:
    sent = 0
    try:
        while sent < 64 * connection.HEAD_MAX_BYTES and not writer.transport.is_closing():
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    return sent


async def test_trailers_and_large_bodies_in_many_pieces_are_read():
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(40):
            writer.write(b"2000\r\n" + b"x" * 8192 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\nhost: other\r\nmore: v\r\n\r\n" + request(body=b"abc"))
        assert await answer(reader) == b"%d" % (40 * 8192) and await answer(reader) == b"3"


@pytest.mark.parametrize("piece", [b"zz\r\n", b"3\r\nabcd\r\n"])
async def test_a_body_that_breaks_its_framing_is_told_so(piece):
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.05)  # the request is under way
        writer.write(piece)
        assert "not an HTTP/1.1 request" in problem(await reader.read(), 400)["detail"]


async def test_a_line_that_is_too_long_is_refused_as_a_head_is():
    async with connected() as (reader, writer):
        writer.write(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert "longer than" in problem(await reader.read(), 431)["detail"]


async def test_what_follows_a_request_and_is_not_http_does_not_break_into_its_answer():
    async with connected() as (reader, writer):
        writer.write(request(body=b"abc") + b"\0\0\0\r\n\r\n")
        told = await reader.read()
        assert told.count(b"HTTP/1.1 ") <= 2 and b"HTTP/1.1 " not in told[9:].split(b"\r\n\r\n")[0]


async def test_what_was_sent_before_the_port_closed_is_answered(tmp_path):
    """A client may use an idle connection at the very moment in which the server stops."""
    app = create_app(Settings(models=tmp_path))
    config = uvicorn.Config(app, port=0, http=BoundedConnection, log_config=None, timeout_graceful_shutdown=20)
    server = DrainingServer(config, app)
    lingering, sent = asyncio.Event(), asyncio.Event()

    async def linger() -> None:
        lingering.set()
        await sent.wait()

    server._linger = linger
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(60):
        while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        server.should_exit = True
        await lingering.wait()
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"alive" in await answer(reader)
        sent.set()
        assert await reader.read() == b""
        await serving


async def test_clients_whom_only_the_kernel_had_met_are_answered(tmp_path):
    app = create_app(Settings(models=tmp_path))
    config = uvicorn.Config(app, port=0, http=BoundedConnection, log_config=None, timeout_graceful_shutdown=20)
    server = DrainingServer(config, app)
    clients = []

    async def on_tick(counter: int) -> bool:
        """Connect without giving the loop a turn, and end the server in the same breath."""
        for _ in range(3):
            clients.append(socket.create_connection(server.servers[0].sockets[0].getsockname()))
            clients[-1].sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return True

    server.on_tick = on_tick
    async with asyncio.timeout(60):
        await server.serve()
    for client in clients:
        with client:
            client.settimeout(20)
            assert client.recv(12) == b"HTTP/1.1 200"
