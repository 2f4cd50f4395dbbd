"""Every section end to end on the CPU's provider and tiny models; one that fails costs none of the others."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tinymodels import write_picture_model, write_tiny

from benchmarks import gpu, gpuserving
from benchmarks.gpuground import Ground, difference, guarded
from benchmarks.gpusessions import SIZES, steadiness
from service.engine.session import RunFailed
from service.manifest import Task
from service.package import read_package

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny(root, "tiny-rgb", channels=3)
    write_picture_model(root, "tiny-x2", Task.UPSCALE, scale=2)
    return root


def run(models, out, *flags):
    command = [sys.executable, "benchmarks/gpu.py", "--models", str(models), "--out", str(out), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    return ended, json.loads(out.read_text()) if out.exists() else None


@pytest.mark.slow
def test_every_section_has_its_figures(models, tmp_path):
    ended, found = run(models, tmp_path / "gpu.json", "--provider", "cpu", "--seconds", "0.5", "--limit", "600")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert found["provider"] == "cpu" and not any("error" in found[name] for name in gpu.SECTIONS)
    for name in ("tiny-rgb", "tiny-x2"):
        assert found["models"][name]["provider"] == "cpu" and found["models"][name]["equal_share"] == 1
        assert found["models"][name]["golden"] == "as recorded" and found["seeds"][name]["largest"] == 0
    assert [rate["rows"] for rate in found["rates"]["tiny-rgb"]][:3] == list(SIZES[:3])
    assert all(rate["ms"] > 0 and rate["plain_ms"] > 0 for rate in found["rates"]["tiny-rgb"])
    for name in ("tiny-rgb", "tiny-x2"):
        times = found["shapes"][f"{name}, as usual"]
        assert set(times) == {"first", "next", "in_turns", "in_turns_kept"} and min(times.values()) > 0
    assert found["engine"]["refused"] == {} and found["engine"]["tiny-x2@1, work"]["same_twice"]
    assert set(found["engine"]["tiny-rgb@1, work"].values()) == {True}
    assert found["engine"]["tiny-x2@1, shrink of generator"] == "done"
    assert found["shortage"]["first"]["equal_share"] == 1 and found["shortage"]["engine"]["work"]["same_twice"]
    assert found["server"]["tiny-rgb"]["16 clients"]["ends"].keys() == {"200"}
    assert found["variants"]["tiny-rgb, as served"]["same_after_reload"]
    assert f"models    tiny-x2: {json.dumps(found['models']['tiny-x2'])}" in ended.stdout.splitlines()


def test_a_provider_that_is_not_there_is_said_for_each_model(models, tmp_path):
    ended, found = run(models, tmp_path / "gpu.json", "--provider", "abacus", "--only", "models,seeds")
    assert ended.returncode == 1
    for section in ("models", "seeds"):
        assert all("'abacus' is unknown" in found[section][name]["error"] for name in ("tiny-rgb", "tiny-x2"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no such card')", "no such card"),
        ("__import__('os').abort()", "ended with status -6"),
        ("__import__('time').sleep(60)", "no end within"),
    ],
    ids=["raises", "crashes", "hangs"],
)
def test_what_a_section_had_found_outlives_it(tmp_path, monkeypatch, body, said):
    """The section is a script of its own here: it tells one figure and then goes wrong."""
    script = tmp_path / "gpu.py"
    lines = ["from benchmarks import gpu", "def go(ground, tell):", "    tell('first', 1)", f"    {body}"]
    script.write_text("\n".join([*lines, "gpu.SECTIONS['models'] = go", "raise SystemExit(gpu.main())"]))
    monkeypatch.setattr(gpu, "__file__", str(script))
    arguments = argparse.Namespace(models=tmp_path, provider="cpu", seconds=0.1)
    found = gpu._apart("models", arguments, 20.0 if "sleep" not in body else 5.0)
    assert found["first"] == 1 and said in found["error"] and gpu.failed(found)


def test_nothing_is_begun_without_time(tmp_path):
    assert gpu._apart("models", argparse.Namespace(), 0.1) == {"error": "not begun: --limit is reached"}


def test_an_unknown_section_is_refused(models, tmp_path):
    ended, _ = run(models, tmp_path / "gpu.json", "--only", "models,pixels")
    assert ended.returncode == 1 and "pixels is none of" in ended.stderr


def test_differences_count_levels_both_ways():
    one, other = np.array([0, 255, 9, 9], np.uint8), np.array([3, 255, 8, 9], np.uint8)
    assert difference(one, other) == {"largest": 3, "equal_share": 0.5, "beyond_one_share": 0.25}
    assert difference(other, one)["largest"] == 3


def test_rows_that_feel_their_neighbours_are_counted(models):
    graph = read_package(models / "tiny-rgb" / "1").graphs["generator"]

    def wide_runs_differ(feeds):
        z = feeds["z"]
        return {"image": np.repeat(z[:, :1], 4, 1).astype(np.uint8) + (len(z) > 2)}

    feeds = {"z": np.arange(16, dtype=np.float32).reshape(16, 1)}
    found = steadiness(wide_runs_differ, graph, feeds, [2, 8, 16])
    assert found["rows_that_differ_of_8"] == {"2": 0, "8": 8, "16": 8} and found["largest"] == 1
    assert found["same_in_another_place"]


def test_a_failure_is_its_own_models():
    def fail():
        raise RunFailed("the card fell off the bus")

    assert guarded(lambda: 3) == 3
    assert "the card fell off the bus" in guarded(fail)["error"]


def test_the_newest_version_of_each_model_is_measured(tmp_path):
    for version in (1, 2, 10):
        write_tiny(tmp_path, "tiny-rgb", channels=3, version=version)
    assert Ground(tmp_path, "cpu", 1.0).folders() == [tmp_path / "tiny-rgb" / "10"]


def test_a_folder_of_chosen_models_holds_no_other(models):
    with gpuserving.alone([models / "tiny-x2" / "1"]) as chosen:
        assert [path.name for path in chosen.iterdir()] == ["tiny-x2"] and read_package(chosen / "tiny-x2" / "1")
