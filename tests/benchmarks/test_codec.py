"""The encoders' benchmark over tiny models: every row has its figures, and the goal is judged by them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def test_every_set_has_its_row(tiny_models, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "RESULTS.md"
    photos.mkdir()
    for number in range(2):
        pixels = np.random.RandomState(number).randint(0, 256, (90, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    command = [sys.executable, "benchmarks/codec.py", "--models", str(tiny_models), "--photos", str(photos)]
    command += ["--sizes", "64", "128", "--rounds", "1", "--append", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()]
    png = [row for row in rows if len(row) == 9 and row[0] not in ("pictures", "---")]
    names = {"photographs": ["64", "120 x 90"]} | {
        name: sizes
        for ref in ("tiny-grey@1", "tiny-rgb@1")
        for name, sizes in ((ref, ["8"]), (f"{ref}, grids", ["64", "128"]))
    }
    assert [row[:2] for row in png] == [[name, size] for name, sizes in names.items() for size in sizes]
    for _, size, pillow_us, ours_us, cpu, pillow_bytes, our_bytes, larger, goal in png:
        assert min(float(cell) for cell in (pillow_us, ours_us, cpu, pillow_bytes, our_bytes)) > 0
        assert abs(float(larger) - float(our_bytes) / float(pillow_bytes)) < 0.02
        # Printed figures are rounded: the verdict is held against them where they are clear.
        if size == "8":
            assert goal == ""
        elif float(cpu) < 5.9 or float(larger) > 1.031:
            assert goal == "missed"
        elif float(cpu) > 6.1 and float(larger) < 1.029:
            assert goal == "met"
    assert len([row for row in rows if len(row) == 8 and row[0] in names]) == len(png)
