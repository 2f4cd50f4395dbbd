"""Pairs made ahead by other processes are those that would have been made between the steps."""

import numpy as np
import pytest
import torch
from tinypairs import shrunk_pairs, tiny_pair_trainer, tiny_pairs
from tinytraining import differing

from training import checkpoint
from training.prefetch import drawn_ahead
from training.sampler import Sampler


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_samplers_order_and_leave_it_where_it_stands(workers):
    pairs = tiny_pairs("pix2pix", shrunk_pairs("pix2pix", "weather"))
    sampler = Sampler(len(pairs), 5, seed=3)
    sampler.next()
    before, random = sampler.state(), torch.get_rng_state()
    ahead = drawn_ahead(pairs, sampler, workers)
    came = [next(ahead) for _ in range(6)]
    assert sampler.state() == before
    assert torch.equal(random, torch.get_rng_state())
    for source, target in came:
        first = sampler.shown
        indices = sampler.next().numpy()
        wanted = pairs.draw(indices, np.arange(first, first + 5))
        assert np.array_equal(source, wanted[0])
        assert np.array_equal(target, wanted[1])


class Broken:
    def __len__(self):
        return 8

    def draw(self, indices, turns):
        raise ValueError("no such image")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_reaches_the_run(workers):
    with pytest.raises(ValueError, match="no such image"):
        next(drawn_ahead(Broken(), Sampler(8, 2, seed=0), workers))


def test_a_run_with_workers_resumed_is_the_run_without(tmp_path):
    recipe = shrunk_pairs("pix2pix", "holes", total_kimg=1.0, perceptual_weight=0.0)
    alone = tiny_pair_trainer(tmp_path / "alone", "pix2pix", recipe)
    begun = tiny_pair_trainer(tmp_path / "begun", "pix2pix", recipe, workers=1)
    for _ in range(4):
        alone.step()
    for _ in range(2):
        begun.step()
    checkpoint.save(tmp_path / "last.pt", begun.state())
    # The same trainer, moved on and back again: what was drawn ahead must be forgotten.
    begun.step()
    begun.restore(checkpoint.load(tmp_path / "last.pt"))
    for _ in range(2):
        begun.step()
    assert differing(alone.state(), begun.state()) == []
