"""An upload's bytes to uint8 pixels, with nothing taken on trust.

The type is told from the bytes; a walk over the file's structure holds sizes, frames and metadata against the limits;
only then does Pillow decode, with no other format to fall back on. Called from worker threads; the decoders release the
GIL. Whatever is wrong with the bytes is one of three errors: `ImageUnreadable`, `ImageTypeUnknown`, `ImageTooLarge`.
"""

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

from service.errors import GanymedeError, ImageTypeUnknown
from service.imaging import walks
from service.imaging.limits import Header, Limits, too_large, unreadable
from service.imaging.pixels import Pixels, read_pixels
from service.imaging.walks.raster import without_text

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MEDIA_TYPES = {
    "PNG": ("image/png", "image/apng", "image/x-png"),
    "JPEG": ("image/jpeg", "image/jpg", "image/pjpeg"),
    "WEBP": ("image/webp",),
    "GIF": ("image/gif",),
    "TIFF": ("image/tiff", "image/x-tiff"),
    "BMP": ("image/bmp", "image/x-bmp", "image/x-ms-bmp"),
    "AVIF": ("image/avif",),
}
"""The formats that are read, and the media types that may be declared for each, the registered one first."""

_WALKS: dict[str, Callable[[memoryview, Limits], Header]] = {
    "PNG": walks.walk_png,
    "JPEG": walks.walk_jpeg,
    "WEBP": walks.walk_webp,
    "GIF": walks.walk_gif,
    "TIFF": walks.walk_tiff,
    "BMP": walks.walk_bmp,
    "AVIF": walks.walk_avif,
}
_log = logging.getLogger(__name__)

warnings.filterwarnings("ignore", module=r"PIL\.")  # of large pictures and odd metadata: the limits have settled both


@dataclass(frozen=True)
class Decoded:
    """An upload's first frame, upright, in sRGB.

    `rgb` is [H, W, 3] uint8; `alpha` [H, W] uint8, or None for a picture without transparency.
    """

    rgb: Pixels
    alpha: Pixels | None
    header: Header


def sniff(data: bytes | memoryview) -> str:
    """The format that the first bytes tell.

    Raises:
        ImageTypeUnknown: none that is read here; `allowed` lists those.
    """
    head = bytes(data[:32])
    for fmt, magic in (("PNG", b"\x89PNG\r\n\x1a\n"), ("JPEG", b"\xff\xd8\xff"), ("BMP", b"BM")):
        if head.startswith(magic):
            return fmt
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"miaf") and b"avi" in bytes(data[8:64]):
        return "AVIF"
    given = "is empty" if not head else "is of no type that is read here"
    allowed = [types[0] for types in MEDIA_TYPES.values()]
    raise ImageTypeUnknown(f"image: the file {given}; send {', '.join(MEDIA_TYPES)}", field="image", allowed=allowed)


def inspect(data: bytes | memoryview, limits: Limits, declared: str | None = None) -> Header:
    """Everything that can be said against a file without decoding it: milliseconds, and a few kB of memory.

    Args:
        declared: the media type that came with it; where that is an image's, it must be the right one.

    Raises:
        ImageTypeUnknown, ImageUnreadable, ImageTooLarge: with the reason.
    """
    view = memoryview(data)
    if len(view) > limits.max_bytes:
        raise too_large(f"has {len(view)} bytes, at most {limits.max_bytes}")
    fmt = sniff(view)
    media_type = (declared or "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") and media_type not in ("image/*", *MEDIA_TYPES[fmt]):
        detail = f"image: declared as {media_type[:60]}, but the bytes are {fmt}"
        raise ImageTypeUnknown(detail, field="image", allowed=[MEDIA_TYPES[fmt][0]])
    return _WALKS[fmt](view, limits)


def decode(data: bytes | memoryview, limits: Limits, declared: str | None = None) -> Decoded:
    """Check, then decode the first frame.

    Raises:
        ImageTypeUnknown, ImageUnreadable, ImageTooLarge: and nothing else, whatever the bytes are.
    """
    header = inspect(data, limits, declared)
    return decode_walked(data, header, limits)


def decode_walked(data: bytes | memoryview, header: Header, limits: Limits) -> Decoded:
    """Decode a file that `inspect` has passed."""
    from PIL import UnidentifiedImageError

    content = without_text(memoryview(data)) if header.fmt == "PNG" else memoryview(data)
    try:
        with _open(content, header, limits) as picture:
            rgb, alpha = read_pixels(picture, lambda: _open(content, header, limits))
    except GanymedeError:
        raise
    except UnidentifiedImageError:
        raise unreadable(f"is a {header.fmt} of a kind that is not read, or malformed") from None
    except MemoryError:
        raise too_large(f"is {header.width}x{header.height} pixels, more than there is memory for") from None
    except Exception as error:  # decoders of hostile bytes raise whatever they like
        _log.debug("an upload was not decoded", exc_info=error)
        raise unreadable(f"is a malformed {header.fmt}: {str(error)[:200] or type(error).__name__}") from None
    return Decoded(rgb, alpha, header)


class _Reader(io.RawIOBase):
    """A file over bytes that lie elsewhere: a copy of megabytes would keep every other thread waiting."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        stop = len(self._view) if size is None or size < 0 else min(len(self._view), self._at + size)
        piece = bytes(self._view[self._at : stop])
        self._at = max(self._at, stop)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        if start + offset < 0:
            raise OSError("a place before the file's start")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at


def _open(content: memoryview, header: Header, limits: Limits) -> "Picture":
    from PIL import Image

    picture = Image.open(cast(IO[bytes], _Reader(content)), formats=[header.fmt])
    if header.fmt != "AVIF" and {*picture.size} != {header.width, header.height} and header.fmt != "GIF":
        picture.close()
        raise unreadable(f"is malformed: its parts say {header.width}x{header.height} and {picture.size}")
    limits.check_size(*picture.size)
    return picture
