"""The clients of the benchmark of large bodies against a server of their own; what the probe tells."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bodies import Probe
from benchmarks.bodyclients import UNDER_WAY, answer

ROOT = Path(__file__).resolve().parents[2]


def test_an_answer_is_read_to_its_end():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 429 Too Many\r\nContent-Length: 5\r\nRetry-After-Ms: 250\r\n\r\nhello")
        assert answer(ours, bytearray(2)) == ("429", 0.25, True)
        theirs.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: close\r\n\r\n")
        assert answer(ours, bytearray(2)) == ("200", 0.0, False)


async def test_clients_send_whole_bodies_and_say_what_came_of_them(tmp_path):
    body, got = tmp_path / "body.bmp", []
    body.write_bytes(bytes(range(256)) * 5000)

    async def serve(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            got.append((head[:14], await reader.readexactly(length)))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nretry-after-ms: 20\r\n\r\nok")

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22)
    plan = json.dumps([server.sockets[0].getsockname()[1], str(body), "tiny", 0.5, 2, 1])
    command = [sys.executable, str(ROOT / "benchmarks/bodyclients.py"), plan]
    told = json.loads((await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)).stdout)
    server.close()
    uploads = [sent for head, sent in got if head == b"POST /translat"]
    assert set(uploads) == {body.read_bytes()} and set(told["uploads"]) <= {"200", UNDER_WAY}
    assert told["uploads"]["200"] >= 2 and told["draws"]["200"] >= 1 and told["mib"] > 0


async def test_a_loop_that_is_held_up_is_late():
    probe = Probe()
    watching = asyncio.create_task(probe.watch())
    await asyncio.sleep(0.05)
    probe.told()
    await asyncio.sleep(0.02)

    time.sleep(0.2)  # noqa: ASYNC251  # what must be seen
    await asyncio.sleep(0.05)
    watching.cancel()
    told = probe.told()
    assert told["1.0"] >= 100 and told["0.5"] <= told["0.99"] <= told["1.0"] and probe.lags_s == []
