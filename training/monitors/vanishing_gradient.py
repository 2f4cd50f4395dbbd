"""Vanishing gradient: the generator's gradient has become a small fraction of what it was early in the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from training.runlog import Event


@dataclass
class VanishingGradient:
    """Speaks once the generator's gradient was below `fraction` of its early median, and D certain, for `rows` rows.

    The minimax objective does this by itself: its gradient has the factor sigmoid(D(G(z))), whose mean is `saturation`.
    Use `non_saturating` or `relativistic`, or a stronger penalty. It speaks again only after a recovery.

    Args:
        fraction: of the early median.
        saturation: D is certain while the mean of sigmoid(D(G(z))) is below this.
        early: rows whose median is the measure.
        rows: for how many rows in a row it must have vanished.
    """

    fraction: float = 0.1
    saturation: float = 0.01
    early: int = 5
    rows: int = 2
    _first: list[float] = field(default_factory=list)
    _low: int = 0

    def observe(self, kimg: float, stats: Mapping[str, float]) -> Sequence[Event]:
        """See `training.trainer.Monitor`."""
        value = stats.get("gradient_generator")
        if value is None or value != value:
            return []
        if len(self._first) < self.early:
            self._first.append(value)
            return []
        usual = median(self._first)
        certain = stats.get("saturation", 0.0) < self.saturation
        self._low = self._low + 1 if certain and value < self.fraction * usual else 0
        if self._low != self.rows:
            return []
        evidence = {"value": value, "early_median": usual, "saturation": stats.get("saturation", float("nan"))}
        message = f"the generator's gradient is {value:.3g}, early in the run it was {usual:.3g}"
        return [Event("vanishing_gradient", "warning", message, evidence)]
