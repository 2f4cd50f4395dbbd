"""Pairs made ahead of time: damage and crops cost the processor milliseconds an image, for which a GPU would wait."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from training.datasets.pairs import Pairs
from training.sampler import Sampler

Drawn = tuple[NDArray[np.uint8], NDArray[np.uint8]]
AHEAD = 4
"""Batches that each worker has ready."""


def drawn_ahead(pairs: Pairs, sampler: Sampler, workers: int) -> Iterator[Drawn]:
    """The batches that `sampler` will ask for from where it stands, in order, without end.

    What comes does not depend on `workers`: a pair is made of its index and its turn alone. The sampler given is not
    moved.

    Args:
        workers: processes that make them; 0 makes each when it is asked for.

    Returns:
        Sources [B, h, w, C] and targets [B, H, W, 3] uint8, one batch at a time.
    """
    loader = DataLoader(
        _Batches(pairs), batch_size=None, sampler=_Turns(sampler), num_workers=workers, collate_fn=_as_it_is,
        prefetch_factor=AHEAD if workers else None,
        generator=torch.Generator(),  # its own: else beginning would move the run's random numbers
    )  # fmt: skip
    return iter(loader)


class _Turns:
    """(indices, turns) of the batches to come: of a copy of the sampler."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = Sampler(sampler.count, sampler.batch_size, sampler.seed)
        self.sampler.restore(sampler.state())

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        while True:
            first = self.sampler.shown
            indices = self.sampler.next().numpy()
            yield indices, np.arange(first, first + len(indices))


class _Batches(Dataset[Drawn]):
    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitem__(self, batch: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Drawn:
        return self.pairs.draw(*batch)


def _as_it_is(batch: Any) -> Any:
    return batch
