"""Plans: cores counted as the container allows, knees as the curve says, measured once and cached."""

import json
import os

import pytest

from service.engine import profile
from service.engine.options import EngineOptions
from service.engine.profile import Plan, available_cpus, choose_plan, knee
from service.engine.session import OrtSession
from service.engine.shapes import SHELF
from service.package import read_golden, read_package


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "600000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            4,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "rubbish\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
    ],
)
def test_the_containers_quota_counts(tmp_path, monkeypatch, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("costs", "cap"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 1),  # a CPU: a row costs what it costs
        ({1: 1.0, 2: 1.01, 4: 1.02, 8: 1.04}, 8),  # a GPU: wider is free
        ({1: 1.0, 2: 1.16, 4: 2.3, 8: 4.6}, 2),  # beyond two hardly a gain
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 8.0}, 4),  # loses beyond
        ({1: 1e-6, 2: 2e-6, 4: 4e-6, 8: 8e-6}, 8),  # so small that handing over dominates
    ],
)
def test_the_cap_is_at_the_knee(costs, cap):
    chosen, share, row_s = knee(costs)
    assert chosen == cap and share <= cap and row_s == costs[cap] / cap


def test_a_run_that_was_held_up_does_not_lower_the_cap():
    calm = {1: 0.001, 2: 0.0012, 4: 0.0014, 8: 0.0025}
    assert knee({**calm, 4: 0.060}) == knee({**calm, 4: 0.0025})
    assert knee({**calm, 4: 0.060})[0] == 8


FLAT = {1: 0.45, 2: 0.46, 4: 0.46, 8: 0.48, 16: 0.50, 32: 0.49}
STEEP = {1: 0.5, 2: 0.9, 4: 1.7, 8: 3.3, 16: 6.5, 32: 13.0}


@pytest.mark.parametrize(
    ("costs", "shelf", "shape_s", "fills"),
    [
        (FLAT, 4, 0.08, (32,)),  # a GPU with a small model: one row costs what 32 do
        (FLAT, 1, 0.0, (32,)),
        (STEEP, 4, 80.0, (1, 16, 32)),  # as many as there are sessions, one of them for who comes alone
        (STEEP, 1, 0.001, (1, 2, 4, 8, 16, 32)),  # other shapes cost nothing
        (STEEP, 1, 80.0, (32,)),  # whatever filling up costs, planning anew costs more
        (STEEP, 1, 4.0, (4, 16, 32)),  # or less
    ],
)
def test_runs_are_filled_up_as_far_as_that_costs_less_than_another_shape(costs, shelf, shape_s, fills):
    assert profile._fills(costs, tuple(costs), shelf, shape_s) == fills


def test_only_cuda_keeps_sessions_for_shapes_and_only_where_memory_is_not_bounded():
    free, bounded = EngineOptions(models=None), EngineOptions(models=None, device_memory_bytes=2**30)
    assert profile.shelf_of("cuda", 0.08, free) == SHELF
    assert {profile.shelf_of(*one) for one in [("cuda", 0.0, free), ("cuda", 0.08, bounded), ("webgpu", 1, free)]} == {
        1
    }


def test_what_is_filled_up_is_priced_as_such():
    plan = Plan(
        1, 1, 8, 1, 0.1, True, "cuda", ((1, 1.0), (2, 2.0), (4, 4.0), (8, 5.0)), sizes=(1, 2, 4, 8), fills=(2, 8)
    )
    assert [plan.run_s(rows) for rows in (1, 2, 3, 4, 8)] == [2.0, 2.0, 5.0, 5.0, 5.0]
    assert "runs of up to 8 rows filled up to 2 or 8" in str(plan)


@pytest.fixture
def model(tiny_models):
    folder = tiny_models / "tiny-rgb" / "1"
    manifest = read_package(folder)
    spec = manifest.graphs["generator"]

    def make(threads):
        return OrtSession(folder / spec.file, spec, model=manifest.ref, providers=("cpu",), threads=threads)

    return make, read_golden(folder, manifest)["generator"], spec.sha256


def choose(model, **changes):
    make, golden, sha256 = model
    options = EngineOptions(**{"models": None, "profile_s": 0.2, **changes})
    return choose_plan(sha256, make(options.threads_per_lane or 1), golden, options, make)


def test_a_measured_plan_fits_the_machine(model, monkeypatch):
    monkeypatch.setattr(profile, "available_cpus", lambda: 2)
    plan, sessions = choose(model)
    assert plan.lanes * plan.threads <= 2 and len(sessions) == plan.lanes
    assert plan.source == "measured" and plan.rows_independent and plan.provider == "cpu"
    assert plan.costs[0][0] == 1 and plan.max_batch in dict(plan.costs) and plan.row_s > 0


@pytest.mark.parametrize(
    ("changes", "lanes", "threads"),
    [
        ({"lanes": 3}, 3, 2),
        ({"threads_per_lane": 4}, 2, 4),
        ({"lanes": 1, "threads_per_lane": 1}, 1, 1),
        ({"lanes": 5, "threads_per_lane": 3}, 5, 3),
    ],
)
def test_what_is_set_wins(model, monkeypatch, changes, lanes, threads):
    monkeypatch.setattr(profile, "available_cpus", lambda: 8)
    plan, sessions = choose(model, max_batch=6, **changes)
    assert (plan.lanes, plan.threads) == (lanes, threads) and plan.max_batch <= 6
    assert [session.threads for session in sessions] == [threads] * lanes
    assert len(set(map(id, sessions))) == (1 if threads == 1 else lanes) or changes.get("threads_per_lane") == threads


def test_measuring_can_be_turned_off(model):
    plan, _ = choose(model, profile_s=0, lanes=2, max_batch=7)
    assert plan.source == "fixed" and (plan.lanes, plan.max_batch) == (2, 7)


def test_a_plan_is_measured_once(model, tmp_path, monkeypatch):
    cache = tmp_path / "made" / "here"
    first, _ = choose(model, cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    monkeypatch.setattr(profile, "_measure", None)  # measuring again would raise
    second, _ = choose(model, cache=cache)
    assert second == Plan(**{**vars(first), "source": "cached"})
    with pytest.raises(TypeError):
        choose(model, cache=cache, lanes=1)  # other options, another plan


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"lanes": 1, "costs": [[1]]})])
def test_a_damaged_cache_is_measured_anew(model, tmp_path, text):
    choose(model, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    assert choose(model, cache=tmp_path)[0].source == "measured"
    assert json.loads(path.read_text())["lanes"] >= 1


def test_a_cache_that_cannot_be_written_costs_nothing_else(model, tmp_path):
    (tmp_path / "file").write_text("")
    assert choose(model, cache=tmp_path / "file" / "below")[0].source == "measured"
