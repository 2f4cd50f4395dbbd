"""What clients that were refused are expected to do, and what runs are expected to take."""

import pytest

from service.engine.pricing import COHORT, GRACE_S, Promises, RunCosts


def booked(promises, first, number, now_s, wait_s):
    for key in range(first, first + number):
        promises.book(key, 1, 5, now_s, now_s + wait_s)


def test_places_are_kept_until_it_is_seen_that_nobody_comes():
    promises = Promises()
    booked(promises, 0, 500, 0.0, 0.1)
    promises.sweep(0.05)
    assert promises.rows() == 500
    promises.sweep(0.1 + 2 * GRACE_S)
    assert len(promises) == 0
    booked(promises, 500, 100, 10.0, 0.1)
    promises.sweep(10.0)
    assert promises.rows() <= 1


def test_places_are_kept_again_as_soon_as_a_few_come_back():
    promises = Promises()
    booked(promises, 0, 500, 0.0, 0.1)
    promises.sweep(20.0)
    booked(promises, 500, 200, 20.0, 1.0)  # nobody of these will come
    promises.sweep(20.0)
    booked(promises, 1000, COHORT, 20.5, 0.1)
    booked(promises, 2000, 50, 20.5, 5.0)
    assert promises.rows() < 10
    for key in range(1000, 1000 + COHORT):
        promises.close(promises.find(key), True)
    promises.sweep(20.7)
    assert promises.share == 1.0 and promises.rows() == 250
    promises.sweep(21.2)
    # those whose moment is past are as unlikely to come as those before them were
    assert 50 <= promises.rows() < 60


def test_who_comes_later_than_told_is_still_expected():
    promises = Promises()
    for second in range(10):
        booked(promises, 100 * second, 20, float(second), 0.1)
        promises.sweep(second + 0.5)
        for key in range(100 * second, 100 * second + 20):
            promises.close(promises.find(key), True)
    booked(promises, 5000, 20, 20.0, 0.1)
    promises.sweep(20.5)
    assert promises.rows() == 20


def test_a_client_that_came_in_vain_says_nothing_of_others():
    promises = Promises()
    for key in range(300):
        promises.book(key, 1, 5, 0.0, 0.1, again=True)
    promises.sweep(30.0)
    assert len(promises) == 0 and promises.share == 1.0


def test_long_waits_are_reckoned_by_the_longer_mean():
    costs = RunCosts(lambda rows: 0.01 * rows)
    for _ in range(5000):
        costs.observe(1, 0.015)
    assert costs.slack == pytest.approx(1.0, abs=0.01)
    for _ in range(100):
        costs.observe(1, 0.010)
    assert costs.run_s(1) < 0.012 and costs.run_s(1) * costs.slack > 0.014
    for _ in range(100):
        costs.observe(1, 0.030)
    assert costs.slack == 1.0
