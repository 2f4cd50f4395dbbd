"""How many replicas are wanted: the formula, and what it is fed with."""

from dataclasses import replace

import pytest
from fakeengine import idle

from service.demand import (
    CLEAR_S,
    TARGET_UTILISATION,
    WINDOW_S,
    Demand,
    Spent,
    backlog_s,
    replicas_wanted,
    utilisation,
)


def spent_at(at_s: float, loop_s: float = 0.0, waits_s: float = 0.0, **runs_s: float) -> Spent:
    return Spent(at_s, loop_s, waits_s, runs_s)


@pytest.mark.parametrize(
    ("busy", "backlog", "wanted"),
    [
        (0.0, 0.0, 0.0),
        (TARGET_UTILISATION, 0.0, 1.0),
        (1.0, 0.0, 1 / TARGET_UTILISATION),
        (0.0, CLEAR_S, 1.0),
        (TARGET_UTILISATION, 3 * CLEAR_S, 4.0),
        (-0.1, -1.0, 0.0),  # a clock that was set back
    ],
)
def test_utilisation_and_what_waits_add_up(busy, backlog, wanted):
    assert replicas_wanted(busy, backlog) == pytest.approx(wanted)


def test_load_spread_over_more_replicas_wants_as_many():
    """The sum over replicas is of the load, not of how many share it: an autoscaler finds its place and stays."""
    together = replicas_wanted(0.9, 4.0)
    assert 3 * replicas_wanted(0.3, 4.0 / 3) == pytest.approx(together)


def test_the_busiest_of_lanes_loop_and_queue_counts():
    begin = spent_at(100.0, 5.0, a=10.0, b=20.0)
    assert utilisation(begin, spent_at(110.0, 8.0, a=10.0, b=20.0)) == pytest.approx(0.3)
    assert utilisation(begin, spent_at(110.0, 8.0, a=12.0, b=24.0)) == pytest.approx(0.6)  # models add up
    assert utilisation(begin, spent_at(110.0, 8.0, a=19.0, b=29.0)) == 1.0
    assert utilisation(begin, spent_at(110.0, 8.0, 9.0, a=12.0, b=24.0)) == pytest.approx(0.9)


def test_what_was_not_there_at_both_moments_is_idle():
    begin = spent_at(0.0, 0.0, gone=5.0, reloaded=9.0)
    assert utilisation(begin, spent_at(10.0, 0.0, new=8.0, reloaded=1.0)) == 0.0
    assert utilisation(begin, begin) == 0.0


def test_what_waits_is_work_and_what_was_refused_is_not():
    stats = {
        "a@1": replace(idle(), queue_rows=12, promised_rows=4000, row_s=0.5, lanes=2),
        "b@1": replace(idle(), queue_rows=1, row_s=2.0, lanes=1),
        "lost@1": replace(idle(), queue_rows=9, row_s=2.0, lanes=0),
    }
    assert backlog_s(stats) == pytest.approx(3.0 + 2.0)


def running(run_s_total: float, lanes: int = 2, queue_rows: int = 0) -> dict:
    return {"a@1": replace(idle(), run_s_total=run_s_total, lanes=lanes, queue_rows=queue_rows, row_s=0.0)}


def test_only_the_last_window_counts():
    """Two lanes at 70 % for a minute, then idle: a window later nothing is wanted any more."""
    demand = Demand()
    assert demand.wanted(0.0, 0.0, running(0.0)) == 0.0
    for second in range(60):
        demand.look(float(second), 0.0, running(1.4 * second))
    assert demand.wanted(60.0, 0.0, running(84.0)) == pytest.approx(1.0)
    for second in range(60, 61 + round(WINDOW_S)):
        demand.look(float(second), 0.0, running(84.0))
    assert demand.wanted(61.0 + WINDOW_S, 0.0, running(84.0)) == 0.0


def test_a_queue_that_is_never_empty_is_a_replica_at_its_limit():
    """Though its lanes run for half of the time only: others take the cores."""
    demand = Demand()
    for quarter in range(60):
        demand.look(quarter / 4, 0.0, running(quarter / 4, queue_rows=5))
    assert demand.wanted(15.0, 0.0, running(15.0, queue_rows=5)) == pytest.approx(1 / TARGET_UTILISATION)
    assert demand.wanted(15.0, 0.0, running(15.0)) == pytest.approx(14.75 / 15 / TARGET_UTILISATION)


def test_lost_lanes_and_models_that_come_and_go_disturb_nothing():
    demand = Demand()
    demand.look(0.0, 0.0, running(5.0))
    demand.look(1.0, 0.0, running(6.0, lanes=0))
    assert demand.wanted(2.0, 0.0, {}) == 0.0
