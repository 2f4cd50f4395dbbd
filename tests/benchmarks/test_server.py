"""The benchmark runs against a real server over tiny models and reports every model at every number of clients."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_model_has_its_bound_and_its_rows(tiny_models, tmp_path):
    out = tmp_path / "RESULTS.md"
    command = [sys.executable, "benchmarks/server.py", "--models", str(tiny_models), "--seconds", "0.3"]
    subprocess.run([*command, "--append", str(out)], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines() if "@" in line
    ]
    clients = ["bare loop", "1", "16", "64"]
    assert [row[:2] for row in rows] == [[ref, who] for ref in ("tiny-grey@1", "tiny-rgb@1") for who in clients]
    for row in rows:
        assert float(row[2]) > 0 and float(row[3]) > 0
        assert row[1] == "bare loop" or float(row[4]) <= float(row[5])
