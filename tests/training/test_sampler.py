"""Order of images: fair, fresh each epoch, resumable anywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.sampler import Sampler, labels_like


@given(count=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_shows_each_image_once(count, batch, seed):
    """Whatever the batch size: smaller, larger, straddling."""
    sampler = Sampler(count, batch, seed)
    calls = -(-3 * count // batch)
    shown = []
    for _ in range(calls):
        indices = sampler.next()
        assert indices.shape == (batch,) and indices.dtype == torch.int64
        shown += indices.tolist()
    assert sampler.shown == calls * batch
    for epoch in range(3):
        assert sorted(shown[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ():
    orders = []
    for seed in (0, 1):
        sampler = Sampler(50, 50, seed)
        orders += [tuple(sampler.next().tolist()) for _ in range(3)]
    assert len(set(orders)) == 6 and tuple(range(50)) not in orders


@given(before=st.integers(0, 12), count=st.integers(1, 11))
def test_restored_goes_on_in_place(before, count):
    whole, part = Sampler(count, 4, 7), Sampler(count, 4, 7)
    for _ in range(before):
        whole.next()
        part.next()
    resumed = Sampler(count, 4, 7)
    resumed.restore(part.state())
    for _ in range(4):
        assert torch.equal(resumed.next(), whole.next())


def test_another_batch_size_goes_on_with_the_same_order():
    small, large = Sampler(10, 2, 0), Sampler(10, 6, 0)
    first = [small.next() for _ in range(2)]
    large.restore(small.state())
    assert torch.equal(torch.cat([*first, large.next()]), Sampler(10, 10, 0).next())


@pytest.mark.parametrize("count, seed", [(9, 1), (10, 2)])
def test_a_foreign_state_is_refused(count, seed):
    with pytest.raises(ValueError, match=f"saw 10 images with seed 1, this run has {count} with seed {seed}"):
        Sampler(count, 2, seed).restore(Sampler(10, 2, 1).state())


def test_global_randomness_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Sampler(10, 4, 0).next()
    assert torch.equal(torch.rand(3), expected)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="count is 0"):
        Sampler(0, 4, 0)


def test_any_seed_that_a_run_may_have_shuffles():
    sampler = Sampler(10, 4, 2**63 - 1)
    assert sorted(torch.cat([sampler.next() for _ in range(5)]).tolist()) == sorted([*range(10), *range(10)])


def test_classes_are_drawn_as_often_as_they_occur():
    trained = np.array([0] * 60 + [1] * 30 + [2] * 10)
    drawn = labels_like(50, trained, 3)
    assert np.bincount(drawn).tolist() == [30, 15, 5] and drawn[:10].tolist() != sorted(drawn[:10].tolist())
    assert labels_like(6, np.array([0, 1, 2] * 5), 3).tolist() == [0, 1, 2, 0, 1, 2]
