"""Bulk generation on two Ray nodes of this machine, one of which is killed at work. `make test-ray`."""

import tarfile
from pathlib import Path

import pytest
from cluster.nodes import lose

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    ray.init(address=both.address, log_to_driver=False)
    yield both
    ray.shutdown()
    both.shutdown()


def test_shards_are_whole_though_a_node_is_killed(cluster, tmp_path):
    from deploy.ray_bulk import lean, missing, run, shards_of
    from service.settings import Settings

    second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    shards = shards_of("digits-28@1", 0, 12_000, 500)
    done = []
    for name in run(shards, tmp_path, lean(Settings(models=ROOT / "models"), cpus=1), cpus=1, gpus=0.0):
        done.append(name)
        if len(done) == 4:
            assert any(name.startswith("ray::task") for name in lose(cluster, second))
    assert sorted(done) == [shard.name for shard in shards]
    assert not missing(shards, tmp_path)
    for shard in shards:
        with tarfile.open(tmp_path / shard.name) as tar:
            assert len(tar.getnames()) == 2 * (shard.end - shard.first)
