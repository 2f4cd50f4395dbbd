"""Grafana's provisioning, without Grafana: files as it reads them, and every reference leads somewhere."""

import re
from pathlib import Path

import pytest
import yaml
from apiclient import client_of
from dashboards import FILES, FOLDER, Dashboard, Panel, dashboards
from fakeengine import FakeEngine, manifest

ROOT = Path(__file__).resolve().parents[2]
OURS = re.compile(r"\b(?:ganymede|process)[_:]\w+")  # those of HAProxy are tried on a real one: test_panels.py


@pytest.fixture(scope="module")
def boards() -> dict[str, Dashboard]:
    return dashboards()


def provisioned(folder: str) -> list[dict]:
    """Every file of a folder of the provisioning."""
    return [yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "provisioning" / folder).glob("*.yml"))]


def sources() -> list[dict]:
    return [source for file in provisioned("datasources") for source in file["datasources"]]


def test_files_are_as_grafana_reads_them(boards):
    assert {"service.json", "balancer.json"} <= set(boards)
    assert all(file["apiVersion"] == 1 for folder in ("datasources", "dashboards") for file in provisioned(folder))


def test_uids_and_titles_are_unique(boards):
    for field in ("uid", "title"):
        values = [getattr(board, field) for board in boards.values()]
        assert len(set(values)) == len(values)
    assert len({source["uid"] for source in sources()}) == len(sources())


def test_every_data_source_that_is_asked_is_provisioned(boards):
    there = {(source["type"], source["uid"]) for source in sources()}
    for name, board in boards.items():
        assert {(source.type, source.uid) for source in board.sources()} <= there, name


def test_the_data_source_is_the_prometheus_of_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (source,) = sources()
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services and source["isDefault"]
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]


def test_folders_are_mounted_where_they_are_looked_for():
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    inside = {target: ROOT / source for source, target in mounts.items()}
    assert inside["/etc/grafana/provisioning"] == FOLDER / "provisioning"
    for file in provisioned("dashboards"):
        for provider in file["providers"]:
            assert inside[provider["options"]["path"]] == FOLDER / "dashboards"
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (inside[str(home.parent)] / home.name).is_file()


@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_panels_do_not_overlap(boards, name):
    taken: dict[tuple[int, int], str] = {}
    for panel in boards[name].panels:
        place = panel.gridPos
        assert place.x + place.w <= 24, panel.title
        for cell in ((x, y) for x in range(place.x, place.x + place.w) for y in range(place.y, place.y + place.h)):
            assert cell not in taken, f"{panel.title} lies on {taken[cell]}"
            taken[cell] = panel.title
    ids = [panel.id for panel in boards[name].panels]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_legends_and_queries_of_a_panel_fit(boards, name):
    for panel in boards[name].shown():
        letters = [target.refId for target in panel.targets]
        assert letters == [chr(65 + number) for number in range(len(letters))], panel.title
        for target in panel.targets:
            for label in re.findall(r"{{(\w+)}}", target.legendFormat):
                kept = re.findall(r"by \(([^)]*)\)", target.expr)
                assert not kept or any(label in re.split(r",\s*", names) for names in kept), panel.title


async def test_queries_speak_of_series_that_exist(boards, tmp_path):
    async with client_of(FakeEngine(tmp_path, manifest("faces"))) as client:
        text = (await client.get("/metrics")).text
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    there |= {f"{name}_{part}" for name in there for part in ("bucket", "sum", "count")}
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    there |= {rule["record"] for group in rules for rule in group["rules"] if "record" in rule}
    for name, board in boards.items():
        for title, query in board.queries():
            spoken = set(OURS.findall(query))
            assert spoken <= there, (name, title, spoken - there)


def test_every_series_of_the_service_is_shown_somewhere(boards):
    """But for devices: without a GPU their panels would stay empty."""
    told = re.findall(r"^\| `(ganymede_\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    shown = " ".join(query for board in boards.values() for _, query in board.queries())
    left_out = {"ganymede_device_memory_used_bytes", "ganymede_device_memory_bytes", "ganymede_lanes_busy_ratio"}
    missing = {name for name in told if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", shown)}
    assert missing == left_out


def test_a_slip_is_found(boards):
    """The checks themselves: an unknown field, an unknown variable."""
    fields = boards["service.json"].model_dump(exclude_none=True)
    panel = next(panel for panel in fields["panels"] if panel["type"] == "stat")
    with pytest.raises(ValueError, match="targts"):
        Panel.model_validate(panel | {"targts": []})
    panel["targets"][0]["expr"] = 'up{instance=~"$replica"}'
    with pytest.raises(ValueError, match="does not have"):
        Dashboard.model_validate(fields).queries()
