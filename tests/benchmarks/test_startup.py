"""The benchmark starts real servers and reports both folders with both plans."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_start_is_reported(tiny_models, tmp_path):
    out = tmp_path / "RESULTS.md"
    command = [sys.executable, "benchmarks/startup.py", "--models", str(tiny_models), "--runs", "1"]
    subprocess.run([*command, "--append", str(out)], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 8 and row[1] in ("cached", "cold")]
    assert [row[:3] for row in rows] == [
        [name, plan, "1"] for name in ("tiny-grey", "all 2") for plan in ("cached", "cold")
    ]
    for row in rows:
        least_s, median_s, cpu_s, resident, highest = map(float, row[3:])
        assert 0 < least_s <= median_s and cpu_s > 0 and 0 < resident <= highest


def test_a_folder_without_models_is_said(tmp_path):
    command = [sys.executable, "benchmarks/startup.py", "--models", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "holds no model" in done.stderr
