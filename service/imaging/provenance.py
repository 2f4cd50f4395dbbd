"""Marks inside the files: that a model made the picture (IPTC digital source type, XMP), and how to make it again.

The IPTC term is what AI transparency rules ask machines to read; `ganymede` holds model, seed, label and truncation as
JSON. Deterministic: no dates, so the same picture stays the same bytes.
"""

import json
import struct
from dataclasses import dataclass
from functools import lru_cache

from service.imaging.png import Chunk, chunk, text_chunk

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)

_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_text = json.encoder.encode_basestring_ascii
_XMP_CHUNK = text_chunk("XML:com.adobe.xmp", XMP)
_KEYWORD = b"ganymede\0"
_SOFTWARE_TAG, _EXIF_IFD, _USER_COMMENT = 0x0131, 0x8769, 0x9286


def _json(value: object) -> str:
    """As the encoder writes it, which takes longer to begin than a recipe's plain values take to write."""
    if type(value) is int or (type(value) is float and -1e15 < value < 1e15):
        return repr(value)
    return _text(value) if type(value) is str else _compact(value)


@lru_cache(256)
def _template(names: tuple[str, ...]) -> str:
    """An object of these names with a place for each value: nearly all recipes have the same."""
    return "{" + ",".join([_text(name).replace("%", "%%") + ":%s" for name in names]) + "}"


@dataclass(frozen=True)
class Provenance:
    """What a file says about itself. `recipe` must be JSON: model, seed, label, truncation."""

    recipe: dict[str, object]

    def text(self) -> str:
        """The recipe as compact ASCII JSON, keys in the order given."""
        return _template(tuple(self.recipe)) % tuple([_json(value) for value in self.recipe.values()])

    def png_chunks(self) -> list[Chunk]:
        """XMP as iTXt and the recipe as tEXt `ganymede`."""
        return [_XMP_CHUNK, chunk(b"tEXt", _KEYWORD + self.text().encode("ascii"))]

    def exif(self) -> bytes:
        """EXIF with the recipe as UserComment, for JPEG and WebP."""
        comment = b"ASCII\0\0\0" + self.text().encode("ascii")
        return (
            _EXIF_HEAD + struct.pack(">HHII", _USER_COMMENT, _UNDEFINED, len(comment), _EXIF_SIZE) + b"\0" * 4 + comment
        )


def plain_chunks(model: str, seed: int | None, label: str | None, truncation: float) -> tuple[Chunk, Chunk]:
    """What `Provenance.png_chunks` gives for model, seed, label (none where it is None) and truncation alone.

    Nearly every picture is marked so, and but for the seed like the one before.
    """
    before, after = _around_seed(model, label, repr(truncation))  # by its text: 0.0 and -0.0 are equal
    return _XMP_CHUNK, chunk(b"tEXt", b"%b%b%b" % (before, b"null" if seed is None else b"%d" % seed, after))


@lru_cache(256)
def _around_seed(model: str, label: str | None, truncation: str) -> tuple[bytes, bytes]:
    named = "" if label is None else f',"label":{_text(label)}'
    before, after = f'{{"model":{_text(model)},"seed":', f'{named},"truncation":{truncation}}}'
    return _KEYWORD + before.encode("ascii"), after.encode("ascii")


_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_NAME = b"ganymede\0\0"  # with its end, and one more to an even length
_FIRST = 8  # of the main directory, counted from the TIFF header: 2 entries of 12 bytes between their number and a link
_SECOND = _FIRST + 2 + 2 * 12 + 4 + len(_NAME)  # of the EXIF directory, with one entry
_EXIF_SIZE = _SECOND + 2 + 12 + 4
_EXIF_HEAD = b"".join(
    (
        b"Exif\0\0",
        struct.pack(">2sHIH", b"MM", 42, _FIRST, 2),
        struct.pack(">HHII", _SOFTWARE_TAG, _ASCII, len(_NAME) - 1, _SECOND - len(_NAME)),
        struct.pack(">HHIII", _EXIF_IFD, _LONG, 1, _SECOND, 0),
        _NAME,
        struct.pack(">H", 1),
    )
)
"""Everything before the comment's entry, the same in every file. Pillow takes 90 microseconds to build it anew."""
