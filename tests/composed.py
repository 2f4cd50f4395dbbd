"""The composed service in tests: commands that are shown, containers waited for, a project that is taken down."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]
GRAFANA = "grafana/grafana-oss:12.1.1"
T = TypeVar("T")


def run(*command: str, env: Mapping[str, str] | None = None) -> str:
    """Show and run a command; where it fails, so does the test, with what it said."""
    print("\n$", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def looked(*command: str) -> str:
    """As `run`, for what is looked at time and again: without a word."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def until(what: str, seconds: float, look: Callable[[], T | None], every_s: float = 0.5) -> T:
    """Look time and again until there is something to see."""
    end = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(every_s)
    return found


def fetched(url: str) -> httpx.Response | None:
    """The answer to a GET if it is 200."""
    try:
        response = httpx.get(url, timeout=5)
    except httpx.TransportError:
        return None
    return response if response.status_code == 200 else None


def asked(prometheus: str, query: str) -> list[float]:
    """The values that Prometheus answers a query with."""
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=5).json()
    return [float(result["value"][1]) for result in answer["data"]["result"]]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def has_grafana() -> bool:
    """Whether Grafana's image is here: it has no stand-in."""
    return subprocess.run(["docker", "image", "inspect", GRAFANA], capture_output=True).returncode == 0


class Project:
    """One project of compose on ports of its own.

    Args:
        name: of the project.
        environment: what docker-compose.yml reads.
    """

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        self.command = [*(("docker", "compose") if plugin else ("docker-compose",)), "-p", name]
        ports = ("SERVICE_PORT", "BALANCER_PORT", "BALANCER_TLS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
        self.environment = {**environment, **{port: str(free_port()) for port in ports}}

    def __call__(self, *arguments: str) -> str:
        """A command of compose."""
        return run(*self.command, *arguments, env=self.environment)

    def url(self, port: str) -> str:
        """Where one of the ports answers."""
        return f"http://127.0.0.1:{self.environment[port]}"

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers."""
        name = ["--filter", f"label=com.docker.compose.project={self.command[-1]}"]
        return looked(
            "docker", "ps", "--quiet", *name, "--filter", f"label=com.docker.compose.service={service}"
        ).split()

    def address(self, container: str) -> str:
        """Its own, which this machine reaches where the engine runs on it."""
        return looked(
            "docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container
        )


@contextmanager
def composed(project: Project, up: Sequence[str], profile: Sequence[str] = ()) -> Iterator[Project]:
    """Build and start; whatever happens, take everything down.

    Args:
        up: arguments of `up -d`: options, and services where not all of them are to start.
        profile: options before it.
    """
    try:
        project(*profile, "build")
        project(*profile, "up", "-d", *up)
        try:
            until("/readyz answers 200", 120, lambda: fetched(f"{project.url('SERVICE_PORT')}/readyz"))
        except BaseException:
            print(project(*profile, "logs", "--no-color", "--tail", "40"))
            raise
        yield project
    finally:
        project("--profile", "scale", "down", "--volumes", "--remove-orphans")
