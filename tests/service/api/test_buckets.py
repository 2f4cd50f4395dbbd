"""Token buckets: never more than rate and burst allow, and the time that is told is the time."""

from hypothesis import given
from hypothesis import strategies as st

from service.api.buckets import Buckets, admit


def test_a_burst_then_the_rate():
    buckets = Buckets()
    assert [buckets.take("a", 100.0, 2.0, 3.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("a", 100.4, 2.0, 3.0) > 0
    assert buckets.take("a", 100.5, 2.0, 3.0) == 0
    assert buckets.take("b", 100.5, 2.0, 3.0) == 0, "another's is its own"
    assert [buckets.take("a", 200.0, 2.0, 3.0) for _ in range(4)][:3] == [0, 0, 0], "full again, and no fuller"


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.floats(0.1, 50), st.floats(1, 20), st.floats(0, 1e6))
def test_what_is_told_is_true_and_nobody_gets_more(gaps, rate, burst, now_s):
    full_at_s, taken = 0.0, []
    for gap in gaps:
        now_s += gap
        full_at_s, wait_s = admit(full_at_s, now_s, rate, burst)
        if wait_s == 0:
            taken.append(now_s)
            continue
        _, early = admit(full_at_s, now_s + wait_s * 0.99 - 1e-6, rate, burst)
        assert wait_s * 0.99 < 1e-6 or early > 0
        _, then = admit(full_at_s, now_s + wait_s + 1e-6, rate, burst)
        assert then == 0
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - taken[first]) + 1e-3


def test_who_was_seen_longest_ago_is_forgotten():
    buckets = Buckets(most=2)
    for client in "abab":
        buckets.take(client, 0.0, 1.0, 1.0)
    buckets.take("c", 0.0, 1.0, 1.0)
    assert buckets.take("b", 0.0, 1.0, 1.0) > 0 and buckets.take("a", 0.0, 1.0, 1.0) == 0
