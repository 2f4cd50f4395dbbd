import numpy as np
import pytest

from service.api.faults import Invalid, MalformedForm, UnsupportedMediaType
from service.api.uploads import MAX_PARTS, Room, take_apart
from service.errors import GanymedeError, InvalidRequest, Overloaded

KNOWN = ("image", "mask", "model", "format")
TYPE = "multipart/form-data; boundary=b0"


def form(*parts: tuple[str, bytes], end: bytes = b"--b0--\r\n", preamble: bytes = b"") -> memoryview:
    """Parts of (headers after `Content-Disposition: form-data; `, content)."""
    body = preamble
    for head, content in parts:
        body += b"--b0\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
    return memoryview(body + end)


IMAGE = ('name="image"; filename="a.png"\r\nContent-Type: image/png', b"\x89PNG\r\n--b\r\n\r\n--b0x")
MODEL = ('name="model"', b"photo-x4")


def test_files_are_windows_of_the_body_and_fields_are_text():
    body = form(IMAGE, MODEL, ('name="mask"; filename="m.png"', b""))
    found = take_apart(body, TYPE, {"format": "png"}, KNOWN)
    assert bytes(found.files["image"].data) == IMAGE[1] and found.files["image"].media_type == "image/png"
    assert found.files["image"].data.obj is body.obj
    assert len(found.files["mask"].data) == 0
    assert found.fields == {"model": "photo-x4", "format": "png"}


def test_a_file_that_a_page_was_not_given_is_none():
    browser = 'filename=""\r\nContent-Type: application/octet-stream'
    found = take_apart(form(IMAGE, MODEL, (f'name="mask"; {browser}', b"")), TYPE, {}, KNOWN)
    assert found.files.keys() == {"image"} and found.fields == {"model": "photo-x4"}


@pytest.mark.parametrize(
    "body, query, field, says",
    [
        (form(IMAGE, ('name="model"; filename="m.txt"', b"x")), {}, "model", "came as a file, must be text"),
        (form(IMAGE, MODEL, ('name="mask"', b"data:image/png;base64,AA")), {}, "mask", "it needs a filename"),
        (form(MODEL, ('name="image"', b"x")), {}, "image", "it needs a filename"),
        (form(IMAGE, MODEL), {"mask": "hello"}, "mask", "it needs a filename"),
    ],
)
def test_files_and_texts_are_not_taken_for_each_other(body, query, field, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        take_apart(body, TYPE, query, KNOWN)
    assert caught.value.field == field


def test_all_wrong_names_are_told():
    with pytest.raises(Invalid) as caught:
        take_apart(form(IMAGE, ('name="modell"', b"x"), ('name="mask"', b"x")), TYPE, {"frmat": "png"}, KNOWN)
    assert [error["pointer"] for error in caught.value.errors] == ["#/frmat", "#/modell", "#/mask"]


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"\r", b"--b0x", b"\r\n--b", b"\r\n--b0-", b"x" * 700_000 + b"\r\n--b1" + b"y" * 300_000]
)
def test_contents_come_out_as_they_went_in(content):
    body = form((IMAGE[0], content), MODEL, preamble=b"ignored\r\n")
    found = take_apart(body, TYPE, {}, KNOWN)
    assert bytes(found.files["image"].data) == content and found.fields["model"] == "photo-x4"


def test_a_boundary_across_two_slices_of_the_search_is_found():
    for length in range((1 << 18) - 120, (1 << 18) + 10):
        body = form((IMAGE[0], b"z" * length))
        assert len(take_apart(body, TYPE, {}, KNOWN).files["image"].data) == length


@pytest.mark.parametrize("kind", ["image/png", "image/x-anything", "application/octet-stream", ""])
def test_a_bare_body_is_the_image(kind):
    found = take_apart(memoryview(b"bytes"), kind, {"model": "m"}, KNOWN)
    assert bytes(found.files["image"].data) == b"bytes" and found.fields == {"model": "m"}
    assert found.files["image"].media_type == (kind if kind.startswith("image/") else None)


@pytest.mark.parametrize(
    "body, content_type",
    [
        (form(IMAGE, end=b""), TYPE),
        (form(IMAGE, end=b"--b0"), TYPE),
        (form(IMAGE), "multipart/form-data"),
        (form(IMAGE), "multipart/form-data; boundary=" + "x" * 71),
        (form(IMAGE), "multipart/form-data; boundary=other"),
        (memoryview(b""), TYPE),
        (form(("size=1", b"")), TYPE),
        (form(('name="image"; filename="a"\r\nContent-Transfer-Encoding: base64', b"AAAA")), TYPE),
        (form(('name="model"', b"x" * 1_025)), TYPE),
        (form(('name="model"', b"\xff\xfe")), TYPE),
        (form(('name="model"\r\nX: ' + "x" * 9_000, b"")), TYPE),
        (form(*[(f'name="f{number}"', b"") for number in range(MAX_PARTS + 1)]), TYPE),
    ],
)
def test_forms_that_are_none_are_refused(body, content_type):
    with pytest.raises(MalformedForm):
        take_apart(body, content_type, {}, KNOWN)


def test_fields_twice_and_unknown_ones_are_refused():
    for body, query in ((form(MODEL, MODEL), {}), (form(MODEL), {"model": "x"}), (form(IMAGE, IMAGE), {})):
        with pytest.raises(InvalidRequest, match="more than once"):
            take_apart(body, TYPE, query, KNOWN)
    with pytest.raises(InvalidRequest, match="did you mean 'model'") as caught:
        take_apart(form(('name="modell"', b"x")), TYPE, {}, KNOWN)
    assert caught.value.allowed == list(KNOWN)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/mixed; boundary=b0", "video/mp4"])
def test_other_types_are_refused(kind):
    with pytest.raises(UnsupportedMediaType):
        take_apart(form(IMAGE), kind, {}, KNOWN)


def test_mutated_forms_end_in_parts_or_in_our_errors():
    whole = bytes(form(IMAGE, MODEL, ('name="mask"; filename="m"', b"\r\n--b0"[:3])))
    ends = set()
    for seed in range(3_000):
        rng = np.random.RandomState(seed)
        body = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            at = rng.randint(0, max(1, len(body)))
            kind = rng.randint(0, 3)
            if kind == 0:
                del body[at : at + rng.randint(1, 30)]
            elif kind == 1:
                body[at:at] = rng.choice([b"\r\n", b"--b0", b"--", b"\0", b'"', b";", rng.bytes(5)])
            else:
                body[at : at + 1] = rng.bytes(1)
        try:
            take_apart(memoryview(bytes(body)), TYPE, {}, KNOWN)
            ends.add("taken apart")
        except GanymedeError as error:
            ends.add(type(error).__name__)
    assert {"taken apart", "MalformedForm", "InvalidRequest"} <= ends


def test_what_has_not_come_takes_no_room():
    room = Room(1_000, "bytes")
    with room.growing(900) as first, room.growing(900) as second, room.growing(900):
        assert room.held == 0  # however much they have declared
        first(100)
        assert room.held == 100
        first(50)
        second(300)
        assert room.held == 400
        first(101)  # twice of it, once it goes on
        assert room.held == 300 + 202
        second(400)
        assert room.held == 202 + 400  # there is no room for twice of it
        with pytest.raises(Overloaded, match="400 bytes"):
            first(601)
        assert room.held == 202 + 400
    assert room.held == 0
    with Room(10, "bytes").growing(1_000) as alone:
        alone(1_000)


def test_room_is_held_and_given_back():
    room = Room(100, "bytes")
    with room.taken(70):
        with pytest.raises(Overloaded, match="70 bytes"), room.taken(31):
            pass
        with room.taken(30):
            assert room.held == 100
    with room.taken(1_000):  # alone, anything may come in
        assert room.held == 1_000
    assert room.held == 0
