"""Which form an answer takes."""

import pytest

from service.api.faults import NotAcceptable
from service.api.negotiation import choose, parse_accept, quality


@pytest.mark.parametrize(
    "shape, fmt, images, accept, wanted",
    [
        (None, None, 1, None, ("image", "png")),
        (None, None, 1, "", ("image", "png")),
        (None, None, 1, "*/*", ("image", "png")),
        (None, None, 1, "image/*", ("image", "png")),
        (None, None, 1, "image/jpeg", ("image", "jpeg")),
        (None, None, 1, "IMAGE/WEBP;Q=0.9, image/png;q=0.8", ("image", "webp")),
        (None, None, 1, "image/avif,image/webp,*/*;q=0.8", ("image", "webp")),
        (None, None, 1, "image/*;q=0.9, image/png;q=0.1", ("image", "jpeg")),
        (None, None, 1, "*/*, image/png;q=0", ("image", "jpeg")),
        (None, None, 1, "application/json", ("json", "png")),
        (None, None, 1, "application/json, text/plain, */*", ("image", "png")),
        (None, None, 1, "image/png;q=nonsense, image/webp", ("image", "webp")),
        (None, "jpeg", 1, "image/png", ("image", "jpeg")),
        (None, "jpeg", 1, "application/json", ("image", "jpeg")),
        ("json", None, 1, "image/png", ("json", "png")),
        ("image", None, 1, "application/json, image/webp;q=0.1", ("image", "webp")),
        (None, None, 3, None, ("json", "png")),
        (None, "webp", 3, None, ("json", "webp")),
        (None, None, 3, "application/zip", ("zip", "png")),
        (None, None, 3, "image/webp", ("grid", "webp")),
        ("zip", "jpeg", 3, "text/html", ("zip", "jpeg")),
        ("grid", None, 3, "image/jpeg;q=0.4, image/*;q=0.2", ("grid", "jpeg")),
    ],
)
def test_forms(shape, fmt, images, accept, wanted):
    form = choose(shape, fmt, images, accept)
    assert (form.shape, form.fmt) == wanted


@pytest.mark.parametrize("shape, images, accept", [(None, 1, "text/html"), ("image", 1, "image/gif"), (None, 2, "a/b")])
def test_nothing_acceptable(shape, images, accept):
    with pytest.raises(NotAcceptable) as caught:
        choose(shape, None, images, accept)
    assert "image/png" in caught.value.allowed


def test_the_most_specific_range_counts():
    ranges = parse_accept("image/*;q=0.2, */*;q=0.1, image/png;q=0.9, junk, ;;, image/x;q=7")
    assert [quality(name, ranges) for name in ("image/png", "image/webp", "text/plain")] == [0.9, 0.2, 0.1]
