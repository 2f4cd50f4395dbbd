"""Whatever the bytes are, decoding ends in pixels or in one of the domain's errors."""

import gc
import resource

import numpy as np
import pytest
from uploads import mutated, seeds

from service.errors import ImageTooLarge, ImageTypeUnknown, ImageUnreadable
from service.imaging.decode import decode
from service.imaging.limits import Limits

SMALL = Limits(max_pixels=200_000, max_side=4_000)


def hunt(first: int, count: int) -> dict[str, int]:
    """Mutated files `first` to `first + count`: how each ended."""
    files = list(seeds().values())
    ends: dict[str, int] = {}
    for number in range(first, first + count):
        rng = np.random.RandomState(number)
        data = mutated(files[number % len(files)], rng)
        try:
            decoded = decode(data, SMALL)
        except (ImageTooLarge, ImageTypeUnknown, ImageUnreadable) as error:
            end = type(error).__name__
            assert error.field == "image" and error.detail.startswith("image: ")
        else:
            end = "decoded"
            assert decoded.rgb.dtype == np.uint8 and decoded.rgb.ndim == 3 and decoded.rgb.shape[2] == 3
            assert decoded.rgb.shape[0] * decoded.rgb.shape[1] <= SMALL.max_pixels
            assert decoded.alpha is None or decoded.alpha.shape == decoded.rgb.shape[:2]
        ends[end] = ends.get(end, 0) + 1
    return ends


def test_mutated_files_end_in_pixels_or_in_our_errors():
    ends = hunt(0, 2_000)
    assert set(ends) == {"decoded", "ImageTooLarge", "ImageTypeUnknown", "ImageUnreadable"}  # all four ways were taken


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(8))
def test_more_mutated_files_end_in_pixels_or_in_our_errors_and_leave_nothing_behind(part):
    hunt(2_000 + part * 2_500, 500)  # fills caches and arenas
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hunt(2_500 + part * 2_500, 2_000)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10
