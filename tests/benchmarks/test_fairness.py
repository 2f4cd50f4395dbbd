"""The benchmark sends what it says, and reports each load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fairness import CLIENTS, LOADS, TIMES, keys, shares
from service.keys import Keyring, read_keys

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_asks_for_ten_times_its_share_of_the_same_total():
    fair, unfair = shares(False), shares(True)
    assert fair.sum() == pytest.approx(1) and unfair.sum() == pytest.approx(1)
    assert unfair[0] == pytest.approx(TIMES * fair[0]) and len(set(unfair[1:].round(9))) == 1
    ring = Keyring(read_keys(keys(), "keys"))
    assert [ring.find(b"key-%d" % number).name for number in range(CLIENTS)][-1] == f"client-{CLIENTS - 1}"


def test_every_load_is_reported(tmp_path):
    out = tmp_path / "out.md"
    command = [sys.executable, "benchmarks/fairness.py", "--seconds", "0.5", "--cpu-ms", "1", "--append", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()]
    told = [row[0] for row in rows if len(row) == 4]
    assert len([one for one in told if one.endswith("p99 unfair / fair")]) == 2 * len(LOADS)
    assert len(told) == 2 + 2 + 2 * len(LOADS) * 4
