"""All formats: shapes, marks, determinism; and the grid."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from service.engine.resample import on_white
from service.imaging import FORMATS, EncodeOptions, Provenance, compose_grid, encode, encoder_version
from service.imaging.provenance import DIGITAL_SOURCE_TYPE, plain_chunks

MARK = Provenance({"model": "faces@1", "seed": 7, "label": "Čepice", "truncation": 0.5})


def smooth(channels: int) -> np.ndarray:
    y, x = np.mgrid[:24, :32]
    return np.stack([np.asarray(x * 4 + y * 2 + 20 * c, np.uint8) for c in range(channels)], axis=-1)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, None])
@pytest.mark.parametrize("label", [None, "Sneaker", 'Č "100 %s"'])
def test_plain_marks_are_the_recipe_s(seed, label):
    named = {} if label is None else {"label": label}
    for truncation in (1.0, 0.0, -0.0, 0.5, 1e-7):  # 0.0 and -0.0 are equal, and not written alike
        recipe = {"model": "faces@1", "seed": seed, **named, "truncation": truncation}
        assert [*plain_chunks("faces@1", seed, label, truncation)] == Provenance(recipe).png_chunks()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_format_holds_every_kind_of_picture(fmt, channels):
    image = smooth(channels)
    read = opened(encode(image, fmt))
    assert (read.size, Image.MIME[read.format]) == ((32, 24), FORMATS[fmt])
    if channels < 4:
        wanted = np.repeat(image, 3, axis=2) if channels == 1 else image
        difference = np.abs(np.asarray(read.convert("RGB"), np.int16) - wanted)
        assert difference.mean() <= (0 if fmt == "png" else 6)


def test_jpeg_lays_alpha_on_white():
    image = np.zeros((16, 16, 4), np.uint8)
    assert np.asarray(opened(encode(image, "jpeg"))).min() >= 250
    image[:, :, 3] = 255
    assert np.asarray(opened(encode(image, "jpeg"))).max() <= 5


@pytest.mark.parametrize("fmt", FORMATS)
def test_marks_say_who_made_it_and_how(fmt):
    read = opened(encode(smooth(3), fmt, MARK))
    xmp = read.info["xmp"].decode()
    assert DIGITAL_SOURCE_TYPE in xmp
    if fmt == "png":
        text = read.text["ganymede"]
    else:
        comment = read.getexif().get_ifd(0x8769)[0x9286]
        assert comment.startswith(b"ASCII\0\0\0")
        text = comment[8:].decode()
    assert json.loads(text) == MARK.recipe


@pytest.mark.parametrize("recipe", [{}, {"model": "faces@1", "seed": 7}, {"label": "x" * 5000}])
def test_exif_is_what_pillow_would_write(recipe):
    marks = Provenance(recipe)
    read = Image.Exif()
    read.load(marks.exif())
    assert dict(read) == {0x0131: "ganymede", 0x8769: read[0x8769]}
    assert dict(read.get_ifd(0x8769)) == {0x9286: b"ASCII\0\0\0" + marks.text().encode()}
    again = Image.Exif()
    again[0x0131] = "ganymede"
    again.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + marks.text().encode()
    by_pillow = again.tobytes()
    assert len(marks.exif()) == len(by_pillow)
    assert sum(a != b for a, b in zip(marks.exif(), by_pillow, strict=True)) <= 1  # the type: UNDEFINED, as EXIF wants


@pytest.mark.parametrize("fmt", FORMATS)
def test_without_marks_nothing_is_said(fmt):
    read = opened(encode(smooth(3), fmt))
    assert "xmp" not in read.info and not read.getexif() and not getattr(read, "text", {})


@pytest.mark.parametrize("fmt", FORMATS)
def test_bytes_are_deterministic(fmt):
    assert encode(smooth(3), fmt, MARK) == encode(smooth(3).copy(), fmt, MARK)


@pytest.mark.parametrize("fmt", ["jpeg", "webp"])
def test_quality_changes_size_and_version(fmt):
    low, high = EncodeOptions(jpeg_quality=20, webp_quality=20), EncodeOptions(jpeg_quality=95, webp_quality=95)
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    assert len(encode(noise, fmt, options=low)) < len(encode(noise, fmt, options=high))
    assert encoder_version(fmt, low) != encoder_version(fmt, high)


@pytest.mark.parametrize("fmt", ["gif", "", "PNG"])
def test_other_formats_are_refused(fmt):
    with pytest.raises(ValueError, match="must be one of png, jpeg, webp"):
        encode(smooth(3), fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_two_channels_are_refused(fmt):
    with pytest.raises(ValueError, match="uint8"):
        encode(np.zeros((4, 4, 2), np.uint8), fmt)


@pytest.mark.parametrize("count, rows, columns", [(1, 1, 1), (2, 1, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4)])
def test_grid_holds_every_picture_in_order(count, rows, columns):
    images = np.random.RandomState(1).randint(0, 256, (count, 5, 7, 3)).astype(np.uint8)
    grid = compose_grid(images)
    assert grid.shape == (rows * 7 - 2, columns * 9 - 2, 3)
    for index, image in enumerate(images):
        top, left = (index // columns) * 7, (index % columns) * 9
        np.testing.assert_array_equal(grid[top : top + 5, left : left + 7], image)


def test_grid_leaves_the_rest_white_or_clear():
    rgb = compose_grid(np.zeros((3, 4, 4, 3), np.uint8))
    assert (rgb[6:, 6:] == 255).all() and (rgb[:, 4:6] == 255).all()
    assert (compose_grid(np.full((3, 4, 4, 4), 255, np.uint8))[6:, 6:, 3] == 0).all()


def test_alpha_is_laid_on_white_row_by_row_of_whatever_height():
    image = np.random.RandomState(4).randint(0, 256, (600, 3, 4)).astype(np.uint8)
    alpha = image[:, :, 3:].astype(np.float64) / 255
    wanted = image[:, :, :3] * alpha + 255 * (1 - alpha)
    assert np.abs(on_white(image[:, :, :3], image[:, :, 3]) - wanted).max() <= 0.5 + 1e-9
