"""The composed service, really built and started: `make test-docker`. All tests talk to the same running containers."""

import io
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from composed import ROOT, Project, asked, composed, fetched, has_grafana, looked, run, until
from PIL import Image

SNEAKER = {"model": "fashion-28", "label": "Sneaker", "seed": 7}

pytestmark = pytest.mark.docker


@dataclass(frozen=True)
class Stack:
    """The running containers: where they answer, and the service container's id."""

    project: Project
    service: str
    prometheus: str
    container: str

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", "exec", self.container, *command], capture_output=True, text=True)

    def state(self) -> dict[str, Any]:
        command = ["docker", "inspect", "--format", "{{json .State}}", self.container]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    services = ["service", "prometheus", *(["grafana"] if has_grafana() else [])]
    with composed(Project("ganymede-test", {}), services) as project:
        (container,) = project.containers("service")
        yield Stack(project, project.url("SERVICE_PORT"), project.url("PROMETHEUS_PORT"), container)


def test_answers_with_the_picture_that_was_asked_for(stack: Stack) -> None:
    first, again = (httpx.post(f"{stack.service}/generate", json=SNEAKER, timeout=30) for _ in range(2))
    print(first.status_code, first.headers["content-type"], first.headers["x-model"], f"{len(first.content)} bytes")
    assert first.status_code == 200, first.text
    assert first.headers["content-type"] == "image/png"
    assert first.headers["x-seed"] == "7"
    assert first.headers["x-model"].startswith("fashion-28@")
    picture = Image.open(io.BytesIO(first.content))
    assert picture.size == (28, 28)
    assert picture.convert("L").getextrema()[1] > 128, "all dark: no garment to see"
    assert again.content == first.content


def test_docker_calls_it_healthy(stack: Stack) -> None:
    def health() -> str | None:
        status = stack.state()["Health"]["Status"]
        return None if status == "starting" else str(status)

    assert until("a verdict of the health check", 60, health) == "healthy"


def test_runs_without_root_and_cannot_write(stack: Stack) -> None:
    identity = stack.inside("id")
    print(identity.stdout.strip())
    assert identity.stdout.startswith("uid=10001(ganymede) gid=10001(ganymede)")
    for place in ("/app/service/new", "/models/new", "/opt/ganymede/new"):
        refused = stack.inside("python", "-c", f"open({place!r}, 'w')")
        assert "Read-only file system" in refused.stderr, place
    assert stack.inside("python", "-c", "import tempfile; tempfile.TemporaryFile()").returncode == 0


def test_holds_nothing_of_training(stack: Stack) -> None:
    for module in ("torch", "training", "onnx", "pip"):
        missing = stack.inside("python", "-c", f"import {module}")
        print(missing.stderr.strip().splitlines()[-1:])
        assert f"No module named '{module}'" in missing.stderr
    assert stack.inside("python", "-c", "import service.__main__").returncode == 0


def test_models_in_the_image_are_the_ones_in_the_repository(stack: Stack) -> None:
    image = run("docker", "inspect", "--format", "{{.Image}}", stack.container)
    baked = run("docker", "run", "--rm", "--network=none", image, "sh", "-c", "cd /models && ls -d */*/").split()
    shipped = sorted(f"{path.parent.relative_to(ROOT / 'models')}/" for path in ROOT.glob("models/*/*/manifest.json"))
    assert sorted(baked) == shipped


def test_prometheus_scrapes_it(stack: Stack) -> None:
    def up() -> dict[str, Any] | None:
        answer = fetched(f"{stack.prometheus}/api/v1/targets")
        targets = answer.json()["data"]["activeTargets"] if answer else []
        ours = [target for target in targets if target["labels"]["job"] == "ganymede"]
        return ours[0] if ours and ours[0]["health"] == "up" else None

    target = until("Prometheus' target up", 60, up)
    print({key: target[key] for key in ("scrapeUrl", "health", "lastError")})
    address = stack.project.address(stack.container)
    assert target["scrapeUrl"] == f"http://{address}:8000/metrics"

    query = "sum(ganymede_images_total{model=~'fashion-28@.*'})"
    (drawn,) = until(
        "the images that were asked for, in Prometheus", 30, lambda: asked(stack.prometheus, query) or None
    )
    print(f"images, as Prometheus counts them: {drawn:g}")
    assert drawn >= 2


def test_prometheus_is_healthy_and_has_read_the_rules(stack: Stack) -> None:
    (container,) = stack.project.containers("prometheus")

    def healthy() -> bool | None:
        return looked("docker", "inspect", "--format", "{{.State.Health.Status}}", container) == "healthy" or None

    until("a good verdict of the health check", 60, healthy, every_s=3)
    groups = httpx.get(f"{stack.prometheus}/api/v1/rules", timeout=5).json()["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert sum(len(group["rules"]) for group in groups) > 10


def test_grafana_shows_the_dashboards(stack: Stack) -> None:
    """Where its image can be had; elsewhere tests/deploy holds its files and queries against what it would read."""
    if not has_grafana():
        print("Grafana was NOT started: its image is not here and could not be pulled.")
        return
    grafana = stack.project.url("GRAFANA_PORT")
    until("Grafana's health", 90, lambda: fetched(f"{grafana}/api/health"))
    found = until("the dashboards", 60, lambda: fetched(f"{grafana}/api/search?type=dash-db"))
    assert {"ganymede-service", "ganymede-balancer"} <= {board["uid"] for board in found.json()}
    query = {"refId": "A", "datasource": {"uid": "ganymede-prometheus"}, "expr": "ganymede_build_info", "instant": True}
    asked_for = {"queries": [query], "from": "now-5m", "to": "now"}
    assert httpx.post(f"{grafana}/api/ds/query", json=asked_for, timeout=10).status_code == 200


def test_docker_stop_loses_no_request(stack: Stack) -> None:
    """Four clients draw on while the container is told to stop: what was asked before the port closed is answered."""
    stop_at = time.monotonic() + 1.0
    last_at = stop_at + 1.0  # within the drain delay of two seconds, in which readiness is off and the port still open

    def draw(client: int) -> list[tuple[float, int]]:
        """The moment of each answer, and its status."""
        answers = []
        with httpx.Client(base_url=stack.service, timeout=30) as http:
            for seed in range(client, 1_000_000, 4):
                body = {"model": "fashion-28", "label": "Sneaker", "seeds": f"{seed}-{seed + 31}", "as": "grid"}
                status = http.post("/generate", json=body).status_code
                answers.append((time.monotonic(), status))
                if time.monotonic() > last_at:
                    break
        return answers

    with ThreadPoolExecutor(5) as threads:
        clients = [threads.submit(draw, client) for client in range(4)]
        time.sleep(max(0.0, stop_at - time.monotonic()))
        stop = threads.submit(run, "docker", "stop", "-t", "40", stack.container)
        answers = [answer for client in clients for answer in client.result()]
        stop.result()
    after = sum(moment > stop_at for moment, _ in answers)
    state = stack.state()
    print(f"{len(answers)} requests, {after} of them answered after `docker stop`; exit code {state['ExitCode']}")
    assert {status for _, status in answers} == {200}
    assert after > 0
    assert state["ExitCode"] == 0, "killed, not drained"
