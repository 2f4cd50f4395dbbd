"""Where images come from: named public sets, and a user's own folders, zips and IDX files."""

from training.datasets.errors import DataError
from training.datasets.imageset import SIDE_MOST, ImageSet, channels_of, load
from training.datasets.pairset import PairOptions, PairSet, load_pairs
from training.datasets.report import DataReport

__all__ = [
    "SIDE_MOST",
    "DataError",
    "DataReport",
    "ImageSet",
    "PairOptions",
    "PairSet",
    "channels_of",
    "load",
    "load_pairs",
]
