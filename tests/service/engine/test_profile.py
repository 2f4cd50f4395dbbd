"""Plans: cores counted as the container allows, knees as the curve says, measured once and cached."""

import json
import os

import numpy as np
import pytest
from fakesession import FakeSession, rows

from service.engine import profile
from service.engine.options import EngineOptions
from service.engine.profile import Plan, available_cpus, choose_plan, extreme, knee, probe
from service.engine.session import OrtSession
from service.errors import RunFailed
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


def test_extremes_leave_the_watched_row_alone():
    inputs = {**rows([1, 2]), "i": np.arange(8, dtype=np.uint8).reshape(2, 4), "k": np.array([5, 6])}
    batch = extreme(inputs, 5, 3)
    for name, array in inputs.items():
        np.testing.assert_array_equal(batch[name][3], array[0])
    assert np.abs(batch["x"][[0, 1, 2, 4]]).min() >= 90 and set(batch["i"][[0, 1]].ravel()) == {0, 255}
    assert set(batch["k"]) <= {5, 6}, "whole numbers index something: never out of range"


class Mixing(FakeSession):
    """Rows see the batch's mean, as with training-mode batch norm."""

    def run(self, inputs):
        return {"y": inputs["x"] - inputs["x"].mean(axis=0)}


class Fragile(FakeSession):
    def run(self, inputs):
        if np.abs(inputs["x"]).max() > 50:
            raise RunFailed("too extreme")
        return super().run(inputs)


@pytest.mark.parametrize(("session", "independent"), [(FakeSession(), True), (Mixing(), False), (Fragile(), True)])
def test_rows_that_see_each_other_are_found(session, independent):
    costs, found = probe(session, rows([1, 2, 3]), [2, 3, 8], float("inf"))
    assert found is independent
    assert set(costs) == ({1, 2, 3, 8} if independent else {1})


def test_batches_that_do_not_fit_into_memory_are_not_planned():
    class Tight(FakeSession):
        def run(self, inputs, watch=None):
            if len(inputs["x"]) > 4:
                raise RunFailed("Failed to allocate memory for requested buffer")
            return super().run(inputs, watch)

    costs, independent = probe(Tight(), rows([1, 2, 3]), [2, 4, 8, 16], float("inf"))
    assert set(costs) == {1, 2, 4} and independent


def test_the_deadline_bounds_the_probe():
    assert set(probe(FakeSession(), rows([1]), [2, 4, 8], 0.0)[0]) == {1, 2}


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
