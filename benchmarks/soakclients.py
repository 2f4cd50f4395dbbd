"""The clients of the soak: honest ones and every kind of bad one, over raw asyncio streams so that they stay cheap."""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

PATIENCE_S = 30.0
"""A request that has no end after so long is stuck: the server's own deadline is 30 s, the load half of capacity."""
STUCK, CUT, OTHER = "stuck", "closed", "other picture"
KNOWN_SEEDS = 8
IDLE_MOST_S = 20.0

HONEST = {"one picture": 60.0, "known picture": 15.0, "several": 10.0, "grid": 5.0, "by URL": 8.0, "pages": 2.0}
"""Kinds of honest requests and their weights."""
FAULTS = {
    "leaves at once": 2.0,
    "leaves mid-run": 3.0,
    "garbage body": 2.0,
    "not HTTP": 1.0,
    "unknown model": 2.0,
    "wrong field": 2.0,
    "no time": 3.0,
    "reads slowly": 0.5,
    "sends slowly": 0.5,
    "too large": 1.0,
    "too large, in chunks": 1.0,
    "opens and leaves": 1.0,
    "stops within the head": 0.5,
}
"""Kinds of bad clients and their weights."""

SERVED = frozenset({"200", "304", "429", "503", "504"})
_PAGES = ("/models", "/livez", "/readyz", "/openapi.json", "/")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Clients:
    """Sends requests of every kind to one server.

    Args:
        port: on this machine.
        models: what to draw with.
    """

    def __init__(self, port: int, models: Sequence[str]) -> None:
        self._port = port
        self._models = list(models)
        self._idle: list[_Stream] = []
        self._known: dict[tuple[str, int], bytes] = {}
        self._fault: dict[str, Callable[[random.Random], Awaitable[tuple[str, bool]]]] = {
            "leaves at once": lambda chance: self._leaves(chance, 0.0),
            "leaves mid-run": lambda chance: self._leaves(chance, chance.uniform(0, 0.03)),
            "garbage body": lambda chance: self._refused(chance.randbytes(chance.randrange(1, 2000)), {"400", "422"}),
            "not HTTP": self._not_http,
            "unknown model": lambda chance: self._refused(_body(f"junk-{chance.random()}"), {"404"}),
            "wrong field": lambda chance: self._refused(_body(self._any(chance), tincation=chance.random()), {"422"}),
            "no time": self._no_time,
            "reads slowly": self._reads_slowly,
            "sends slowly": self._sends_slowly,
            "too large": lambda chance: self._too_large(chunked=False),
            "too large, in chunks": lambda chance: self._too_large(chunked=True),
            "opens and leaves": lambda chance: self._opens(b"", chance),
            "stops within the head": lambda chance: self._opens(b"POST /generate HTTP/1.1\r\nhost: x\r\nx-a", chance),
        }

    async def remember(self) -> None:
        """Draw the pictures that are asked for again later."""
        for model in self._models:
            for seed in range(KNOWN_SEEDS):
                status, body = await self._kept_alive("POST", "/generate", _body(model, seed=seed))
                if status != "200":
                    raise SystemExit(f"{model} does not draw: {status} {body[:300]!r}")
                self._known[model, seed] = body

    async def send(self, kind: str, chance: random.Random) -> tuple[str, bool]:
        """One request of a kind: how it ended, and whether it may end so."""
        work = self._fault[kind](chance) if kind in self._fault else self._honest(kind, chance)
        try:
            return await asyncio.wait_for(work, PATIENCE_S)
        except TimeoutError:
            return STUCK, False
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            return CUT, False

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    def _any(self, chance: random.Random) -> str:
        return chance.choice(self._models)

    async def _honest(self, kind: str, chance: random.Random) -> tuple[str, bool]:
        model, seed, fmt = self._any(chance), chance.randrange(2**31), chance.choice(("png", "png", "jpeg", "webp"))
        if kind == "known picture":
            seed = chance.randrange(KNOWN_SEEDS)
            status, body = await self._kept_alive("POST", "/generate", _body(model, seed=seed))
            if status == "200" and body != self._known[model, seed]:
                return OTHER, False
            return status, status in SERVED
        if kind == "by URL":
            path = f"/generate?model={model}&seed={seed % 1000}&format={fmt}"
            status, _ = await self._kept_alive("GET", path)
        elif kind == "pages":
            status, _ = await self._kept_alive("GET", chance.choice(_PAGES))
        else:
            asked: dict[str, object] = {"seed": seed, "format": fmt}
            if kind == "several":
                asked = {"seeds": f"{seed}-{seed + chance.randrange(1, 12)}", "as": chance.choice(("zip", "json"))}
            elif kind == "grid":
                asked = {"seeds": f"{seed}-{seed + chance.randrange(1, 20)}", "as": "grid", "format": fmt}
            status, _ = await self._kept_alive("POST", "/generate", _body(model, **asked))
        return status, status in SERVED

    async def _kept_alive(self, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[str, bytes]:
        while self._idle:
            stream = self._idle.pop()
            if not stream[0].at_eof() and not stream[1].is_closing():
                break
            stream[1].close()
        else:
            stream = await self._open()
        try:
            stream[1].write(_request(method, path, body, headers))
            status, answer, lasts = await _answer(stream[0])
        except BaseException:
            stream[1].close()
            raise
        if lasts:
            self._idle.append(stream)
        else:
            stream[1].close()
        return status, answer

    async def _open(self) -> _Stream:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _refused(self, body: bytes, expected: set[str]) -> tuple[str, bool]:
        status, _ = await self._kept_alive("POST", "/generate", body)
        return status, status in expected

    async def _leaves(self, chance: random.Random, after_s: float) -> tuple[str, bool]:
        _, writer = await self._open()
        seed = chance.randrange(2**31)
        writer.write(
            _request("POST", "/generate", _body(self._any(chance), seeds=f"{seed}-{seed + 7}", **{"as": "zip"}))
        )
        with suppress(OSError):
            await writer.drain()
        await asyncio.sleep(after_s)
        writer.transport.abort()
        return "left", True

    async def _not_http(self, chance: random.Random) -> tuple[str, bool]:
        reader, writer = await self._open()
        writer.write(chance.randbytes(200) + b"\r\n\r\n")
        try:
            status, _, _ = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            status = "400"  # closed without a word: as good an answer to what is no request
        writer.close()
        return status, status in {"400", "431"}

    async def _no_time(self, chance: random.Random) -> tuple[str, bool]:
        header = f"x-request-timeout-ms: {chance.choice((1, 2, 5, 10))}\r\n"
        body = _body(self._any(chance), seed=chance.randrange(2**31))
        status, _ = await self._kept_alive("POST", "/generate", body, header)
        return status, status in SERVED

    async def _reads_slowly(self, chance: random.Random) -> tuple[str, bool]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=4096)
        seed = chance.randrange(2**31)
        writer.write(
            _request("POST", "/generate", _body(self._any(chance), seeds=f"{seed}-{seed + 47}", **{"as": "zip"}))
        )
        head = await reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        left = int(found[1]) if found else 0
        pause_s = chance.uniform(1, 10) / max(1, left / 2048)
        while left:
            left -= len(await reader.readexactly(min(left, 2048)))
            await asyncio.sleep(pause_s)
        writer.close()
        status = head.split(b" ", 2)[1].decode()
        return status, status in SERVED

    async def _sends_slowly(self, chance: random.Random) -> tuple[str, bool]:
        reader, writer = await self._open()
        request = _request("POST", "/generate", _body(self._any(chance), seed=chance.randrange(2**31)))
        pause_s = chance.uniform(1, 10) / (len(request) / 16)
        for start in range(0, len(request), 16):
            writer.write(request[start : start + 16])
            await asyncio.sleep(pause_s)
        status, _, _ = await _answer(reader)
        writer.close()
        return status, status in SERVED

    async def _too_large(self, *, chunked: bool) -> tuple[str, bool]:
        reader, writer = await self._open()
        size = 1 << 30
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
        writer.write(
            f"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{framing}\r\n\r\n".encode()
        )
        answering = asyncio.create_task(_answer(reader))
        piece = b" " * 65536
        with suppress(OSError):
            for _ in range(size // len(piece)):
                if answering.done():
                    break
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
        try:
            status, _, _ = await answering
        except (OSError, asyncio.IncompleteReadError):
            status = CUT  # closed on what was still being sent, which can take the answer with it: RFC 9112, 9.6
        finally:
            writer.transport.abort()
        return status, status in {"413", CUT}

    async def _opens(self, said: bytes, chance: random.Random) -> tuple[str, bool]:
        _, writer = await self._open()
        writer.write(said)
        await asyncio.sleep(chance.uniform(0, IDLE_MOST_S))
        writer.close()
        return "left", True


async def scraped(port: int) -> dict[str, float]:
    """The server's series by name and labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request("GET", "/metrics", b"", "connection: close\r\n"))
    _, body, _ = await asyncio.wait_for(_answer(reader), PATIENCE_S)
    writer.close()
    lines = (line.rpartition(" ") for line in body.decode().splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def _body(model: str, **asked: object) -> bytes:
    return json.dumps({"model": model, **asked}).encode()


def _request(method: str, path: str, body: bytes, headers: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}"
    if method == "POST":
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


async def _answer(reader: asyncio.StreamReader) -> tuple[str, bytes, bool]:
    """Status, body, and whether the connection goes on."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = _LENGTH.search(head)
    body = await reader.readexactly(int(found[1])) if found else b""
    return head.split(b" ", 2)[1].decode(), body, b"connection: close" not in head.lower()
