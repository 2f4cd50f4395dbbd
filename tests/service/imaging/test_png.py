"""The PNG writer against two readers, on random, flat and smooth pictures of every odd size."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pngreader import read_png

from service.imaging import png
from service.imaging.png import encode_png, international_chunk, text_chunk


def picture(height: int, width: int, channels: int, kind: str, seed: int) -> np.ndarray:
    """A test picture; `smooth` has gradients as drawings do, `down` repeats rows so that Up wins, `across` columns."""
    rng = np.random.RandomState(seed)
    if kind == "noise":
        return rng.randint(0, 256, (height, width, channels)).astype(np.uint8)
    if kind == "flat":
        return np.full((height, width, channels), rng.randint(256), np.uint8)
    if kind == "down":
        return np.repeat(rng.randint(0, 256, (1, width, channels)), height, axis=0).astype(np.uint8)
    if kind == "across":
        return np.repeat(rng.randint(0, 256, (height, 1, channels)), width, axis=1).astype(np.uint8)
    y, x, c = np.mgrid[:height, :width, :channels]
    return ((x * 3 + y * 2 + c * 40) % 256).astype(np.uint8)


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()
        pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3, 4]),
    kind=st.sampled_from(["noise", "flat", "down", "across", "smooth"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_two_readers_see_the_same_pixels(height, width, channels, kind, seed):
    image = picture(height, width, channels, kind, seed)
    data = encode_png(image)
    np.testing.assert_array_equal(by_pillow(data), image)
    np.testing.assert_array_equal(read_png(data)[0], image)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["noise", "down", "across", "smooth"])
@pytest.mark.parametrize("size", [(65, 3), (3, 65), (66, 1), (67, 131), (200, 90)])
def test_tall_pictures_choose_a_filter(size, kind, channels):
    image = picture(*size, channels, kind, 3)
    data = encode_png(image)
    np.testing.assert_array_equal(by_pillow(data), image)
    np.testing.assert_array_equal(read_png(data)[0], image)


def filters_used(image: np.ndarray) -> set[int]:
    body = b"".join(body for kind, body in read_png(encode_png(image))[1] if kind == b"IDAT")
    return set(zlib.decompress(body)[:: 1 + image.shape[1] * image.shape[2]])


def test_the_better_filter_is_taken():
    assert filters_used(picture(128, 96, 3, "across", 1)) == {png._SUB}
    assert filters_used(picture(128, 96, 3, "down", 1)) == {png._UP}


def test_views_and_fortran_order_are_written_as_they_read():
    image = picture(20, 30, 3, "noise", 5)
    for view in (image[::2, ::3], np.asfortranarray(image), image[:, ::-1], image.transpose(1, 0, 2)):
        np.testing.assert_array_equal(by_pillow(encode_png(view)), view)


def test_the_same_picture_is_the_same_bytes():
    image = picture(70, 50, 3, "noise", 1)
    assert encode_png(image) == encode_png(image.copy())


def test_zlib_stands_in_where_isal_is_missing(monkeypatch):
    monkeypatch.setattr(png, "deflate", zlib)
    image = picture(33, 17, 4, "smooth", 0)
    np.testing.assert_array_equal(read_png(encode_png(image))[0], image)
    assert png.deflate_version().startswith("zlib-")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 1), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        encode_png(image)


def test_text_chunks_are_read_back():
    image = picture(5, 5, 1, "noise", 0)
    chunks = [
        text_chunk("plain", "a=1"),
        text_chunk("wide", "Čepice"),
        international_chunk("XML:com.adobe.xmp", "<x/>"),
    ]
    data = encode_png(image, chunks)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.text == {"plain": "a=1", "wide": "Čepice", "XML:com.adobe.xmp": "<x/>"}
    np.testing.assert_array_equal(read_png(data)[0], image)


@pytest.mark.parametrize("keyword, text", [("", "x"), ("k" * 80, "x"), ("k\n", "x"), ("k", "a\0b")])
def test_bad_text_is_refused(keyword, text):
    with pytest.raises(ValueError, match="keyword"):
        text_chunk(keyword, text)
