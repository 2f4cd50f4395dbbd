"""Bytes from uint8 HWC images: PNG, JPEG and WebP encoders, provenance marks, the grid composer."""

from service.imaging.encode import FORMATS, EncodeOptions, encode, encoder_version
from service.imaging.grid import compose_grid
from service.imaging.provenance import Provenance

__all__ = ["FORMATS", "EncodeOptions", "Provenance", "compose_grid", "encode", "encoder_version"]
