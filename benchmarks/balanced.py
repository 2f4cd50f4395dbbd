"""Real replicas behind a real HAProxy with the shipped configuration, on this machine and without containers."""

import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from benchmarks.processes import NotReady, free_port, ganymede

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
READY_S = 60.0
LOOK_S = 0.05


class Replica:
    """One server on a port of its own, to be ended and begun again at will.

    Args:
        environment: further variables, such as the folder of measured plans, which makes for quick starts.
        flags: of `serve`.
        group: a control group's `cgroup.procs` files, which the process enters before it begins.
    """

    def __init__(
        self, models: Path, environment: Mapping[str, str], flags: Sequence[str] = (), group: Sequence[Path] = ()
    ) -> None:
        self.port = free_port()
        # As a user would run it behind a balancer: with the drain delay, unlike `ganymede`, whose last flag wins.
        self._command = [*ganymede(models, self.port), "--drain-delay-s", "2", *flags]
        self._environment, self._group = dict(environment), list(group)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, without waiting."""
        enter = "".join(f"echo $$ > {path} && " for path in self._group)
        command = ["sh", "-c", f'{enter}exec "$@"', "sh", *self._command]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **self._environment}, stdout=self._output,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit status, when it has ended."""
        assert self._process is not None
        return self._process.wait(seconds)

    def wait_ready(self) -> None:
        """Return when `/readyz` answers 200.

        Raises:
            NotReady: not within READY_S.
        """
        end = time.perf_counter() + READY_S
        while not answers(f"http://127.0.0.1:{self.port}/readyz"):
            if time.perf_counter() > end or (self._process and self._process.poll() is not None):
                self._output.seek(0)
                raise NotReady(self._output.read().decode(errors="replace")[-1500:])
            time.sleep(LOOK_S)

    def end(self) -> None:
        """Kill what is left."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # a stopped process, too
            self._process.wait(10)
        self._output.close()


class Balancer:
    """HAProxy with the shipped configuration, but for ports and for server lines in place of Docker's name server."""

    def __init__(self, ports: Sequence[int], folder: Path, environment: Mapping[str, str] = {}) -> None:
        self.port, self.own_port = free_port(), free_port()
        written = folder / "haproxy.cfg"
        written.write_text(localised(CONFIGURATION.read_text(), ports, self.port, self.own_port))
        self.log = folder / "haproxy.log"
        self._output = self.log.open("wb")
        self._process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(written)], stdout=self._output, stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def series(self) -> dict[str, float]:
        """What it tells Prometheus, by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.own_port}/metrics", timeout=5) as answer:
            lines = (line.rpartition(" ") for line in answer.read().decode().splitlines() if line[:1] != "#")
            return {name: float(value) for name, _, value in lines if name}

    def wait_up(self, replicas: int) -> None:
        """Return when so many replicas pass its checks.

        Raises:
            NotReady: not within READY_S.
        """
        end = time.perf_counter() + READY_S
        name = 'haproxy_backend_active_servers{proxy="replicas"}'
        while not answers(f"http://127.0.0.1:{self.own_port}/healthz") or self.series()[name] != replicas:
            if time.perf_counter() > end or self._process.poll() is not None:
                raise NotReady(f"the balancer does not see {replicas} replicas")
            time.sleep(LOOK_S)

    def spent_cpu_s(self) -> float:
        """Its CPU time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> "Balancer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._output.close()


def localised(text: str, replicas: Sequence[int], port: int, own_port: int) -> str:
    """The shipped configuration for replicas on ports of this machine.

    Args:
        text: the configuration.
        replicas: their ports.
        port: the balancer's own, for everybody.
        own_port: its port for Prometheus.
    """
    checked, unchecked = (
        "\n".join(f"  server replica{n} 127.0.0.1:{own}{check}" for n, own in enumerate(replicas))
        for check in (" check", "")
    )
    for pattern, line in (
        (r"^  server-template .* check .*$", checked),
        (r"^  server-template .*$", unchecked),
        (r"^  bind :8080$", f"  bind 127.0.0.1:{port}"),
        (r"^  bind :8404$", f"  bind 127.0.0.1:{own_port}"),
    ):
        text, changes = re.subn(pattern, line, text, flags=re.MULTILINE)
        if changes != 1:
            raise ValueError(f"{CONFIGURATION}: {changes} lines match {pattern}")
    return text


def answers(url: str) -> bool:
    """Whether a GET is answered with 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def balanced(replicas: Sequence[Replica]) -> Iterator[Balancer]:
    """Start replicas and the balancer before them; entered when it sees all of them, ended to the last process."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for replica in replicas:
                replica.start()
                replica.wait_ready()  # one after the other: the first measures the plans, the others find them cached
            with Balancer([replica.port for replica in replicas], Path(folder)) as balancer:
                balancer.wait_up(len(replicas))
                yield balancer
        finally:
            for replica in replicas:
                replica.end()
