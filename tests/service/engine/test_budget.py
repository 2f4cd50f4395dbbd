"""Who gives way for lack of room."""

import pytest

from service.engine.budget import Held, to_evict

OLD, NEW, BUSY = Held("old@1", 40, 1.0), Held("new@1", 30, 3.0), Held("busy@1", 20, 0.0, busy=True)


@pytest.mark.parametrize(
    "held, wanted, budget, gone",
    [
        ([], 10, 10, ()),
        ([OLD, NEW], 30, 100, ()),
        ([NEW, OLD], 31, 100, ("old@1",)),
        ([NEW, OLD], 71, 100, ("old@1", "new@1")),
        ([OLD, NEW, BUSY], 80, 100, ("old@1", "new@1")),
        ([OLD, NEW, BUSY], 81, 100, ("old@1", "new@1", "busy@1")),
        ([OLD], 101, 100, None),
    ],
)
def test_who_was_asked_for_longest_ago_goes_first_and_no_more_than_needed(held, wanted, budget, gone):
    assert to_evict(held, wanted, budget) == gone
