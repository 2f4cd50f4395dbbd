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
    spent,
    utilisation,
)


def spent_at(at_s: float, loop_s: float = 0.0, **runs_s: float) -> Spent:
    return Spent(at_s, loop_s, runs_s)


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


def test_the_busier_of_lanes_and_loop_counts():
    begin = spent_at(100.0, 5.0, a=10.0, b=20.0)
    assert utilisation(begin, spent_at(110.0, 8.0, a=10.0, b=20.0)) == pytest.approx(0.3)
    assert utilisation(begin, spent_at(110.0, 8.0, a=12.0, b=24.0)) == pytest.approx(0.6)  # models add up
    assert utilisation(begin, spent_at(110.0, 8.0, a=19.0, b=29.0)) == 1.0


def test_what_was_not_there_at_both_moments_is_idle():
    begin = spent_at(0.0, 0.0, gone=5.0, reloaded=9.0)
    assert utilisation(begin, spent_at(10.0, 0.0, new=8.0, reloaded=1.0)) == 0.0
    assert utilisation(begin, begin) == 0.0


def test_what_waits_and_what_was_told_to_come_back_is_work():
    stats = {
        "a@1": replace(idle(), queue_rows=8, promised_rows=4, row_s=0.5, lanes=2),
        "b@1": replace(idle(), queue_rows=1, row_s=2.0, lanes=1),
        "lost@1": replace(idle(), queue_rows=9, row_s=2.0, lanes=0),
    }
    assert backlog_s(stats) == pytest.approx(3.0 + 2.0)


def test_totals_are_divided_by_lanes():
    stats = {"a@1": replace(idle(), run_s_total=6.0, lanes=3), "lost@1": replace(idle(), lanes=0)}
    assert spent(1.0, 2.0, stats) == Spent(1.0, 2.0, {"a@1": 2.0})


def test_only_the_last_window_counts():
    """Busy for a minute, then idle: a window later nothing is wanted any more."""
    demand, stats = Demand(), {"a@1": idle()}
    assert demand.wanted(spent_at(0.0, a=0.0), stats) == 0.0
    for second in range(60):
        demand.remember(spent_at(float(second), a=0.7 * second))
    assert demand.wanted(spent_at(60.0, a=0.7 * 60), stats) == pytest.approx(1.0)
    for second in range(60, 60 + round(WINDOW_S) + 1):
        demand.remember(spent_at(float(second), a=42.0))
    assert demand.wanted(spent_at(60 + WINDOW_S + 1, a=42.0), stats) == 0.0


def test_a_second_passes_between_what_is_remembered():
    demand = Demand()
    assert demand.due(5.0)
    demand.remember(spent_at(5.0))
    assert not demand.due(5.9)
    assert demand.due(6.0)
