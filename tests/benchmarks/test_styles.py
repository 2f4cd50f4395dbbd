"""What the benchmark of styles says of what it measured."""

from collections import Counter
from itertools import islice

import pytest

from benchmarks.load import Period
from benchmarks.styles import NAME, bodies, costs


def test_costs_are_cpu_time_an_image_over_the_bare_loops():
    period = Period(seconds=2.0, answered=100, ends=Counter({"200": 100}), server_cpu_s=1.2)
    lines = costs({1: period}, 10.0).splitlines()
    assert "| bare loop |  | 10.00 | 1.00 |  |" in lines
    assert "| server | 1 | 12.00 | 1.20 | 50 |" in lines


@pytest.mark.parametrize("ends", [Counter({"200": 9, "500": 1}), Counter()])
def test_figures_of_failed_requests_are_refused(ends):
    with pytest.raises(SystemExit, match="16 clients"):
        costs({16: Period(seconds=1.0, answered=ends["200"], ends=ends)}, 10.0)


def test_no_seed_comes_twice():
    asked = list(islice(bodies(NAME), 50))
    assert len(set(asked)) == 50
