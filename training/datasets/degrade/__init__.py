"""Degradations by name: what makes a pair out of one clean image, on line.

Every one is a pure function of the clean pixels and a random generator, so a pair depends on its seed and index alone.
Those with `unseen` have a second generator of the same kind of damage, written apart with other means, which no recipe
may train on: it measures what a model does with damage that it has never met.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.datasets.degrade import colour, damage, resolution, weather
from training.datasets.errors import DataError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Degradation:
    """One way to make a pair.

    Attributes:
        apply: clean pixels uint8 [H, W, 3] and a generator to the other side of the pair, uint8 [H, W, 3]; with `mask`
            [H, W, 4], whose last channel is 255 where pixels are missing; with `scales` also takes the factor and
            answers [H / scale, W / scale, 3].
        about: what it does, for people.
        scales: whether it makes the image smaller.
        mask: whether the input carries a mask.
        target: the damaged side is what is to be learnt, not the input (day to night).
        unseen: name of the test-only generator of the same damage.
        test_only: never trained on.
    """

    name: str
    about: str
    apply: Callable[..., Pixels]
    scales: bool = False
    mask: bool = False
    target: bool = False
    unseen: str | None = None
    test_only: bool = False


DEGRADATIONS: Mapping[str, Degradation] = {
    kind.name: kind
    for kind in (
        Degradation("bicubic", "smaller by the scale, bicubic with anti-aliasing", resolution.bicubic, scales=True),
        Degradation(
            "realistic", "smaller by the scale after blur, then noise and JPEG", resolution.realistic, scales=True
        ),
        Degradation(
            "holes", "missing strokes and boxes, told by a mask", damage.holes, mask=True, unseen="holes-unseen"
        ),
        Degradation("holes-unseen", "missing blobs", damage.holes_unseen, mask=True, test_only=True),
        Degradation("weather", "rain or snow", weather.weather, unseen="weather-unseen"),
        Degradation("weather-unseen", "rain or snow, drawn", weather.weather_unseen, test_only=True),
        Degradation("rain", "streaks of rain: smeared noise", weather.rain, unseen="rain-unseen"),
        Degradation("rain-unseen", "streaks of rain: drawn lines", weather.rain_unseen, test_only=True),
        Degradation("snow", "snow: blurred noise", weather.snow, unseen="snow-unseen"),
        Degradation("snow-unseen", "snow: drawn flakes", weather.snow_unseen, test_only=True),
        Degradation("old", "an old print: scratches, dust, fading, grain", damage.old, unseen="old-unseen"),
        Degradation("old-unseen", "an old print: cracks, stains, yellowing", damage.old_unseen, test_only=True),
        Degradation("grey", "luminance alone", colour.grey),
        Degradation("sketch", "a line drawing of the picture", colour.sketch),
        Degradation("night", "a synthetic night: dark, blue, lights kept", colour.night, target=True),
    )
}


def degradation(name: str) -> Degradation:
    """The degradation of that name.

    Raises:
        DataError: there is none.
    """
    if name not in DEGRADATIONS:
        known = ", ".join(known for known, kind in DEGRADATIONS.items() if not kind.test_only)
        raise DataError(f"degradation is {name!r}, must be one of {known}")
    return DEGRADATIONS[name]
