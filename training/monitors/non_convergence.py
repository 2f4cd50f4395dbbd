"""Non-convergence: evaluations no longer improve, or have become much worse than the best one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from training.runlog import Event


@dataclass
class NonConvergence:
    """Speaks when `patience` evaluations brought nothing better, and when the last two were `factor` times the best.

    The former may be the end of what the recipe can do; the latter is falling apart: go on from `best.pt` with a lower
    learning rate, a longer `ema_kimg` or larger penalties. Each is said once until a new best comes.

    Args:
        metric: the figure to be lowered.
        patience: evaluations.
        factor: of the best, where that is above `floor`.
        floor: below it the figure is noise.
        better: relative improvement that counts.
    """

    metric: str = "kid_lite0"
    patience: int = 6
    factor: float = 1.25
    floor: float = 0.01
    better: float = 0.01
    _seen: list[float] = field(default_factory=list)
    _best: int = 0
    _said: set[str] = field(default_factory=set)

    def observe(self, kimg: float, stats: Mapping[str, float]) -> Sequence[Event]:
        """See `training.trainer.Monitor`; rows without the metric are passed over."""
        value = stats.get(self.metric)
        if value is None or value != value:
            return []
        self._seen.append(value)
        best = self._seen[self._best]
        if value < best - self.better * abs(best):
            self._best, self._said = len(self._seen) - 1, set()
            return []
        since = self._seen[self._best + 1 :]
        evidence = {self.metric: value, "best": best, "evaluations_since": float(len(since))}
        bound = self.factor * max(best, self.floor)
        if len(since) >= 2 and min(since[-2:]) > bound and "worse" not in self._said:
            self._said.add("worse")
            message = f"{self.metric} is {value:.4g}, the best was {best:.4g}: the run is falling apart"
            return [Event("non_convergence", "warning", message, evidence)]
        if len(since) >= self.patience and "still" not in self._said:
            self._said.add("still")
            message = f"{self.metric} has not improved for {len(since)} evaluations (the best: {best:.4g})"
            return [Event("non_convergence", "warning", message, evidence)]
        return []
