"""Walks over a file's structure, one format each: sizes, frames and metadata, without decoding anything.

Each takes the whole file and the limits, checks the picture's size as soon as it is known, and answers a `Header`.
None keeps more than a few integers; all raise only the domain's own errors.
"""

from service.imaging.walks.avif import walk_avif
from service.imaging.walks.jpeg import walk_jpeg
from service.imaging.walks.raster import walk_bmp, walk_gif, walk_png
from service.imaging.walks.tiff import walk_tiff
from service.imaging.walks.webp import walk_webp

__all__ = ["walk_avif", "walk_bmp", "walk_gif", "walk_jpeg", "walk_png", "walk_tiff", "walk_webp"]
