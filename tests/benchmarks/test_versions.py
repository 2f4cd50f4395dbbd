"""The benchmark of two versions counts what differs, and takes medians of times for an image."""

from pathlib import Path

import numpy as np

from benchmarks.versions import ROWS, Version, compared


class Canned(Version):
    """Draws what it is told to, in so many milliseconds an image."""

    def __init__(self, each_ms, off):
        self.each_ms, self.off, self.seen = each_ms, off, []

    def draw(self, seeds):
        self.seen.append(seeds)
        images = np.zeros((len(seeds), 2, 2, 1), np.uint8)
        images[0, 0, 0, 0] = self.off
        return images, self.each_ms * len(seeds)


def test_times_are_an_images_and_differing_values_are_counted():
    old, new = Canned(4.0, 0), Canned(3.0, 1)
    lines = compared(old, new, 5)
    assert [line[0] for line in lines] == [str(rows) for rows in ROWS]
    for rows, line in zip(ROWS, lines, strict=True):
        assert line[1:] == ["4.00", "3.00", "0.75", "5", str(5 * rows * 4)]
    assert old.seen == new.seen and len(set(old.seen)) == len(old.seen)


def test_a_version_is_what_its_package_holds():
    (manifest,) = Path("models").glob("faces-32/*/manifest.json")
    version = Version(manifest.parent)
    images, spent_ms = version.draw(range(2))
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8 and spent_ms > 0
