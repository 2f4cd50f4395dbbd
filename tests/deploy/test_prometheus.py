"""The Prometheus configuration and its alert rules: they speak of series that exist, and each rule is tried."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from apiclient import client_of
from fakeengine import FakeEngine, manifest

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"


def rules() -> list[dict]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


async def test_rules_speak_of_series_that_exist(tmp_path):
    async with client_of(FakeEngine(tmp_path, manifest("faces"))) as client:
        text = (await client.get("/metrics")).text
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | {"up"}
    there |= {f"{name}_bucket" for name in there}
    for rule in rules():
        spoken = set(re.findall(r"\b(?:ganymede|process)_\w+", rule["expr"]))
        assert spoken <= there, rule["alert"]


def test_every_rule_is_tried_firing_and_not():
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    tried = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert tried == {rule["alert"] for rule in rules()}


def test_every_alert_has_a_runbook():
    told = re.findall(r"^### `(\w+)`$", (FOLDER.parents[1] / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(rule["alert"] for rule in rules())


def test_the_rules_are_read():
    assert yaml.safe_load((FOLDER / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]


@pytest.mark.promtool
@pytest.mark.parametrize("check", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_agrees(check):
    done = subprocess.run(["promtool", *check], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
