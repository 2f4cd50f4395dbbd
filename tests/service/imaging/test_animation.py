"""Animations: every frame as it was given, at its pace, for ever, with the marks; by another reader than the writer."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from service.imaging.animation import ANIMATIONS, ApngStream, Pace, animate
from service.imaging.encode import EncodeOptions
from service.imaging.provenance import DIGITAL_SOURCE_TYPE, Provenance

RECIPE = Provenance({"model": "faces@1", "keys": [{"seed": 1}, {"seed": 2}], "frames": 5})


def smooth(count=5, height=24, width=20, channels=3):
    rows, columns = np.mgrid[:height, :width]
    planes = [
        [rows * 3 + columns * 2 + 20 * (place == 0) + 20 * frame for place in range(channels)] for frame in range(count)
    ]
    frames = np.moveaxis(np.array(planes), 1, -1).astype(np.uint8)
    if channels == 4:
        frames[..., 3] = 255
    return frames


def read(data: bytes, mode: str):
    picture = Image.open(io.BytesIO(data))
    shown = [(np.asarray(frame.convert(mode)), frame.info.get("duration")) for frame in ImageSequence.Iterator(picture)]
    return picture, [pixels for pixels, _ in shown], [duration for _, duration in shown]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("height, width", [(1, 1), (8, 8), (24, 20), (200, 150)])
def test_apng_is_lossless(channels, mode, height, width):
    frames = np.random.RandomState(0).randint(0, 256, (4, height, width, channels)).astype(np.uint8)
    picture, shown, durations = read(animate(frames, "apng", Pace(20), RECIPE), mode)
    assert (picture.n_frames, picture.info["loop"]) == (4, 0) and durations == [50] * 4
    for one, other in zip(shown, frames, strict=True):
        np.testing.assert_array_equal(one, other.squeeze(2) if channels == 1 else other)
    assert json.loads(picture.text["ganymede"]) == RECIPE.recipe
    assert DIGITAL_SOURCE_TYPE in picture.text["XML:com.adobe.xmp"]


def test_apng_says_first_how_many_and_holds_them_to_it():
    frames = smooth(2)
    writer = ApngStream(2, (24, 20, 3), Pace(10))
    assert b"acTL\0\0\0\2\0\0\0\0" in writer.head()
    with pytest.raises(ValueError, match="2 frames are missing"):
        writer.end()
    with pytest.raises(ValueError, match=r"2 frames of \[24, 20, 3\] are left"):
        writer.frame(frames[0, :8])
    pieces = [writer.frame(frame) for frame in frames]
    with pytest.raises(ValueError, match="0 frames"):
        writer.frame(frames[0])
    assert writer.head() + b"".join(pieces) + writer.end() == animate(frames, "apng", Pace(10))


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("fmt, apart", [("webp", 12), ("gif", 24)])
def test_webp_and_gif_are_near(fmt, apart, channels, mode):
    frames = smooth(channels=channels)
    picture, shown, durations = read(animate(frames, fmt, Pace(20), RECIPE), mode)
    assert picture.n_frames == 5 and picture.info["loop"] == 0
    assert durations == [50] * 5
    for one, other in zip(shown, frames, strict=True):
        other = other.squeeze(2) if channels == 1 else other
        assert np.abs(one.astype(int) - other).mean() < apart / 2


@pytest.mark.parametrize("fps", [1, 7, 12, 24, 25, 30, 50, 60])
def test_an_animation_lasts_as_long_as_it_should(fps):
    """To half a tick, however many frames: each one's duration alone, rounded, would add up."""
    for frames in (2, 60, 240):
        assert abs(sum(Pace(fps).ticks(frames)) - 1000 * frames / fps) <= 0.5
        if fps <= 50:
            assert abs(sum(Pace(fps).ticks(frames, 10, 2)) - 100 * frames / fps) <= 0.5
    _, _, durations = read(animate(smooth(24), "webp", Pace(24), RECIPE), "RGB")
    assert sum(durations) == 1000


def test_marks_of_webp_and_gif():
    webp = Image.open(io.BytesIO(animate(smooth(), "webp", Pace(20), RECIPE)))
    assert json.loads(webp.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"ASCII\0\0\0")) == RECIPE.recipe
    assert DIGITAL_SOURCE_TYPE.encode() in webp.info["xmp"]
    data = animate(smooth(), "gif", Pace(20), RECIPE)
    assert json.loads(Image.open(io.BytesIO(data)).info["comment"]) == RECIPE.recipe
    before, _, behind = data.partition(b"\x21\xff\x0bXMP DataXMP")
    assert before.endswith(b"NETSCAPE2.0\x03\x01\0\0\0") and DIGITAL_SOURCE_TYPE.encode() in behind[:1000]
    for fmt in ANIMATIONS:
        bare = animate(smooth(), fmt, Pace(20))
        assert b"ganymede" not in bare and b"iptc" not in bare


@pytest.mark.parametrize("fmt", ANIMATIONS)
def test_the_same_frames_are_the_same_bytes(fmt):
    assert animate(smooth(), fmt, Pace(24), RECIPE) == animate(smooth(), fmt, Pace(24), RECIPE)
    assert animate(smooth(), fmt, Pace(24)) != animate(smooth(), fmt, Pace(12))


def test_quality_counts_for_webp():
    low, high = (animate(smooth(), "webp", Pace(24), None, EncodeOptions(webp_quality=q)) for q in (20, 95))
    assert len(low) < len(high)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4, 2), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_what_is_no_frames_is_refused(frames):
    with pytest.raises(ValueError, match="frames are uint8"):
        animate(frames, "gif", Pace(10))


def test_what_is_no_format_is_refused():
    with pytest.raises(ValueError, match="must be one of webp, apng, gif"):
        animate(smooth(), "mp4", Pace(10))
