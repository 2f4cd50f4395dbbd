"""The benchmarks behind the balancer: the shipped configuration on this machine's ports, and their tables."""

import argparse
import subprocess

import pytest

from benchmarks.balanced import CONFIGURATION, localised
from benchmarks.failover import BLOWS, COLUMNS, Seen, table
from benchmarks.scaling import CLIENTS_PER_LANE, Case, report

REPORT = {
    "ends": {"200": 98, "503": 1, "no answer": 1},
    "p50_ms": 1.4,
    "p99_ms": 9.6,
    "p999_ms": 250.2,
    "max_ms": 260.0,
}


def test_only_ports_and_servers_of_the_shipped_configuration_change():
    shipped = CONFIGURATION.read_text()
    text = localised(shipped, [8001, 8002], 9000, 9001)
    changed = set(text.splitlines()) - set(shipped.splitlines())
    assert changed == {
        "  server replica0 127.0.0.1:8001 check",
        "  server replica1 127.0.0.1:8002 check",
        "  server replica0 127.0.0.1:8001",
        "  server replica1 127.0.0.1:8002",
        "  bind 127.0.0.1:9000",
        "  bind 127.0.0.1:9001",
    }
    assert len(text.splitlines()) == len(shipped.splitlines()) + 2


def test_a_configuration_that_has_moved_on_is_noticed():
    with pytest.raises(ValueError, match="0 lines match"):
        localised("backend replicas\n", [8001], 9000, 9001)


def test_every_end_but_200_is_a_failure():
    seen = Seen(2, "kill -9", 5, REPORT, resent=7)
    assert seen.failed == 2
    assert seen.row() == ["2", "kill -9", "5", "100", "2", "7", "1", "10", "250", "260"]
    lines = table([seen]).splitlines()
    assert len(lines) == 3 and all(line.count("|") == len(COLUMNS) + 1 for line in lines)


def test_the_ways_to_lose_a_replica():
    assert list(BLOWS) == ["kill -9", "SIGSTOP", "SIGSTOP of all", "rolling restart"]


def test_scaling_is_told_against_its_goal():
    cases = [Case("one", 1, 1, 0.7), Case("two", 2, 1, 0.7)]
    assert [case.clients for case in cases] == [CLIENTS_PER_LANE, 2 * CLIENTS_PER_LANE]
    for case, rates in zip(cases, ([90.0, 100.0, 300.0], [185.0, 20.0, 190.0]), strict=True):
        case.rates, case.p50_ms, case.p99_ms = rates, [1.0] * 3, [2.0] * 3
    text = report(cases, argparse.Namespace(model="m", rounds=3, seconds=1.0))
    assert "1.85 times as many as one; goal 1.8: met" in text
    cases[1].rates = [170.0] * 3
    assert "NOT met" in report(cases, argparse.Namespace(model="m", rounds=3, seconds=1.0))


@pytest.mark.promtool
def test_haproxy_reads_the_configuration():
    """As shipped, and with what the environment may set; without a warning."""
    for environment in ({}, {"DEADLINE_MS": "3000"}):
        done = subprocess.run(
            ["haproxy", "-c", "-f", str(CONFIGURATION)], env={"PATH": "/usr/sbin:/usr/bin:/bin", **environment},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
