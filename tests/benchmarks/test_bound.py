"""The bounds end to end on tiny models; the DCGAN of the benchmark in small."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from tinymodels import TINY_LABELS

from benchmarks import bound
from benchmarks.load import Period
from service.package import verify_package

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_but_the_dcgan_has_its_lines(tiny_models, tmp_path):
    out = tmp_path / "RESULTS.md"
    command = [sys.executable, "benchmarks/bound.py", "--models", str(tiny_models), "--seconds", "0.2", "--rounds", "1"]
    command += ["--only", "tiny-grey", "--parts", "null,many,batching", "--append", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()]
    found = [line[1:] for line in lines if line[0] == "tiny-grey"]
    null, many, (batching,) = found[:2], found[2:4], found[4:]
    assert [line[0] for line in null + many] == ["16", "64"] * 2
    for line in null:
        rate, top, ratio, loop, lower, both, of_both = map(float, line[1:])
        assert 0 < both < loop and of_both == pytest.approx(rate / both, abs=0.01)
        assert ratio == pytest.approx(rate / top, abs=0.01) and lower == pytest.approx(rate / min(top, loop), abs=0.01)
    for line in many:
        rate, loop, ratio, top, both, of_both = map(float, line[1:])
        assert ratio == pytest.approx(rate / loop, abs=0.01) and of_both == pytest.approx(rate / both, abs=0.01)
        assert 0 < both < loop and top > 0
    on, off, ratio = map(float, batching)
    assert on > 0 and ratio == pytest.approx(on / off, abs=0.01)


@pytest.mark.parametrize("flags", [["--parts", "null,tiles"], ["--only", "no-such"]])
def test_unknown_names_are_refused(tiny_models, flags):
    command = [sys.executable, "benchmarks/bound.py", "--models", str(tiny_models), *flags]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1 and flags[0].encode() in ended.stderr


def test_the_dcgan_is_a_model_like_any_other(tmp_path):
    folder, parameters = bound.build_dcgan(tmp_path, width=4, most=16)
    manifest = verify_package(folder)
    assert manifest.name == bound.DCGAN and bound.side(manifest) == 64 and parameters > 10_000
    loop = bound.BareLoop(folder)
    assert loop.rate(bound.LoopPlan(2, 1, 4), 0.05) > 0


def test_the_sweep_keeps_its_fastest_plan(tiny_models, monkeypatch):
    loop = bound.BareLoop(tiny_models / "tiny-grey" / "1")
    assert len(TINY_LABELS) == 3, "a model with classes: the loop must feed them"
    assert loop.rate(bound.LoopPlan(1, 1, 1), 0.0) > 0, "a plan of no time still draws one run"
    seen = []

    def rate(plan, seconds):
        seen.append(plan)
        return 100.0 if plan.batch == 4 and plan.sessions == plan.threads == 1 else 1.0 + plan.batch

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(loop, "rate", rate)
    assert loop.best(1.0) == bound.LoopPlan(1, 1, 4, 100.0)
    assert {plan.batch for plan in seen} == set(bound.BATCHES)


def test_zip_requests_share_no_picture():
    asked = [json.loads(body) for body in islice(bound.zips("m"), 3)]
    assert [body["seeds"] for body in asked] == ["0-7", "8-15", "16-23"]
    assert all(body["as"] == "zip" for body in asked)


def test_both_take_their_time_one_after_the_other(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    null = Period(2.0, 1000, server_cpu_s=1.5, client_cpu_s=0.5)  # 2 ms of a core for each request
    assert bound.both_together(null, images=8, bare=4000) == pytest.approx(8 / (0.001 + 8 / 4000))


def test_a_figure_with_errors_is_none():
    period = Period(1.0, 5)
    period.ends["429"] += 1
    with pytest.raises(SystemExit, match="429"):
        bound.refuse_errors(period, "tiny")
