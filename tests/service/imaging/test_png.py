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
from service.imaging.png import encode_png, text_chunk

KINDS = ["noise", "flat", "dark", "mixed", "down", "across", "smooth"]


def picture(height: int, width: int, channels: int, kind: str, seed: int) -> np.ndarray:
    """A test picture.

    `smooth` has gradients, `dark` is black with dots, `down` repeats rows so that Up wins, `across` columns, `mixed`
    some rows of both.
    """
    rng = np.random.RandomState(seed)
    if kind == "noise":
        return rng.randint(0, 256, (height, width, channels)).astype(np.uint8)
    if kind == "flat":
        return np.full((height, width, channels), rng.randint(256), np.uint8)
    if kind == "dark":
        return (rng.randint(0, 256, (height, width, channels)) * (rng.rand(height, width, 1) < 0.2)).astype(np.uint8)
    if kind == "mixed":
        halves = [picture(height, width, channels, half, seed) for half in ("down", "across")]
        return np.where(np.arange(height)[:, None, None] % 7 < 3, *halves)
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


def two_readers_agree(examples: int, monkeypatch: pytest.MonkeyPatch, *, seeded: bool) -> None:
    """Random pictures, each by the usual limits or by ones so low that small pictures too are filtered in bands."""

    @settings(max_examples=examples, deadline=None, derandomize=seeded, database=None)
    @given(
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        channels=st.sampled_from([1, 3, 4]),
        kind=st.sampled_from(KINDS),
        seed=st.integers(0, 2**32 - 1),
        limits=st.sampled_from([{}, {"PLAIN_BYTES": 8, "GRAY_BYTES": 16, "ONE_FILTER_BYTES": 32, "BAND_BYTES": 1000}]),
    )
    def agree(height, width, channels, kind, seed, limits):
        image = picture(height, width, channels, kind, seed)
        with monkeypatch.context() as patched:
            for name, limit in limits.items():
                patched.setattr(png, name, limit)
            data = encode_png(image)
        for kind in zlib.decompress(idat(data))[:: 1 + width * channels]:
            met.add((kind, bool(limits)))
        np.testing.assert_array_equal(by_pillow(data), image)
        np.testing.assert_array_equal(read_png(data)[0], image)

    met: set[tuple[int, bool]] = set()
    agree()
    assert met == {(kind, low) for kind in (png._NONE, png._SUB, png._UP) for low in (False, True)}


def idat(data: bytes) -> bytes:
    return b"".join(body for kind, body in read_png(data)[1] if kind == b"IDAT")


def filters_of(image: np.ndarray) -> set[int]:
    _, width, channels = image.shape
    return set(zlib.decompress(idat(encode_png(image)))[:: 1 + width * channels])


def test_rows_choose_where_it_pays():
    """Left and right halves of a row alike, or rows alike; where all rows are of one kind, one filter does."""
    noise = np.random.RandomState(0)
    columns = np.repeat(noise.randint(0, 256, (1, 300, 3), dtype=np.uint8), 300, axis=0)  # rows alike
    lines = np.repeat(noise.randint(0, 256, (300, 1, 3), dtype=np.uint8), 300, axis=1)  # pixels of a row alike
    mixed = np.where((np.arange(300) // 6 % 2)[:, None, None] == 0, columns, lines)
    assert filters_of(columns) == {png._UP} and filters_of(lines) == {png._SUB}
    assert filters_of(mixed) == {png._SUB, png._UP}


def test_two_readers_see_the_same_pixels(monkeypatch):
    two_readers_agree(500, monkeypatch, seeded=True)


@pytest.mark.fuzz
def test_two_readers_see_the_same_pixels_of_five_thousand_pictures(monkeypatch):
    two_readers_agree(5000, monkeypatch, seeded=False)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(65, 3), (3, 65), (66, 1), (67, 131), (200, 90), (230, 101), (3, 9000)])
def test_larger_pictures_are_read_back(size, kind, channels):
    image = picture(*size, channels, kind, 3)
    data = encode_png(image)
    np.testing.assert_array_equal(by_pillow(data), image)
    np.testing.assert_array_equal(read_png(data)[0], image)


def filters_used(image: np.ndarray) -> set[int]:
    return set(zlib.decompress(idat(encode_png(image)))[:: 1 + image.shape[1] * image.shape[2]])


@pytest.mark.parametrize("size", [(64, 48), (128, 96), (256, 300)])
def test_the_better_filter_is_taken(size):
    assert filters_used(picture(*size, 3, "across", 1) // 2) == {png._SUB}
    assert png._UP in filters_used(picture(*size, 3, "down", 1) // 2)
    assert filters_used(picture(*size, 3, "dark", 1)) == {png._NONE}


@pytest.mark.parametrize("size", [(28, 28), (60, 60)])
def test_small_drawings_on_black_take_none(size):
    assert filters_used(picture(*size, 1, "dark", 1)) == {png._NONE}


def test_each_row_of_a_large_picture_takes_its_own_filter():
    image = picture(200, 150, 3, "mixed", 2)
    data = encode_png(image)
    assert set(zlib.decompress(idat(data))[:: 1 + 450]) == {png._SUB, png._UP}
    np.testing.assert_array_equal(by_pillow(data), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_larger_than_pillow_makes_it(channels):
    """The promise of the module: at most 1.03 times Pillow's level 1, on a picture that is neither flat nor noise."""
    rng = np.random.RandomState(5)
    walk = np.cumsum(np.cumsum(rng.randn(256, 256, channels), axis=0), axis=1)
    image = np.asarray((walk - walk.min()) / np.ptp(walk) * 255 + rng.randn(256, 256, channels), np.int16)
    image = image.clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if channels == 1 else image).save(out, "PNG", compress_level=1)
    assert len(encode_png(image)) <= 1.03 * len(out.getvalue())


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side", [1, 16, 28, 40])
def test_several_at_once_are_written_as_each_alone(side, channels):
    random = np.random.RandomState(side)
    images = random.randint(0, 256, (5, side, side, channels)).astype(np.uint8)[::2]
    chunks = [(), (text_chunk("a", "1"),), (text_chunk("a", "2"), text_chunk("b", "3"))]
    alone = [encode_png(image, own) for image, own in zip(images, chunks, strict=True)]
    assert png.encode_pngs(images, chunks) == alone
    assert png.encode_pngs(images[:, :, ::-1], chunks)[0] == encode_png(images[0, :, ::-1])


def test_several_that_are_no_pictures_are_refused():
    for images in (
        np.zeros((1, 4, 4, 1), np.float32),
        np.zeros((1, 4, 4, 2), np.uint8),
        np.zeros((1, 0, 4, 1), np.uint8),
    ):
        with pytest.raises(ValueError, match="a PNG needs"):
            png.encode_pngs(images, [()])


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
        text_chunk("XML:com.adobe.xmp", "<x/>"),
    ]
    data = encode_png(image, chunks)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.text == {"plain": "a=1", "wide": "Čepice", "XML:com.adobe.xmp": "<x/>"}
    np.testing.assert_array_equal(read_png(data)[0], image)
