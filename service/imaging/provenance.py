"""Marks inside the files: that a model made the picture (IPTC digital source type, XMP), and how to make it again.

The IPTC term is what AI transparency rules ask machines to read; `ganymede` holds model, seed, label and truncation as
JSON. Deterministic: no dates, so the same picture stays the same bytes.
"""

import json
from dataclasses import dataclass

from service.imaging.png import Chunk, international_chunk, text_chunk

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)

_compact = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make an encoder for each picture
_XMP_CHUNK = international_chunk("XML:com.adobe.xmp", XMP)
_SOFTWARE_TAG, _EXIF_IFD, _USER_COMMENT = 0x0131, 0x8769, 0x9286


@dataclass(frozen=True)
class Provenance:
    """What a file says about itself. `recipe` must be JSON: model, seed, label, truncation."""

    recipe: dict[str, object]

    def text(self) -> str:
        """The recipe as compact ASCII JSON, keys in the order given."""
        return _compact(self.recipe)

    def png_chunks(self) -> list[Chunk]:
        """XMP as iTXt and the recipe as tEXt `ganymede`."""
        return [_XMP_CHUNK, text_chunk("ganymede", self.text())]

    def exif(self) -> bytes:
        """EXIF with the recipe as UserComment, for JPEG and WebP."""
        from PIL import Image

        exif = Image.Exif()
        exif[_SOFTWARE_TAG] = "ganymede"
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"ASCII\0\0\0" + self.text().encode("ascii")
        return exif.tobytes()
