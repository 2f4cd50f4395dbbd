"""The soak: each kind of client meets a real server, and the report tells a kept promise from a broken one."""

import asyncio
import random
from collections import Counter
from urllib.parse import urlsplit

import pytest

from benchmarks import soakclients
from benchmarks.server import serving
from benchmarks.soak import Soak, at_work, drift, lag_within, report, soaked
from benchmarks.soakclients import FAULTS, HONEST, STUCK, Clients

MODELS = ["tiny-grey@1", "tiny-rgb@1"]


@pytest.fixture(scope="module")
def port(tiny_models):
    with serving(tiny_models) as url:
        yield urlsplit(url).port


@pytest.mark.slow
async def test_every_kind_of_client_ends_as_it_may(port, monkeypatch):
    monkeypatch.setattr(soakclients, "IDLE_MOST_S", 0.2)
    clients, chance = Clients(port, MODELS), random.Random(1)
    await clients.remember()
    kinds = [kind for kind in (*HONEST, *FAULTS) for _ in range(3)]
    ends = await asyncio.gather(*(clients.send(kind, chance) for kind in kinds))
    assert [(kind, end) for kind, (end, expected) in zip(kinds, ends, strict=True) if not expected] == []
    by_kind = {kind: end for kind, (end, _) in zip(kinds, ends, strict=True)}
    assert all(by_kind[kind] == "200" for kind in HONEST)
    assert (by_kind["unknown model"], by_kind["wrong field"]) == ("404", "422")
    clients._known = dict.fromkeys(clients._known, b"another")
    assert await clients.send("known picture", chance) == (soakclients.OTHER, False)
    clients.close()


@pytest.mark.slow
async def test_a_short_soak_is_clean_and_reported(port):
    soak = await soaked(port, MODELS, 4.0, 40.0, seed=3)
    assert soak.quiet_after_s is not None and not soak.unexpected and len(soak.samples) >= 1
    text, _ = report(soak, 4.0)
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.endswith("| yes |")]
    assert len(rows) >= 5, text
    assert sum(sum(ends.values()) for ends in soak.ends.values()) > 80


def clean() -> Soak:
    """A soak in which nothing went wrong; memory grows by 2 %."""
    soak = Soak(rate=10.0, quiet_after_s=0.1)
    soak.ends["one picture"] = Counter({"200": 90, "503": 2, "504": 1})
    soak.samples = [(at_s, 100 * 2**20 * (1 + 0.02 * at_s / 1800), 1.0) for at_s in range(0, 1800, 5)]
    lag = "ganymede_event_loop_lag_seconds"
    soak.before = {"process_cpu_seconds_total": 1.0, f"{lag}_count": 0.0}
    soak.after = {"process_cpu_seconds_total": 5.0, f"{lag}_count": 100.0}
    soak.after |= {
        f'{lag}_bucket{{le="0.01"}}': 98.0,
        f'{lag}_bucket{{le="0.05"}}': 99.0,
        f'{lag}_bucket{{le="+Inf"}}': 100.0,
    }
    return soak


def test_a_clean_soak_keeps_every_promise():
    text, kept = report(clean(), 1800.0)
    assert kept and "| NO |" not in text and "| one picture | 200: 90, 503: 2, 504: 1 |" in text


def spoil_server_error(soak):
    soak.ends["grid"]["500"] = 1


def spoil_stuck(soak):
    soak.ends["grid"][STUCK] = 1


def spoil_unexpected(soak):
    soak.unexpected["garbage body: 200"] += 1


def spoil_picture(soak):
    soak.ends["known picture"][soakclients.OTHER] = 1


def spoil_quiet(soak):
    soak.quiet_after_s = None


def spoil_memory(soak):
    soak.samples = [(at_s, size * (1 + 0.06 * at_s / 1800), n) for at_s, size, n in soak.samples]


@pytest.mark.parametrize(
    "spoil", [spoil_server_error, spoil_stuck, spoil_unexpected, spoil_picture, spoil_quiet, spoil_memory]
)
def test_each_broken_promise_is_told(spoil):
    soak = clean()
    spoil(soak)
    text, kept = report(soak, 1800.0)
    assert not kept and text.count("| NO |") == 1


def test_drift_is_held_against_the_third_minute():
    first, last, share = drift(clean().samples, 1800.0)
    assert share == pytest.approx(0.018, abs=0.001) and first < last


def test_lag_names_the_bucket_of_the_share():
    soak = clean()
    assert lag_within(soak.before, soak.after, 0.98) == "at most 10 ms"
    assert lag_within(soak.before, soak.after, 0.99) == "at most 50 ms"
    assert lag_within(soak.before, soak.after, 1.0) == "more than the last bucket"


def test_a_server_at_work_is_seen():
    idle = {"ganymede_requests_in_flight": 1.0, 'ganymede_queue_rows{model="a@1"}': 0.0}
    idle |= {'ganymede_lanes_busy{model="a@1"}': 0.0, 'ganymede_lanes_busy_ratio{model="a@1"}': 0.0}
    assert not at_work(idle)
    for name, value in (("ganymede_requests_in_flight", 2.0), ('ganymede_queue_rows{model="a@1"}', 1.0)):
        assert at_work(idle | {name: value})
