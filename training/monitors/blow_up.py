"""Numerical blow-up: a loss or gradient that is not finite, or a gradient a thousand times its usual size."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from training.runlog import Event


@dataclass
class BlowUp:
    """Speaks at once on a non-finite scalar, and on a gradient norm above `factor` times its running median.

    Args:
        factor: how far above the median a gradient norm must be; healthy runs stay below 30.
        window: rows of stats in the median.
    """

    factor: float = 1000.0
    window: int = 50
    _seen: dict[str, deque[float]] = field(default_factory=dict)

    def observe(self, kimg: float, stats: Mapping[str, float]) -> Sequence[Event]:
        """See `training.trainer.Monitor`."""
        events = []
        for name, value in stats.items():
            if value != value or value in (float("inf"), float("-inf")):
                left_out = "; its steps were left out" if name.startswith("gradient_") else ""
                message = f"{name} is not finite{left_out}"
                events.append(Event("blow_up", "error", message, {"kimg": kimg}))
                continue
            if not name.startswith("gradient_"):
                continue
            seen = self._seen.setdefault(name, deque(maxlen=self.window))
            if len(seen) >= 5 and value > self.factor * max(median(seen), 1e-12):
                evidence = {"value": value, "median": median(seen)}
                events.append(
                    Event("blow_up", "warning", f"{name} is {value:.3g}, usually {median(seen):.3g}", evidence)
                )
            seen.append(value)
        return events
