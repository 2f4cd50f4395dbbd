"""The clients of `bodies.py`, in a process of their own: threads that wait for the kernel nearly all of the time.

python benchmarks/bodyclients.py '[PORT, "body.bmp", "model", SECONDS, UPLOADING, DRAWING]'
"""

import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

FILL = b'{"model":"tiny-rgb","count":64,"as":"zip"}'
UNDER_WAY = "under way"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_WAIT = re.compile(rb"\r\nretry-after-ms: (\d+)", re.IGNORECASE)


class Clients:
    """All of them.

    Args:
        body: the file that is uploaded.
        model: what it is sent to.
        seconds: how long they go on.
    """

    def __init__(self, port: int, body: Path, model: str, seconds: float) -> None:
        self.uploads: Counter[str] = Counter()
        self.draws: Counter[str] = Counter()
        self.sent_bytes = 0
        self._port, self._body, self._path = port, body, f"/translate?format=jpeg&model={model}"
        self._stop_s = time.monotonic() + seconds

    def run(self, uploading: int, drawing: int) -> None:
        """Until the end."""
        jobs = [self._upload] * uploading + [self._draw] * drawing
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _upload(self) -> None:
        size = self._body.stat().st_size
        head = request_head(self._path, "image/bmp", size)
        with self._body.open("rb") as file:

            def send(to: socket.socket) -> None:
                to.sendall(head)
                file.seek(0)
                while sent := to.sendfile(file, file.tell(), 1 << 20):
                    self.sent_bytes += sent

            self._again(send, self.uploads)

    def _draw(self) -> None:
        request = request_head("/generate", "application/json", len(FILL)) + FILL
        self._again(lambda to: to.sendall(request), self.draws)

    def _again(self, send: Callable[[socket.socket], None], told: Counter[str]) -> None:
        """One request after the other; who is told when to come again comes then."""
        buffer = bytearray(1 << 18)
        connection: socket.socket | None = None
        while (left_s := self._stop_s - time.monotonic()) > 0:
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", self._port))
            connection.settimeout(left_s)
            try:
                send(connection)
                status, wait_s, stays = answer(connection, buffer)
            except TimeoutError:
                status, wait_s, stays = UNDER_WAY, 0.0, False
            except OSError as error:
                status, wait_s, stays = type(error).__name__, 0.0, False
            told[status] += 1
            if not stays:
                connection.close()
                connection = None
            time.sleep(min(wait_s, max(0.0, self._stop_s - time.monotonic())))


def request_head(path: str, kind: str, length: int) -> bytes:
    """Up to the body; nobody gives up early."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "X-Request-Timeout-Ms: 600000", "", ""]).encode()


def answer(connection: socket.socket, buffer: bytearray) -> tuple[str, float, bool]:
    """Status, seconds to wait before the next try, and whether the connection stays. The body is passed over."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(1 << 16)
        if not piece:
            raise ConnectionResetError
        head += piece
    head, _, begun = head.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    left = int(length[1]) - len(begun) if length else 0
    while left > 0:
        taken = connection.recv_into(buffer, min(left, len(buffer)))
        if not taken:
            raise ConnectionResetError
        left -= taken
    wait = _WAIT.search(head)
    return head[9:12].decode(), int(wait[1]) / 1000 if wait else 0.0, b"connection: close" not in head.lower()


def main() -> None:
    """Send as told, and print what came of it."""
    port, body, model, seconds, uploading, drawing = json.loads(sys.argv[1])
    clients = Clients(port, Path(body), model, seconds)
    clients.run(uploading, drawing)
    found = {"uploads": clients.uploads, "draws": clients.draws, "mib": clients.sent_bytes / 2**20}
    print(json.dumps(found | {"cpu_s": time.process_time()}))


if __name__ == "__main__":
    main()
