"""Mode collapse: generated images vary far less than real ones do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.runlog import Event


@dataclass
class Collapse:
    """Speaks once `diversity` has stayed below `least` for `rows` rows.

    `diversity` is the deviation of a batch's generated pixels over that of its real ones, which sees the whole of a
    collapse and not the loss of a few modes; recall and coverage in the evaluations see those. Go back to an earlier
    checkpoint, with `minibatch_stddev`, a larger `r1_gamma` or the relativistic objective. It speaks again only after a
    recovery.

    Args:
        least: 1 is as varied as real images; what is blurred, or not yet learnt, is a little below.
        rows: for how many rows in a row.
        warmup: rows that are passed over: untrained generators draw grey.
    """

    least: float = 0.35
    rows: int = 3
    warmup: int = 4
    _count: int = 0
    _low: int = 0

    def observe(self, kimg: float, stats: Mapping[str, float]) -> Sequence[Event]:
        """See `training.trainer.Monitor`."""
        value = stats.get("diversity")
        if value is None or value != value:
            return []
        self._count += 1
        self._low = self._low + 1 if self._count > self.warmup and value < self.least else 0
        if self._low != self.rows:
            return []
        message = f"generated images vary by {value:.2f} of what real ones do"
        return [Event("collapse", "warning", message, {"diversity": value})]
