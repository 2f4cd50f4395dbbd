"""The race end to end with what needs no environment of its own, and its arithmetic."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import race
from benchmarks.load import Period
from benchmarks.peers.drawing import Generators
from benchmarks.processes import NotReady

ROOT = Path(__file__).resolve().parents[2]
OURS, PLAIN, LIT, LIT_BATCHING = (
    next(racer for racer in race.RACERS if racer.name == name)
    for name in ("Ganymede", "FastAPI", "LitServe", "LitServe, batching")
)


def test_ganymede_and_plain_fastapi_race(tiny_models, tmp_path):
    out = tmp_path / "RESULTS.md"
    command = [sys.executable, "benchmarks/race.py", "--models", str(tiny_models), "--seconds", "0.2", "--rounds", "2"]
    command += ["--racers", "Ganymede; FastAPI", "--only", "tiny-grey", "--append", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()]
    found = [line for line in lines if line[0] == "tiny-grey"]
    results, goals = found[:6], found[6:]
    assert [line[1:3] for line in results] == [[c, who] for c in ("1", "16", "64") for who in ("Ganymede", "FastAPI")]
    for line in results:
        rate, p50, p99, cpu_ms, errors, cores, memory = map(float, line[3:])
        assert rate > 0 and 0 < p50 <= p99 and cpu_ms > 0 and errors == 0 and cores > 0 and memory > 10
    assert [line[1] for line in goals] == ["1", "16", "64"]
    for ours, plain, goal in zip(results[::2], results[1::2], goals, strict=True):
        assert float(goal[3]) == pytest.approx(float(ours[3]) / float(plain[3]), rel=0.02, abs=0.01)


@pytest.mark.parametrize(("flag", "value"), [("--only", "no-such"), ("--racers", "Ganymede; Triton")])
def test_an_unknown_name_is_refused_before_anything_starts(tiny_models, flag, value):
    command = [sys.executable, "benchmarks/race.py", "--models", str(tiny_models), flag, value]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1 and flag.encode() in ended.stderr


def period(rate: float, cpu_ms: float, latency_s: float) -> Period:
    found = Period(1.0, int(rate), [latency_s] * 10, server_cpu_s=cpu_ms * rate / 1000)
    found.ends["200"] = 10
    return found


def test_goals_compare_with_the_best_peer_for_each_figure():
    periods = {
        ("m", 16, "Ganymede"): period(1000, 0.5, 0.010),
        ("m", 16, "FastAPI"): period(900, 0.9, 0.030),
        ("m", 16, "LitServe"): period(500, 2.0, 0.020),
        ("m", 16, "LitServe, batching"): period(600, 1.25, 0.040),
    }
    racers = (OURS, PLAIN, LIT, LIT_BATCHING)
    assert race.goal_rows(periods, ["m"], racers) == [["m", "16", "0.40", "1.11", "0.50", "yes"]]
    periods["m", 16, "Ganymede"].ends["429"] += 1
    assert race.goal_rows(periods, ["m"], racers)[0][-1] == "no", "errors are no way to win"


@pytest.mark.parametrize("better", ["cpu", "rate", "tail"])
def test_one_lost_figure_is_no_win(better):
    peer = {"cpu": period(900, 0.9, 0.030), "rate": period(1100, 2, 0.030), "tail": period(900, 2, 0.005)}[better]
    periods = {("m", 1, "Ganymede"): period(1000, 0.5, 0.010), ("m", 1, "LitServe"): peer}
    assert race.goal_rows(periods, ["m"], (OURS, LIT))[0][-1] == "no"


def test_peers_draw_what_ganymede_promises(tiny_models):
    """The shared drawing takes z and the class from the seed alone: the same file alone and among others."""
    drawn = Generators(tiny_models)
    asked = [("tiny-grey", 3), ("tiny-rgb", 3), ("tiny-grey", 2**32 - 1)]
    assert drawn.draw(asked) == [drawn.draw([pair])[0] for pair in asked]
    assert drawn.names() == ["tiny-grey", "tiny-rgb"]


def test_a_racer_that_draws_something_else_is_out(tiny_models, monkeypatch):
    drawn = Generators(tiny_models)
    right = drawn.draw([("tiny-rgb", 0)])[0]
    monkeypatch.setattr(race, "picture", lambda port, model, seed: right)
    with pytest.raises(NotReady, match="seed 1,"):
        race.check(OURS, 0, "tiny-rgb", drawn)


def test_no_request_of_a_race_repeats():
    first, second = race.bodies("a"), race.bodies("a")
    seen = [next(source) for source in (first, second, first, second)]
    assert len(set(seen)) == 4


def test_every_peer_has_its_requirements_pinned():
    for racer in race.RACERS:
        if racer.requirements:
            lines = (race.PEERS / f"{racer.requirements}.txt").read_text().splitlines()
            assert all("==" in line for line in lines if not line.startswith("#"))
            assert any(line.startswith("onnxruntime==") for line in lines)


def test_tables_are_markdown():
    lines = race.table(("who", "rate"), [["a", "1.5"], ["b", "2"]]).splitlines()
    assert lines == ["| who | rate |", "| --- | ---: |", "| a | 1.5 |", "| b | 2 |"]
    assert np.char.count(np.array(lines), "|").tolist() == [3] * 4
