"""Every panel's query answered with data: a real Prometheus, two replicas under load, a real HAProxy before them."""

import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from dashboards import dashboards
from uploads import saved, smooth

from benchmarks.balanced import Replica, balanced
from benchmarks.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
QUERIES = [(name, title, query) for name, board in dashboards().items() for title, query in board.queries()]
LOAD_S = 8.0

pytestmark = [pytest.mark.promtool, pytest.mark.slow]


def scraping(folder: Path, replicas: list[int], balancer: int) -> Path:
    """The shipped configuration with targets of this machine in place of names, and a scrape a second."""
    told = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    told["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    ports = {"ganymede": replicas, "balancer": [balancer]}
    for job in told["scrape_configs"]:
        if job["job_name"] in ports:
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports[job["job_name"]]]}]
    told["scrape_configs"] = [job for job in told["scrape_configs"] if job["job_name"] in ports]
    shutil.copy(ROOT / "deploy/prometheus/alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(told))
    return folder / "prometheus.yml"


def draw(url: str) -> None:
    """Something of all that a dashboard shows, for LOAD_S: pictures, uploads, refusals, equal requests at once."""
    photo = saved(smooth(40, 40), "PNG")
    kinds: list[Callable[[httpx.Client, int], httpx.Response]] = [
        lambda http, n: http.post("/generate", json={"model": "fashion-28", "seed": n}),
        lambda http, n: http.post("/generate", json={"model": "faces-32", "seeds": f"{n}-{n + 7}", "as": "grid"}),
        lambda http, n: http.post("/generate", json={"model": "faces-32", "seed": n // 16}),  # equal ones at once
        lambda http, n: http.post("/upscale", files={"image": photo}, data={"model": "photo-x2"}),
        lambda http, n: http.post("/generate", json={"model": "no-such-model"}),
        lambda http, n: http.post("/generate", json={"model": "fashion-28", "seed": -1}),
    ]
    end = time.monotonic() + LOAD_S

    def client(first: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as http:
            number = first
            while time.monotonic() < end:
                kinds[number % len(kinds)](http, number)
                number += 1

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(client, 0) for _ in range(8)]:
            done.result()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, when it has seen the load."""
    folder = tmp_path_factory.mktemp("prometheus")
    replicas = [Replica(ROOT / "models", {}, ["--profile-s", "0"]) for _ in range(2)]
    with balanced(replicas) as balancer:
        configuration = scraping(folder, [replica.port for replica in replicas], balancer.own_port)
        port = free_port()
        command = ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            time.sleep(3.0)  # some scrapes before the load, so that its first requests are an increase
            draw(balancer.url)
            time.sleep(1.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize(("name", "title", "query"), QUERIES, ids=[f"{name}: {title}" for name, title, _ in QUERIES])
def test_a_panel_has_data(prometheus, name, title, query):
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=10).json()
    assert answer["status"] == "success", answer
    values = [float(result["value"][1]) for result in answer["data"]["result"]]
    assert any(math.isfinite(value) for value in values), f"{title}: nothing to show for {query}"


def test_the_load_is_seen(prometheus):
    """What was asked for is there to see, not only a line at zero."""
    for query in (
        "sum(ganymede_images_total)",
        "sum(ganymede_requests_coalesced_total)",
        'sum(ganymede_rejected_total{reason="invalid-request"})',
        'sum by (task) (ganymede_images_total{task="upscale"})',
        "sum(ganymede_replicas_wanted)",
        "sum(haproxy_server_http_responses_total)",
    ):
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=10).json()
        assert float(answer["data"]["result"][0]["value"][1]) > 0, query


def test_no_alert_is_broken(prometheus):
    groups = httpx.get(f"{prometheus}/api/v1/rules", timeout=10).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules and {rule["health"] for rule in rules} == {"ok"}
