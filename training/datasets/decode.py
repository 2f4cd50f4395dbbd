"""One file's bytes to pixels: every repair is named, every refusal has a kind."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # 300 MB as RGB; a larger one is a bomb or does not belong into a training set
EXIF_ORIENTATION = 0x0112
# Named, because Pillow knows formats that start other programs (PostScript) or that fetch more files.
WANTED = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")

Image.init()
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)


class Refused(Exception):
    """The file cannot be used; `kind` is a key of report.REFUSALS."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True)
class Decoded:
    """An upright 8-bit RGB image at full size, and what had to be done to get it.

    Attributes:
        grey: whether the file holds grey pixels only by its mode.
        repairs: keys of report.REPAIRS; size and grey among colour are judged later.
    """

    image: Image.Image
    grey: bool
    repairs: tuple[str, ...]


def decode(raw: bytes) -> Decoded:
    """Decode one image file.

    Raises:
        Refused: not an image, empty, truncated, broken, or larger than MAX_PIXELS.
    """
    if not raw:
        raise Refused("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of metadata oddities; MAX_PIXELS is checked here
            image = Image.open(io.BytesIO(raw), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Refused("bomb")
            return _repaired(image)
    except Refused:
        raise
    except UnidentifiedImageError:
        raise Refused("not-an-image") from None
    except (Image.DecompressionBombError, MemoryError):
        raise Refused("bomb") from None
    except (
        Exception
    ) as problem:  # decoders fed with broken bytes raise nearly anything, and one file must not end a run
        raise Refused("truncated" if "truncated" in str(problem).lower() else "broken") from None


def _repaired(image: Image.Image) -> Decoded:
    repairs = []
    if getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "ICO"):
        repairs.append("animated")
        image.seek(0)
    if any(
        ";16" in str(tile) for tile in getattr(image, "tile", ())
    ):  # Pillow reads 16-bit RGB as 8-bit without a word
        repairs.append("16-bit")
    image.load()
    if image.getexif().get(EXIF_ORIENTATION, 1) not in (0, 1):
        repairs.append("rotated")
        image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        repairs.append("palette")
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
        repairs += [] if "16-bit" in repairs else ["16-bit"]
    if "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert("RGBA")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        repairs.append("alpha")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        repairs.append("cmyk")
    return Decoded(image.convert("RGB"), grey, tuple(repairs))


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a grey image of integers or floats to 8 bits: 16-bit values by 257, floats up to 1 by 255."""
    values = np.asarray(image).astype(np.float64)
    top = float(np.nanmax(values, initial=0.0))
    if image.mode == "F":
        scale = 255.0 if top <= 1.0 else 1.0
    else:
        scale = 1 / 257 if image.mode.startswith("I;16") or top > 255 else 1.0
    levels: NDArray[np.uint8] = np.clip(np.rint(np.nan_to_num(values) * scale), 0, 255).astype(np.uint8)
    return Image.fromarray(levels)
