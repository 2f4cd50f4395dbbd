"""Large bodies, read past uvicorn into the reader's own memory: over real sockets, on both kinds of loop."""

import asyncio
from contextlib import ExitStack, asynccontextmanager, closing

import numpy as np
import pytest
import uvicorn
import uvloop
from starlette.requests import ClientDisconnect, Request
from uvicorn.server import ServerState

from service.api.connection import BoundedConnection
from service.api.faults import BodyTooSlow
from service.api.intake import LEAST_BYTES, PIECE_BYTES, TURN_BYTES, Intake, Turns
from service.api.uploads import read_body

BODY = np.random.RandomState(0).bytes(LEAST_BYTES * 5 + 17)


class Reader:
    """An app that reads bodies as uploads are read, and answers with what it did."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self.turns = Turns()
        self.bodies: list[bytes] = []
        self.taken: list[bool] = []
        self.ends: list[type[BaseException]] = []
        self.timeout_s = timeout_s
        self.asked = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        request, status = Request(scope, receive), 200
        if scope["path"] == "/refused":
            status = 413
        else:
            self.asked.set()
            self.taken.append(Intake.of(scope) is not None)
            try:
                size = int(request.headers.get("content-length", 4 * len(BODY)))
                self.bodies.append(bytes(await read_body(request, size, self.timeout_s, self.turns)))
            except (BodyTooSlow, ClientDisconnect) as error:
                self.ends.append(type(error))
                status = 408
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(app):
    """The address of a server of this app."""
    config = uvicorn.Config(app, http=BoundedConnection, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedConnection(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        async with asyncio.timeout(60):
            yield server.sockets[0].getsockname()
    finally:
        server.close()


def head(length: int, path: str = "/", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {length}\r\n\r\n".encode()


async def status_of(reader: asyncio.StreamReader) -> int:
    return int((await reader.readuntil(b"\r\n\r\n"))[9:12])


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on a loop of each kind."""

    def go(work) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(work)

    return go


def test_bodies_come_whole_and_the_connection_goes_on(run):
    async def work() -> None:
        app = Reader()
        async with serving(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            for body in (BODY, b"small", BODY[:LEAST_BYTES], BODY[::-1]):
                writer.write(head(len(body)) + body)
                assert await status_of(reader) == 200
            assert app.bodies == [BODY, b"small", BODY[:LEAST_BYTES], BODY[::-1]]
            assert app.taken == [True, False, True, True]
            writer.close()

    run(work())


def test_many_bodies_at_once_are_not_mixed(run):
    async def work() -> None:
        app, bodies = Reader(), [BODY[start:] + BODY[:start] for start in range(12)]
        async with serving(app) as address:

            async def upload(body: bytes) -> None:
                reader, writer = await asyncio.open_connection(*address)
                with closing(writer):
                    writer.write(head(len(body)) + body)
                    assert await status_of(reader) == 200

            await asyncio.gather(*map(upload, bodies))
        assert sorted(app.bodies) == sorted(bodies) and app.turns.piece_bytes == TURN_BYTES

    run(work())


def test_a_request_that_was_sent_ahead_is_served_next(run):
    async def work() -> None:
        app = Reader()
        async with serving(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write((head(len(BODY)) + BODY) * 2 + head(3) + b"abc")
            assert [await status_of(reader) for _ in range(3)] == [200, 200, 200]
            assert app.bodies == [BODY, BODY, b"abc"]
            writer.close()

    run(work())


def test_a_body_in_drops_and_behind_a_question(run):
    async def work() -> None:
        app, body = Reader(), BODY[:LEAST_BYTES]
        async with serving(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(head(len(body), more="expect: 100-continue\r\n"))
            assert await status_of(reader) == 100
            for start in range(0, len(body), 10_007):
                writer.write(body[start : start + 10_007])
                await writer.drain()
                await asyncio.sleep(0)
            assert await status_of(reader) == 200
            assert app.bodies == [body] and app.taken == [True]
            writer.close()

    run(work())


def test_a_body_that_nobody_reads_is_passed_over(run):
    async def work() -> None:
        app = Reader()
        async with serving(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(head(len(BODY), "/refused") + BODY + head(len(BODY)) + BODY)
            assert [await status_of(reader), await status_of(reader)] == [413, 200]
            assert app.bodies == [BODY]
            writer.close()

    run(work())


def test_a_body_that_stops_is_given_up_and_passed_over_when_it_comes(run):
    async def work() -> None:
        app = Reader(timeout_s=0.1)
        async with serving(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(head(len(BODY)) + BODY[: len(BODY) // 2])
            assert await status_of(reader) == 408 and app.ends == [BodyTooSlow]
            app.timeout_s = 30.0
            writer.write(BODY[len(BODY) // 2 :] + head(3) + b"abc")
            assert await status_of(reader) == 200 and app.bodies == [b"abc"]
            writer.close()

    run(work())


@pytest.mark.parametrize("abrupt", [False, True])
def test_a_client_that_leaves_is_noticed(run, abrupt):
    async def work() -> None:
        app = Reader()
        async with serving(app) as address:
            _, writer = await asyncio.open_connection(*address)
            writer.write(head(len(BODY)) + BODY[: len(BODY) // 2])
            await writer.drain()
            await app.asked.wait()
            writer.transport.abort() if abrupt else writer.close()
            while not app.ends:  # noqa: ASYNC110  # the app's own end
                await asyncio.sleep(0.01)
            assert app.ends == [ClientDisconnect] and app.bodies == []

    run(work())


def test_bodies_of_unknown_length_are_read_as_ever(run):
    async def work() -> None:
        app = Reader()
        async with serving(app) as address:
            reader, writer = await asyncio.open_connection(*address)
            chunk = b"%x\r\n%s\r\n" % (LEAST_BYTES, BODY[:LEAST_BYTES])
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n")
            assert await status_of(reader) == 200
            assert app.bodies == [BODY[:LEAST_BYTES] * 2] and app.taken == [False]
            writer.close()

    run(work())


def test_a_turn_is_shared():
    turns = Turns()
    assert turns.piece_bytes == TURN_BYTES
    with turns.taken(), turns.taken(), turns.taken(), turns.taken():
        assert turns.piece_bytes == TURN_BYTES // 4
        with ExitStack() as many:
            for _ in range(1000):
                many.enter_context(turns.taken())
            assert turns.piece_bytes == PIECE_BYTES
    assert turns.piece_bytes == TURN_BYTES
