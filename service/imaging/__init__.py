"""Bytes from uint8 HWC images: PNG, JPEG and WebP encoders, provenance marks, the grid composer."""

from service.imaging.encode import FORMATS, LONGEST_SIDE, EncodeOptions, check_side, encode, encoder_version
from service.imaging.grid import compose_grid
from service.imaging.png import encode_pngs
from service.imaging.provenance import Provenance, plain_chunks

__all__ = [
    "FORMATS", "LONGEST_SIDE", "EncodeOptions", "Provenance", "check_side", "compose_grid", "encode", "encode_pngs",
    "encoder_version", "plain_chunks",
]  # fmt: skip
