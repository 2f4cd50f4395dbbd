"""What an upload may ask for, checked on its header: before a pixel is decoded, and before Pillow sees the file."""

from dataclasses import dataclass

from service.errors import ImageTooLarge, ImageUnreadable


@dataclass(frozen=True)
class Limits:
    """Bounds of one upload.

    Args:
        max_bytes: of the file.
        max_pixels: width x height.
        max_side: of the longer side, in pixels.
        max_aspect: the longer side as a multiple of the shorter.
        max_frames: of an animation, of which the first is used.
        max_profile_bytes: of the colour profile, and of all other metadata together.
        max_parts: chunks, segments, blocks or tags besides the pixels' own.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 40_000_000
    max_side: int = 16_384
    max_aspect: int = 5_000
    max_frames: int = 1_000
    max_profile_bytes: int = 4 << 20
    max_parts: int = 2_000

    def check_size(self, width: int, height: int) -> None:
        """Hold a picture's size against the bounds.

        Raises:
            ImageUnreadable: a side is 0.
            ImageTooLarge: names the bound.
        """
        if width < 1 or height < 1:
            raise unreadable(f"says that it is {width}x{height} pixels")
        if max(width, height) > self.max_side:
            raise too_large(f"is {width}x{height} pixels; a side may have {self.max_side}")
        if width * height > self.max_pixels:
            raise too_large(f"is {width}x{height}, {width * height} pixels; at most {self.max_pixels}")
        if max(width, height) > self.max_aspect * min(width, height):
            raise too_large(f"is {width}x{height} pixels; one side may be {self.max_aspect} times the other")

    def check_metadata(self, nbytes: int, what: str) -> None:
        """Hold a profile's or the other metadata's bytes against the bound."""
        if nbytes > self.max_profile_bytes:
            raise too_large(f"holds {nbytes} bytes of {what}, at most {self.max_profile_bytes}")

    def check_frames(self, frames: int) -> None:
        """Hold the number of an animation's frames against the bound."""
        if frames > self.max_frames:
            raise too_large(f"has more than {self.max_frames} frames")

    def check_parts(self, parts: int, what: str) -> None:
        """Hold the number of chunks or the like against the bound."""
        if parts > self.max_parts:
            raise too_large(f"has more than {self.max_parts} {what}")


@dataclass(frozen=True)
class Header:
    """What a file's header says. `fmt` is a key of `decode.MEDIA_TYPES`."""

    fmt: str
    width: int
    height: int
    frames: int = 1


def unreadable(detail: str) -> ImageUnreadable:
    """400: the file is not what its format asks for."""
    return ImageUnreadable(f"image: the file {detail}", field="image")


def too_large(detail: str) -> ImageTooLarge:
    """413: the file asks for more than a bound."""
    return ImageTooLarge(f"image: the file {detail}", field="image")


def check_rest(view: memoryview, at: int) -> None:
    """Refuse what follows the end of an image: a second file in the same bytes. Zeros are padding.

    Raises:
        ImageUnreadable: something follows.
    """
    rest = view[at:]
    for start in range(0, len(rest), 1 << 16):
        if any(bytes(rest[start : start + (1 << 16)])):
            raise unreadable(f"holds {len(rest)} more bytes behind the image's end; send the image alone")
