"""Series as text: Prometheus' text format 0.0.4, or OpenMetrics 1.0.

Written here because a scrape must not hold up the event loop: the usual library checks and escapes every label of every
line anew, ten times the cost.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Page:
    """A scrape's body in the making: `family` begins a series, the others add to it."""

    def __init__(self, *, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._lines: list[str] = []
        self._name = ""

    @property
    def content_type(self) -> str:
        """Of `body`."""
        return OPENMETRICS if self._openmetrics else TEXT

    def family(self, name: str, kind: str, text: str) -> None:
        """Begin a series.

        Args:
            name: in base units; a counter's without `_total`.
            kind: counter, gauge or histogram.
            text: what it says, in plain words without line breaks or backslashes.
        """
        self._name = f"{name}_total" if kind == "counter" else name
        told = name if self._openmetrics else self._name
        self._lines.append(f"# HELP {told} {text}\n# TYPE {told} {kind}\n")

    def sample(self, value: float, labels: str = "") -> None:
        """Add one value; `labels` from `labelled`."""
        self._lines.append(
            f"{self._name}{{{labels}}} {float(value)!r}\n" if labels else f"{self._name} {float(value)!r}\n"
        )

    def samples(self, values: Iterable[tuple[float, str]]) -> None:
        """Add values with their labels."""
        for value, labels in values:
            self.sample(value, labels)

    def histogram(self, bounds: Sequence[float], counts: Sequence[int], total: float, labels: str = "") -> None:
        """Add one histogram.

        Args:
            bounds: upper bounds, ascending, each bucket holding its own.
            counts: how many fell in each bucket, and one more for what lies above.
            total: the sum of what was counted.
        """
        name, begin, seen = self._name, f"{labels}," if labels else "", 0
        for bound, count in zip(bounds, counts, strict=False):
            seen += count
            self._lines.append(f'{name}_bucket{{{begin}le="{float(bound)!r}"}} {seen}.0\n')
        seen += counts[-1]
        end = f"{{{labels}}}" if labels else ""
        self._lines.append(f'{name}_bucket{{{begin}le="+Inf"}} {seen}.0\n')
        self._lines.append(f"{name}_count{end} {seen}.0\n{name}_sum{end} {float(total)!r}\n")

    def body(self) -> bytes:
        """The whole page."""
        return "".join([*self._lines, "# EOF\n"] if self._openmetrics else self._lines).encode()


@lru_cache(4096)
def labelled(**labels: str) -> str:
    """Labels as a sample has them between its braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
