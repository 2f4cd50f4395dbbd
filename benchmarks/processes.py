"""A server under test: started on a free port, its whole family of processes counted, and ended to the last one."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
MARK = "BENCHMARK_FAMILY"
"""An environment variable that the family inherits: finds those whose parent has gone."""
READY_S = 300.0


class NotReady(Exception):
    """The server ended or did not answer in time; the message holds the end of what it printed."""


class Family:
    """A process, everything that descends from it, and what it printed. Linux: read from /proc."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self._mark = f"{MARK}={secrets.token_hex(8)}"
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        name, _, value = self._mark.partition("=")
        self.root = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment, name: value}, stdout=self._output,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self._spent_s: dict[tuple[int, str], float] = {}  # (pid, start time) -> CPU time when last seen

    def cpu_s(self) -> float:
        """User and system time of all of them so far, of those too that have ended since they were last seen."""
        self._look()
        return sum(self._spent_s.values())

    def memory_bytes(self) -> int:
        """Their memory, pages that several share being divided among them (PSS)."""
        self._look()
        total = 0
        for pid, _ in self._spent_s:
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        return total

    def printed(self, most: int = 1500) -> str:
        """The end of what they printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")[-most:]

    def stop(self) -> None:
        """Ask the first one to end, wait, then end every one that is left."""
        self._look()
        self.root.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.root.wait(10)
        self._look()
        alive = {pid: start for pid, (_, start, _) in _processes().items()}
        for pid, start in self._spent_s:
            if alive.get(pid) == start:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.root.wait(10)
        self._output.close()

    def _look(self) -> None:
        found = _processes()
        known = {pid for pid, start in self._spent_s if pid in found and found[pid][1] == start}
        family = known | {self.root.pid} | {pid for pid in found if pid not in known and self._marked(pid)}
        grown = True
        while grown:
            children = {pid for pid, (parent, _, _) in found.items() if parent in family} - family
            family |= children
            grown = bool(children)
        for pid in family & found.keys():
            _, start, spent_s = found[pid]
            self._spent_s[pid, start] = spent_s

    def _marked(self, pid: int) -> bool:
        try:
            return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # ended, or another user's
            return False


def _processes() -> dict[int, tuple[int, str, float]]:
    """Every process: its parent, its start time and its CPU time in seconds. Field numbers: proc_pid_stat(5)."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found[int(entry.name)] = (int(fields[1]), fields[19], (int(fields[11]) + int(fields[12])) * TICKS_S)
    return found


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def picture(port: int, model: str, seed: int) -> bytes:
    """One picture's file.

    Raises:
        OSError: no answer, or one that is not 200.
    """
    return generated(port, json.dumps({"model": model, "seed": seed}).encode())


def generated(port: int, body: bytes) -> bytes:
    """What `POST /generate` answers to a JSON body.

    Raises:
        OSError: no answer, or one that is not 200.
    """
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/generate", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        data: bytes = answer.read()
        return data


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, port: int, models: Sequence[str]
) -> Iterator[Family]:
    """The server while the block runs, entered when it draws every one of the models and loads no more of them.

    Raises:
        NotReady: it ended, or it did not draw within READY_S.
    """
    family = Family(command, environment, folder)
    try:
        end = time.perf_counter() + READY_S
        waited_for = [(f"draw {model}", partial(_draws, port, model)) for model in models]
        for what, done in [*waited_for, ("become ready", partial(_ready, port))]:
            while not done():
                ended = family.root.poll()
                if ended is not None or time.perf_counter() > end:
                    why = f"did not {what} in {READY_S:g} s" if ended is None else f"ended with status {ended}"
                    raise NotReady(f"{why}: {family.printed()}")
                time.sleep(0.1)
        yield family
    finally:
        family.stop()


def _draws(port: int, model: str) -> bool:
    try:
        return bool(picture(port, model, 0))
    except (OSError, urllib.error.URLError):
        return False


def _ready(port: int) -> bool:
    """Whether the server says that it is ready, or has no such endpoint. One that loads and measures further models
    takes a whole core for it."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False


def ganymede(models: Path, port: int, *flags: str) -> list[str]:
    """The command of our own server in the repository's folder, as a user would run it but for the access log."""
    serve = [sys.executable, "-m", "service", "serve", "--models", str(models), "--port", str(port)]
    return [*serve, "--no-access-log", "--drain-delay-s", "0", *flags]
