"""Which training images come next: shuffled anew each epoch, the same for the same seed, resumable anywhere."""

import numpy as np
import torch


class Sampler:
    """Endless batches of indices into `count` images.

    Every epoch is a fresh permutation that depends on `seed` and the epoch alone. Batches may straddle epochs, so all
    images are shown equally often and no batch is short.

    Args:
        count: number of training images.
        batch_size: indices a call.
        seed: of the permutations.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise ValueError(f"count is {count}, must be at least 1")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.shown = 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def next(self) -> torch.Tensor:
        """The next `batch_size` indices, [batch_size] int64."""
        parts, wanted = [], self.batch_size
        while wanted:
            epoch, position = divmod(self.shown, self.count)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
            part = self._order[position : position + wanted]
            parts.append(part)
            self.shown += len(part)
            wanted -= len(part)
        return torch.cat(parts)

    def state(self) -> dict[str, int]:
        """Where it stands, for a checkpoint."""
        return {"count": self.count, "seed": self.seed, "shown": self.shown}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from `state`.

        Raises:
            ValueError: the state is of other data or another seed.
        """
        if (state["count"], state["seed"]) != (self.count, self.seed):
            raise ValueError(
                f"the checkpoint saw {state['count']} images with seed {state['seed']}, "
                f"this run has {self.count} with seed {self.seed}"
            )
        self.shown = state["shown"]


def labels_like(count: int, trained: np.ndarray, classes: int) -> np.ndarray:
    """Classes [count] int64 to draw, as often as training labels [N] have them: a set in which one is rare would be
    held against drawings in which none is."""
    shares = np.bincount(trained, minlength=classes)
    if (shares == shares[0]).all():
        return np.arange(count, dtype=np.int64) % classes
    ordered = np.sort(trained)
    picked = ordered[((np.arange(count) + 0.5) * len(ordered) / count).astype(np.int64)]
    return np.random.RandomState(0).permutation(picked).astype(np.int64)
