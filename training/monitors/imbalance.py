"""Imbalance: the discriminator tells nearly every pair apart, and the generator no longer catches up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.runlog import Event


@dataclass
class Imbalance:
    """Speaks once D has ranked more than `strong` of real and fake pairs rightly for `rows` rows.

    Raise `r1_gamma` (and `r2_gamma`), lower D's learning rate, or augment; small data sets end so when D knows them by
    heart. It speaks again only after a recovery. A D that is too weak is not told by this figure: against a perfect
    generator it would guess, too.

    Args:
        strong: of all pairs; the run of faces-32 went from 0.87 to 0.94 while its figures stood still.
        rows: for how many rows in a row.
        warmup: rows that are passed over: at first D wins against anything.
    """

    strong: float = 0.985
    rows: int = 4
    warmup: int = 4
    _count: int = 0
    _strong: int = 0

    def observe(self, kimg: float, stats: Mapping[str, float]) -> Sequence[Event]:
        """See `training.trainer.Monitor`."""
        value = stats.get("pair_accuracy")
        if value is None or value != value:
            return []
        self._count += 1
        self._strong = self._strong + 1 if self._count > self.warmup and value > self.strong else 0
        if self._strong != self.rows:
            return []
        message = f"the discriminator ranks {value:.1%} of real and fake pairs rightly: it is too strong"
        return [Event("imbalance", "warning", message, {"pair_accuracy": value})]
