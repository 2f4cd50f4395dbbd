"""The profile `scale`, really started: containers killed, frozen and made anew behind the balancer, under load."""

import io
import json
import math
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from composed import ROOT, Project, asked, composed, fetched, run, until
from dashboards import dashboards
from PIL import Image
from uploads import saved

REPLICAS = 2
ROUNDS = 5  # a tenth of what benchmarks/failover.py does
RATE = 20
UP = ("--scale", f"replica={REPLICAS - 1}", "service", "replica", "balancer", "prometheus")
FROZEN_S = 7.0  # longer than the balancer's deadline of 5 s and the second beyond it

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which nobody else may enter: containers run as others
        Path(folder).chmod(0o755)
        with composed(Project("ganymede-scale", mounts(Path(folder))), UP, ["--profile", "scale"]) as project:
            whole(project)
            yield project


def mounts(folder: Path) -> dict[str, str]:
    """Models and a certificate that containers may read, as docker-compose.yml wants them told."""
    models, certificates = folder / "models", folder / "certificates"
    for name in ("fashion-28", "photo-x2"):  # few, so that a start takes seconds though nothing is cached
        shutil.copytree(ROOT / "models" / name, models / name)
    certificates.mkdir()
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject,
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=certificates, check=True, capture_output=True,
    )  # fmt: skip
    parts = [(certificates / name).read_text() for name in ("cert.pem", "key.pem")]
    (certificates / "site.pem").write_text("".join(parts))
    return {"MODELS": str(models), "CERTIFICATES": str(certificates), "TLS_CERT": "/certificates/site.pem"}


def replicas(project: Project) -> list[str]:
    return [*project.containers("service"), *project.containers("replica")]


def whole(project: Project) -> None:
    """Return when every replica passes the balancer's checks."""
    (balancer,) = project.containers("balancer")
    address = project.address(balancer)

    def seen() -> bool | None:
        page = fetched(f"http://{address}:8404/metrics")
        wanted = f'haproxy_backend_active_servers{{proxy="replicas"}} {REPLICAS}'
        up = page is not None and wanted in page.text.splitlines()
        return True if up and all(map(ready, replicas(project))) else None

    def ready(container: str) -> bool:
        """Asked itself: the balancer takes a container for up whose name it has just found, until its first check."""
        probe = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"
        return not subprocess.run(["docker", "exec", container, "python", "-c", probe], capture_output=True).returncode

    until("every replica in balance", 90, seen)


@contextmanager
def under_load(project: Project) -> Iterator[dict[str, Any]]:
    """`python -m service bench` against the balancer while the block runs; the report is filled in at its end."""
    bench = [sys.executable, "-m", "service", "bench", "--url", project.url("BALANCER_PORT"), "--model", "fashion-28"]
    command = [*bench, "--rate", str(RATE), "--seconds", "3600", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    report: dict[str, Any] = {}
    try:
        time.sleep(2)
        yield report
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        report |= json.loads(process.communicate(timeout=60)[0])
        print({key: report[key] for key in ("requests", "ends", "p50_ms", "p99_ms", "max_ms")})
    finally:
        process.kill()
        process.wait()


def test_the_balancer_spreads_requests_and_hides_what_is_inside(project: Project) -> None:
    prometheus = project.url("PROMETHEUS_PORT")
    with under_load(project) as report:
        time.sleep(12)
    assert set(report["ends"]) == {"200"}

    def each() -> list[float] | None:
        found = asked(prometheus, "sum by (instance) (ganymede_images_total)")
        return found if len(found) == REPLICAS else None

    by_replica = until("images of every replica", 30, each)
    print("images by replica, as Prometheus counts them:", by_replica)
    assert min(by_replica) > max(by_replica) / 3
    assert httpx.get(f"{project.url('BALANCER_PORT')}/metrics", timeout=5).status_code == 404


def test_what_is_too_large_to_be_sent_again_passes_too(project: Project) -> None:
    photo = saved(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8), "PNG")
    assert len(photo) > 65536, "the balancer's buffer"
    url = f"{project.url('BALANCER_PORT')}/upscale"
    answer = httpx.post(url, files={"image": photo}, data={"model": "photo-x2"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).size == (400, 400)


def test_it_speaks_tls(project: Project) -> None:
    certificate = Path(project.environment["CERTIFICATES"]) / "cert.pem"
    port = project.environment["BALANCER_TLS_PORT"]
    answer = httpx.get(f"https://localhost:{port}/readyz", verify=ssl.create_default_context(cafile=certificate))
    assert answer.json()["state"] == "ready"


def test_every_panel_has_data(project: Project) -> None:
    """As tests/deploy/test_panels.py, but found by name and in the compose file's own Prometheus."""
    prometheus = project.url("PROMETHEUS_PORT")
    queries = [(title, query) for board in dashboards().values() for title, query in board.queries()]
    with under_load(project):
        httpx.post(f"{project.url('BALANCER_PORT')}/generate", json={"model": "none"}, timeout=5)
        time.sleep(6)
        httpx.post(f"{project.url('BALANCER_PORT')}/generate", json={"model": "none"}, timeout=5)
        time.sleep(11)
        dead = [title for title, query in queries if not any(map(math.isfinite, asked(prometheus, query)))]
    print(f"{len(queries)} queries, of which without data: {dead or 'none'}")
    assert not dead


def test_a_container_that_is_killed_costs_no_request(project: Project) -> None:
    with under_load(project) as report:
        for number in range(ROUNDS):
            victim = replicas(project)[number % REPLICAS]
            run("docker", "kill", "--signal", "KILL", victim)
            time.sleep(1)
            run("docker", "start", victim)
            whole(project)
    assert set(report["ends"]) == {"200"}


def test_a_container_that_freezes_costs_no_request(project: Project) -> None:
    with under_load(project) as report:
        for number in range(ROUNDS):
            victim = replicas(project)[number % REPLICAS]
            run("docker", "pause", victim)
            time.sleep(FROZEN_S)
            run("docker", "unpause", victim)
            whole(project)
    assert set(report["ends"]) == {"200"}


def test_a_rolling_restart_costs_no_request(project: Project) -> None:
    before = replicas(project)
    with under_load(project) as report:
        for _ in range(ROUNDS):
            print(run("deploy/roll", env={**project.environment, "COMPOSE": " ".join(project.command)}))
            whole(project)
    assert set(report["ends"]) == {"200"}
    assert not set(before) & set(replicas(project)), "made anew"
