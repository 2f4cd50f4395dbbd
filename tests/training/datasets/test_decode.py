"""Every bad kind is repaired to the right pixels or refused by its name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tinyimages import pixels, png, rgb

from training.datasets import decode as module
from training.datasets.decode import Refused, decode
from training.datasets.report import REFUSALS, REPAIRS


def array(raw: bytes) -> np.ndarray:
    return np.asarray(decode(raw).image)


def test_a_clean_image_comes_back_unchanged() -> None:
    decoded = decode(png(rgb(1)))
    assert decoded.repairs == () and not decoded.grey
    assert np.array_equal(np.asarray(decoded.image), pixels(1))


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    decoded = decode(png(image))
    assert decoded.repairs == ("alpha",)
    assert np.asarray(decoded.image).tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_grey_with_alpha_counts_as_grey_too() -> None:
    decoded = decode(png(Image.new("LA", (3, 3), (90, 255))))
    assert decoded.grey and decoded.repairs == ("alpha",)
    assert np.unique(np.asarray(decoded.image)).tolist() == [90]


def test_palette_is_expanded_and_its_transparent_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert decode(png(image)).repairs == ("palette",)
    assert array(png(image)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    decoded = decode(png(image, transparency=1))
    assert decoded.repairs == ("palette", "alpha")
    assert np.asarray(decoded.image).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    decoded = decode(png(Image.fromarray(values)))
    assert decoded.repairs == ("16-bit",)
    assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 100, 255]


def test_16_bit_colour_is_named() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">3H", 257 * 10, 257 * 20, 257 * 30)
    raw = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    decoded = decode(raw)
    assert decoded.repairs == ("16-bit",)
    assert np.asarray(decoded.image).tolist() == [[[10, 20, 30]]]


def test_float_tiff_up_to_one_is_scaled_to_255() -> None:
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    decoded = decode(png(Image.fromarray(values), "TIFF"))
    assert decoded.repairs == ("16-bit",)
    assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_becomes_rgb() -> None:
    decoded = decode(png(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert decoded.repairs == ("cmyk",)
    red, green, blue = np.asarray(decoded.image).reshape(-1, 3).mean(0)
    assert red > 200 and green < 60 and blue < 60


def test_exif_orientation_turns_the_pixels() -> None:
    image = rgb(3, (4, 6))  # 4 rows, 6 columns
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned 90 degrees clockwise
    decoded = decode(png(image, exif=exif))
    assert decoded.repairs == ("rotated",)
    assert np.array_equal(np.asarray(decoded.image), np.rot90(pixels(3, (4, 6)), k=-1))


def test_of_several_frames_the_first_is_used() -> None:
    frames = [Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    decoded = decode(buffer.getvalue())
    assert "animated" in decoded.repairs
    assert np.unique(np.asarray(decoded.image)).tolist() == [10]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
        (png(rgb(5))[:400], "truncated"),
        (png(rgb(5), "JPEG")[:-60], "truncated"),
    ],
)
def test_what_cannot_be_used_has_a_kind(raw: bytes, kind: str) -> None:
    with pytest.raises(Refused) as refused:
        decode(raw)
    assert refused.value.kind == kind


def test_a_bomb_is_refused_before_its_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    raw = png(rgb(1))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", never)
    with pytest.raises(Refused) as refused:
        decode(raw)
    assert refused.value.kind == "bomb"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damage_anywhere_never_ends_in_another_exception(form: str) -> None:
    raw = png(rgb(7, (24, 24)), form)
    random = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(raw)
        for position in random.integers(0, len(raw), 4):
            broken[position] = random.integers(0, 256)
        try:
            decoded = decode(bytes(broken[: random.integers(1, len(raw) + 1)]))
        except Refused as refused:
            assert refused.kind in REFUSALS
        else:
            assert decoded.image.mode == "RGB" and set(decoded.repairs) <= set(REPAIRS)
