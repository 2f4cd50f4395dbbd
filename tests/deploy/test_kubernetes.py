"""The manifests: as Kubernetes' own schemas want them, and in step with the service, the image and compose.

No cluster reads them here. KEDA's own kind is in no package of schemas: its fields are held against a list.
"""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from apiclient import client_of
from fakeengine import FakeEngine, manifest

from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
PORT = 8000
KEDA_FIELDS = {
    "scaleTargetRef",
    "minReplicaCount",
    "maxReplicaCount",
    "pollingInterval",
    "fallback",
    "advanced",
    "triggers",
}
"""Of a ScaledObject's spec in keda.sh/v1alpha1, those that we use."""
TRIGGER_FIELDS = {"type", "metricType", "metadata"}
PROMETHEUS_FIELDS = {"serverAddress", "query", "threshold", "ignoreNullValues"}


def read(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def gathered(folder: str) -> list[Path]:
    """The files that a kustomization names, those of its bases with them."""
    found = []
    for name in read(f"{folder}/kustomization.yaml")["resources"]:
        path = (FOLDER / folder / name).resolve()
        found += gathered(path.name) if path.is_dir() else [path]
    return found


@pytest.fixture(scope="module")
def pod() -> dict:
    return read("base/deployment.yaml")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod) -> dict:
    (only,) = pod["containers"]
    return only


@pytest.fixture(scope="module")
def scaled() -> dict:
    return read("keda/scaledobject.yaml")


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", ["deployment", "service", "disruption"])
def test_kubernetes_own_schemas_agree(name, version):
    kubernetes_validate.validate(read(f"base/{name}.yaml"), version, strict=True)


def test_the_schemas_would_find_a_misspelt_field():
    wrong = read("base/deployment.yaml")
    wrong["spec"]["template"]["spec"]["containers"][0]["startupprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_file_is_applied():
    files = {path.resolve() for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert set(gathered("keda")) == files
    assert {path.parent.name for path in gathered("base")} == {"base"}


def test_everything_means_the_same_replicas(scaled):
    deployment = read("base/deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert read("base/service.yaml")["spec"]["selector"].items() <= labels
    assert read("base/disruption.yaml")["spec"]["selector"]["matchLabels"].items() <= labels
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # applied again, it would undo what the autoscaler did


def test_the_image_is_the_one_that_is_built(container):
    (image,) = read("base/kustomization.yaml")["images"]
    assert image["name"] == container["image"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert f"{image['name']}:{image['newTag']}" == compose["services"]["service"]["image"]


def test_as_closed_as_compose(pod, container):
    replica = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["service"]
    closed = container["securityContext"]
    assert closed["readOnlyRootFilesystem"] is replica["read_only"] is True
    assert closed["allowPrivilegeEscalation"] is False
    assert closed["capabilities"]["drop"] == replica["cap_drop"] == ["ALL"]
    who = pod["securityContext"]
    assert f"{who['runAsUser']}:{who['runAsGroup']}" == replica["user"]
    assert who["runAsNonRoot"] is True
    assert who["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


def test_settings_exist_and_no_service_is_taken_for_one(pod, container):
    given = {item["name"]: item["value"] for item in container["env"]}
    Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in given.items()})
    # A Service called ganymede would set GANYMEDE_PORT to an address in every pod.
    assert pod["enableServiceLinks"] is False


def test_there_is_time_to_drain(pod, container):
    given = {item["name"]: float(item["value"]) for item in container["env"] if item["name"].endswith("_S")}
    _, pause_s = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > float(pause_s) + sum(given.values())


async def test_probes_ask_for_what_the_service_answers(tmp_path, container):
    (port,) = container["ports"]
    assert port["containerPort"] == PORT
    assert f"GANYMEDE_PORT={PORT}" in (ROOT / "Dockerfile").read_text()
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    told = read("base/deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert told["prometheus.io/port"] == str(PORT)
    async with client_of(FakeEngine(tmp_path, manifest("faces"))) as client:
        for path in {*(probe["path"] for probe in probes.values()), told["prometheus.io/path"]}:
            assert (await client.get(path)).status_code == 200


async def test_keda_scales_on_a_gauge_that_exists(tmp_path, scaled):
    (trigger,) = scaled["spec"]["triggers"]
    async with client_of(FakeEngine(tmp_path, manifest("faces"))) as client:
        assert "# TYPE ganymede_replicas_wanted gauge" in (await client.get("/metrics")).text
    assert trigger["metadata"]["query"] == "sum(ganymede_replicas_wanted)"
    # Wanted replicas over replicas wanted of each: docs/metrics.md.
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "1")


def test_kedas_fields(scaled):
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = scaled["spec"]
    assert set(spec) <= KEDA_FIELDS
    (trigger,) = spec["triggers"]
    assert set(trigger) <= TRIGGER_FIELDS
    assert set(trigger["metadata"]) <= PROMETHEUS_FIELDS
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA refuses numbers there
    assert 1 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]


def test_kedas_behaviour_is_what_kubernetes_autoscaler_takes(scaled):
    behaviour = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "ganymede"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ganymede"},
            "maxReplicas": 16,
            "behavior": behaviour,
        },
    }
    kubernetes_validate.validate(autoscaler, "1.37", strict=True)
