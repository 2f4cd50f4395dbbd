"""The service on a cluster of two Ray nodes on this machine, one of which is killed under load. `make test-ray`."""

import asyncio
import http.client
import io
import json
import os
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cluster.nodes import lose
from PIL import Image

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
MODEL = "faces-32"
STARTS_S = 120.0


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a core each, so that each has one replica; the proxy and the controller are on the first."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from deploy.ray_app import Scale, application

    # The one proxy would otherwise ask the replica of its own node alone, and nobody would miss the other.
    os.environ["RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING"] = "0"
    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    second = both.add_node(num_cpus=1, object_store_memory=100 << 20)
    ray.init(address=both.address, log_to_driver=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(Scale(min_replicas=2, max_replicas=2), settings()), name="ganymede", route_prefix="/")
    yield SimpleNamespace(both=both, second=second, port=port)
    serve.shutdown()
    ray.shutdown()
    both.shutdown()


def settings():
    """Of every replica."""
    from service.settings import Settings

    return Settings(models=ROOT / "models", profile_s=0.0, log_level="warning", access_log=False)


def running() -> int:
    """Replicas that Ray counts as running."""
    from ray import serve

    (deployment,) = serve.status().applications["ganymede"].deployments.values()
    return deployment.replica_states.get("RUNNING", 0)


def ask(port: int, seed: int, count: int = 1) -> tuple[int, bytes]:
    """A picture of so many seeds from this one: large ones are at the replica for most of their time."""
    seeds = list(range(seed * 100, seed * 100 + count))
    return get(port, "/generate", json.dumps({"model": MODEL, "seeds": seeds, "as": "image" if count == 1 else "grid"}))


def get(port: int, target: str, body: str | None = None) -> tuple[int, bytes]:
    """Status and body, over a connection of its own; status 0 where the connection broke."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {} if body is None else {"content-type": "application/json"}
        connection.request("GET" if body is None else "POST", target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def patient(port: int, seed: int) -> tuple[list[int], bytes]:
    """The same, asked again until it is answered, up to five times: statuses seen, and the picture."""
    statuses = []
    for _ in range(5):
        status, picture = ask(port, seed, count=64)
        statuses.append(status)
        if status == 200:
            return statuses, picture
        time.sleep(0.2)
    return statuses, b""


def test_a_replica_on_each_node_serves(cluster):
    assert running() == 2
    status, picture = ask(cluster.port, 1)
    assert (status, picture[:4]) == (200, b"\x89PNG")
    started = {
        re.findall(rb"^process_start_time_seconds (\S+)", get(cluster.port, "/metrics")[1], re.M)[0] for _ in range(40)
    }
    assert len(started) == 2


def test_pictures_are_those_of_the_plain_server(cluster, tmp_path):
    from service.api.app import engine_of
    from service.settings import Settings

    async def drawn():
        async with engine_of(Settings(models=ROOT / "models", lanes=1, threads_per_lane=1, profile_s=0.0)) as engine:
            return (await engine.generate(MODEL, seeds=[500])).images[0]

    picture = np.asarray(Image.open(io.BytesIO(ask(cluster.port, 5)[1])))
    assert np.array_equal(picture, asyncio.run(drawn()).squeeze())


def test_errors_are_the_services_own(cluster):
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=30)
    connection.request("GET", "/models/nobody")
    answer = connection.getresponse()
    assert answer.status == 404
    assert json.loads(answer.read())["type"]


def test_nothing_that_is_asked_again_is_lost_with_a_node(cluster):
    before = {seed: ask(cluster.port, seed, count=64)[1] for seed in range(20)}
    killed = []

    def kill():
        time.sleep(3)
        killed.append(time.monotonic())
        assert any("ServeReplica" in name for name in lose(cluster.both, cluster.second))

    until = time.monotonic() + 15
    seen: Counter[int] = Counter()
    outcomes = []

    def client(first: int) -> None:
        seed = first
        while time.monotonic() < until:
            outcomes.append((seed % 20, *patient(cluster.port, seed % 20), time.monotonic()))
            seed += 4

    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(kill), *(pool.submit(client, first) for first in range(4))]
        for job in jobs:
            job.result()
    for _, statuses, _, _ in outcomes:
        seen.update(statuses)
    late = sum(ended > killed[0] for *_, ended in outcomes)
    again = sum(len(statuses) > 1 for _, statuses, _, _ in outcomes)
    print(f"\n{len(outcomes)} drawings, {late} after the kill; asked again: {again}; statuses: {dict(seen)}")
    assert late > 0
    assert all(picture == before[seed] for seed, _, picture, _ in outcomes)


def test_a_new_node_gets_a_replica(cluster):
    cluster.both.add_node(num_cpus=1, object_store_memory=100 << 20)
    until = time.monotonic() + STARTS_S
    while running() < 2 and time.monotonic() < until:
        time.sleep(1)
    assert running() == 2


def test_load_brings_a_second_replica_and_quiet_takes_it_away(cluster):
    from ray import serve

    from deploy.ray_app import Scale, application

    serve.delete("ganymede")
    scale = Scale(max_replicas=2, upscale_s=2, downscale_s=5)
    serve.run(application(scale, settings()), name="ganymede", route_prefix="/")
    assert running() == 1
    began = time.monotonic()
    loaded: Counter[int] = Counter()

    def client(seed: int) -> None:
        while running() < 2 and time.monotonic() < began + STARTS_S:
            loaded[ask(cluster.port, seed, count=64)[0]] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client, range(4)))
    assert running() == 2
    came = time.monotonic()
    # A client who still asks now and then notices nothing of the second one's going.
    trickled: Counter[int] = Counter()
    while running() > 1 and time.monotonic() < came + STARTS_S:
        trickled[ask(cluster.port, sum(trickled.values()))[0]] += 1
        time.sleep(0.5)
    assert running() == 1
    gone = time.monotonic()
    for seed in range(20):
        trickled[ask(cluster.port, seed)[0]] += 1
    print(f"\na second replica after {came - began:.0f} s of load: {dict(loaded)};", end=" ")
    print(f"gone {gone - came:.0f} s later: {dict(trickled)}")
    assert set(loaded) == set(trickled) == {200}


@pytest.mark.parametrize(
    ("told", "number"), [({}, 3), ({"a": 0.2, "b": 0.1}, 1), ({"a": 1.3, "b": 1.2}, 3), ({"a": 9}, 4)]
)
def test_the_policy_is_the_sum_within_bounds(told, number):
    from deploy.ray_app import WANTED, wanted

    context = SimpleNamespace(
        aggregated_metrics={WANTED: told},
        running_replicas=["a", "b"],
        target_num_replicas=3,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
    )
    assert wanted(context) == (number, {})
