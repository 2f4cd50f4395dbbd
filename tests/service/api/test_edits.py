"""`/translate` and `/upscale` over the real engine and tiny real models: what comes in, goes out, is refused."""

import asyncio
import io
import zlib

import numpy as np
import pytest
from apiclient import client_of
from PIL import Image
from tinymodels import write_picture_models, write_tiny
from uploads import exif, mutated, png_of, saved, seeds, smooth

from service.api.app import engine_of
from service.api.reading import UPLOADS_HELD
from service.api.streaming import Streamed
from service.settings import Settings

QUICK = {"profile_s": 0.0, "providers": "cpu", "lanes": 1, "threads_per_lane": 1, "poll_models_s": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    write_picture_models(root)
    write_tiny(root, "tiny-rgb")
    return root


def client_over(folder, **settings):
    settings = {**QUICK, "models": folder, **settings}
    return client_of(engine_of(Settings(**settings)), **settings)


@pytest.fixture
async def real(folder):
    async with client_over(folder) as client:
        yield client


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(opened(data))


PHOTO = smooth(30, 42)


async def send(
    client, path: str, image: bytes, *, kind: str | None = None, headers=None, mask: bytes | None = None, **fields
):
    files = {"image": ("a.bin", image, kind or "application/octet-stream")}
    if mask is not None:
        files["mask"] = ("m.png", mask, "image/png")
    return await client.post(path, files=files, data=fields, headers=headers)


async def test_a_form_and_a_bare_body_give_the_same_picture(real):
    png = saved(PHOTO, "PNG")
    form = await send(real, "/upscale", png, model="tiny-x4", scale="4")
    assert form.status_code == 200 and form.headers["content-type"] == "image/png"
    assert form.headers["x-model"] == "tiny-x4@1" and form.headers["vary"] == "Accept"
    drawn = await (await real.parts.engine.upscale("tiny-x4", PHOTO)).whole()
    np.testing.assert_array_equal(pixels(form.content), drawn)
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        bare = await real.post("/upscale?model=tiny-x4", content=png, headers={"content-type": kind})
        assert bare.content == form.content and bare.headers["etag"] == form.headers["etag"]
    mixed = await real.post("/upscale?model=tiny-x4", files={"image": ("a.png", png)})
    assert mixed.content == form.content


@pytest.mark.parametrize("name", sorted(seeds()))
async def test_every_kind_of_file_is_translated(real, name):
    reply = await send(real, "/translate", seeds()[name], model="tiny-paint")
    assert reply.status_code == 200 and sorted(opened(reply.content).size) == [23, 31]


async def test_the_format_is_asked_for_or_negotiated(real):
    png = saved(PHOTO, "PNG")
    for fmt in ("png", "jpeg", "webp"):
        asked = await send(real, "/translate", png, model="tiny-paint", format=fmt, headers={"accept": "image/png"})
        liked = await send(real, "/translate", png, model="tiny-paint", headers={"accept": f"image/{fmt}"})
        assert asked.headers["content-type"] == liked.headers["content-type"] == f"image/{fmt}"
        assert opened(asked.content).format == fmt.upper() and asked.content == liked.content
    assert (await send(real, "/translate", png, model="tiny-paint", headers={"accept": "text/html"})).status_code == 406
    reply = await send(real, "/translate", png, model="tiny-paint", format="gif")
    assert (reply.status_code, reply.json()["allowed"]) == (422, ["png", "jpeg", "webp"])


async def test_the_tag_follows_upload_model_and_format(real):
    png = saved(PHOTO, "PNG")
    first = (await send(real, "/upscale", png, model="tiny-x2")).headers
    assert (await send(real, "/upscale", png, model="tiny-x2", scale="2")).headers["etag"] == first["etag"]
    others = [
        await send(real, "/upscale", saved(PHOTO[::-1], "PNG"), model="tiny-x2"),
        await send(real, "/upscale", png, model="tiny-x2", format="webp"),
        await send(real, "/upscale", png, model="tiny-x4"),
    ]
    assert len({first["etag"], *(reply.headers["etag"] for reply in others)}) == 4
    stages = first["server-timing"]
    assert all(f"{stage};dur=" in stages for stage in ("read", "decode", "queue", "run", "encode", "total"))


async def test_orientation_transparency_and_fixed_sizes(real):
    turned = await send(real, "/translate", saved(PHOTO, "JPEG", exif=exif(6)), model="tiny-paint")
    assert opened(turned.content).size == (30, 42)
    rgba = smooth(20, 20, 4)
    rgba[:10, :, 3] = 0
    kept = opened((await send(real, "/translate", saved(rgba, "PNG"), model="tiny-keep")).content)
    assert kept.mode == "RGBA" and np.array_equal(np.asarray(kept)[:, :, 3], rgba[:, :, 3])
    fixed = await send(real, "/translate", saved(PHOTO, "PNG"), model="tiny-fixed")
    assert fixed.headers["x-resized"] == "24x16" and opened(fixed.content).size == (24, 16)
    assert "x-resized" not in turned.headers


async def test_masks_come_as_a_file_or_as_transparency(real):
    png = saved(PHOTO, "PNG")
    hole = np.zeros((30, 42), np.uint8)
    hole[4:9, 5:12] = 255
    drawn = await (await real.parts.engine.translate("tiny-repair", PHOTO, mask=hole)).whole()
    by_file = await send(real, "/translate", png, model="tiny-repair", mask=saved(Image.fromarray(hole), "PNG"))
    np.testing.assert_array_equal(pixels(by_file.content), drawn)
    clear = np.dstack([PHOTO, 255 - hole])
    by_clear_mask = await send(real, "/translate", png, model="tiny-repair", mask=saved(clear, "PNG"))
    np.testing.assert_array_equal(pixels(by_clear_mask.content), drawn)
    by_transparency = await send(real, "/translate", saved(clear, "PNG"), model="tiny-repair")
    assert by_transparency.status_code == 200
    assert len({by_file.headers["etag"], by_clear_mask.headers["etag"], by_transparency.headers["etag"]}) == 3
    for mask, status, code in (
        (None, 422, "invalid-request"),
        (saved(Image.fromarray(hole[1:]), "PNG"), 422, "invalid-request"),
        (b"nonsense" * 9, 415, "image-type-unknown"),
        (saved(Image.fromarray(hole), "PNG")[:-20], 400, "image-unreadable"),
    ):
        reply = await send(real, "/translate", png, model="tiny-repair", mask=mask)
        assert (reply.status_code, reply.json()["field"]) == (status, "mask")
        assert reply.json()["type"].endswith(code)


def jpeg_named_png() -> bytes:
    return saved(PHOTO, "PNG")


@pytest.mark.parametrize(
    "image, kind, status, code",
    [
        (b"", None, 415, "image-type-unknown"),
        (b"%PDF-1.7" + b"\n" * 99, None, 415, "image-type-unknown"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415, "image-type-unknown"),
        (jpeg_named_png(), "image/jpeg", 415, "image-type-unknown"),
        (jpeg_named_png()[:-30], "image/png", 400, "image-unreadable"),
        (jpeg_named_png() + b"PK\x03\x04" * 9, "image/png", 400, "image-unreadable"),
        (png_of(60_000, 60_000, 8, 2, b""), "image/png", 413, "image-too-large"),
        (png_of(8_000, 8_000, 1, 0, b""), "image/png", 413, "image-too-large"),
        (saved(np.zeros((1, 6_000), np.uint8), "PNG"), "image/png", 413, "image-too-large"),
    ],
)
async def test_bad_files_are_refused_with_a_reason(real, image, kind, status, code):
    reply = await send(real, "/translate", image, kind=kind, model="tiny-paint")
    assert (reply.status_code, reply.json()["field"]) == (status, "image")
    assert reply.json()["type"] == f"urn:ganymede:problem:{code}" and reply.json()["detail"].startswith("image: ")


async def test_a_result_that_would_be_too_large_is_refused_before_it_is_decoded(folder):
    async with client_over(folder, max_result_pixels=10_000) as client:
        image = png_of(60, 60, 8, 2, zlib.compress(b"x"))  # its pixels could not be decoded
        reply = await send(client, "/upscale", image, model="tiny-x2")
        assert reply.status_code == 413 and "the result would be 120x120" in reply.json()["detail"]


@pytest.mark.parametrize(
    "path, fields, status, field",
    [
        ("/translate", {}, 422, "model"),
        ("/translate", {"model": "tiny-print"}, 404, "model"),
        ("/translate", {"model": "tiny-x2"}, 422, "model"),
        ("/upscale", {"model": "tiny-paint"}, 422, "model"),
        ("/upscale", {"model": "tiny-rgb"}, 422, "model"),
        ("/upscale", {"model": "tiny-x2", "scale": "4"}, 422, "scale"),
        ("/upscale", {"model": "tiny-x2", "scale": "two"}, 422, "scale"),
        ("/upscale", {"model": "tiny-x2", "modle": "tiny-x4"}, 422, "modle"),
        ("/translate", {"model": "tiny-paint", "scale": "2"}, 422, "scale"),
        ("/translate", {"model": "tiny-paint", "url": "http://localhost/a.png"}, 422, "url"),
    ],
)
async def test_wrong_fields_are_named(real, path, fields, status, field):
    png = saved(PHOTO, "PNG")
    reply = await send(real, path, png, **fields)
    assert (reply.status_code, reply.json()["field"]) == (status, field)
    bare = await real.post(path, params=fields, content=png, headers={"content-type": "image/png"})
    assert (bare.status_code, bare.json()["field"]) == (status, field)


async def test_several_wrong_fields_are_all_told(real):
    reply = await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2", scale="3", format="bmp")
    assert reply.status_code == 422
    assert [error["pointer"] for error in reply.json()["errors"]] == ["#/format", "#/scale"]


@pytest.mark.parametrize("fmt, side", [("webp", 8_192), ("jpeg", 32_751)])
async def test_sides_that_a_format_does_not_hold_are_refused_or_go_round(folder, fmt, side):
    async with client_over(folder, max_side=40_000, max_aspect=40_000) as client:
        png = saved(np.zeros((2, side, 3), np.uint8), "PNG")
        reply = await send(client, "/upscale", png, model="tiny-x2", format=fmt)
        problem = reply.json()
        assert (reply.status_code, problem["field"]) == (422, "format") and "png" in problem["allowed"]
        head = {"accept": f"image/{fmt}, image/png;q=0.5"}
        reply = await send(client, "/upscale", png, headers=head, model="tiny-x2")
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
        assert pixels(reply.content).shape[:2] == (4, 2 * side)


async def test_what_cannot_be_accepted_says_that_it_depends_on_accept(real):
    reply = await send(real, "/upscale", saved(PHOTO, "PNG"), headers={"accept": "text/html"}, model="tiny-x2")
    assert reply.status_code == 406 and "Accept" in reply.headers["vary"]


async def test_the_right_endpoint_is_named(real):
    png = saved(PHOTO, "PNG")
    reply = (await send(real, "/translate", png, model="tiny-x2")).json()
    assert reply["allowed"] == ["POST /upscale"] and reply["type"].endswith("task-not-served")
    assert (await send(real, "/upscale", png, model="tiny-rgb")).json()["allowed"] == ["POST /generate"]
    assert "did you mean 'model'" in (await send(real, "/upscale", png, modle="tiny-x2")).json()["detail"]
    assert (await real.get("/upscale")).headers["allow"] == "POST"


async def test_wrong_content_types_say_what_is_right(real):
    reply = await real.post("/upscale", json={"model": "tiny-x2"})
    assert reply.status_code == 415 and reply.headers["accept-post"] == "multipart/form-data, image/*"
    without_file = await real.post("/upscale", files={"image": (None, "text")}, data={"model": "tiny-x2"})
    assert without_file.status_code == 422 and "needs a filename" in without_file.json()["detail"]


async def test_bodies_have_a_limit_of_their_own(folder):
    async with client_over(folder, max_upload_bytes=20_000, max_body_bytes=1_024) as client:
        noise = np.random.RandomState(0).randint(0, 256, (70, 70, 3)).astype(np.uint8)
        assert (await send(client, "/upscale", saved(noise, "PNG"), model="tiny-x2")).status_code == 200
        large = await client.post("/upscale?model=tiny-x2", content=b"x" * 20_001)
        assert large.status_code == 413 and large.headers["connection"] == "close"

        async def endless():
            for _ in range(30):
                yield b"x" * 1_000

        assert (await client.post("/upscale?model=tiny-x2", content=endless())).status_code == 413
        assert (await client.post("/generate", content=b"x" * 2_000)).status_code == 413


async def test_a_body_that_does_not_come_is_given_up(real):
    async def slow():
        yield b"\x89PNG"
        await asyncio.sleep(5)

    headers = {"x-request-timeout-ms": "100", "content-type": "image/png"}
    reply = await real.post("/upscale?model=tiny-x2", content=slow(), headers=headers)
    assert reply.status_code == 408


async def test_a_large_png_is_streamed_and_is_the_same_picture(real, monkeypatch):
    noise = np.random.RandomState(1).randint(0, 256, (600, 500, 3)).astype(np.uint8)
    rgba = np.dstack([noise, np.full((600, 500), 128, np.uint8)])
    from service.api import edits

    whole = await send(real, "/upscale", saved(noise, "PNG"), model="tiny-x2")
    assert "content-length" in whole.headers
    monkeypatch.setattr(edits, "STREAMED_PX", 100_000)
    streamed = await send(real, "/upscale", saved(noise, "PNG"), model="tiny-x2")
    assert "content-length" not in streamed.headers and streamed.headers["etag"] != whole.headers["etag"]
    np.testing.assert_array_equal(pixels(streamed.content), pixels(whole.content))
    assert opened(streamed.content).text["ganymede"] == '{"model":"tiny-x2@1"}'
    assert "run;dur=" in streamed.headers["server-timing"]
    clear = await send(real, "/upscale", saved(rgba, "PNG"), model="tiny-x2")
    assert (pixels(clear.content)[:, :, 3] == 128).all()
    assert all(room.held == 0 for room in real.app.state.rooms)


async def test_uploads_beyond_the_room_are_refused_for_now(real):
    await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2")
    uploads, pictures = real.app.state.rooms
    for room in (uploads, pictures):
        with room.taken(room.limit):
            reply = await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2")
            assert reply.status_code == 429 and reply.json()["reason"] == "uploads" and "retry-after" in reply.headers
        assert (await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2")).status_code == 200
    assert uploads.held == pictures.held == 0


async def test_results_that_are_held_whole_count_as_uploads_do(real):
    height, width = PHOTO.shape[:2]
    await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2")
    uploads, pictures = real.app.state.rooms
    both = 5 * height * width  # the input, and twice its sides
    with pictures.taken(pictures.limit - both + 1):
        reply = await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2")
        assert reply.status_code == 429 and reply.json()["reason"] == "uploads"
    with pictures.taken(pictures.limit - both):
        assert (await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2")).status_code == 200
    assert uploads.held == pictures.held == 0


async def test_uploads_that_do_not_come_keep_nobody_out(real):
    gate = asyncio.Event()

    async def late():
        await gate.wait()
        yield b"nothing"

    url = "/upscale?model=tiny-x2"
    head = {"content-type": "image/png"}
    waiting = [asyncio.create_task(real.post(url, content=late(), headers=head)) for _ in range(UPLOADS_HELD + 4)]
    await asyncio.sleep(0.1)
    assert (await send(real, "/upscale", saved(PHOTO, "PNG"), model="tiny-x2")).status_code == 200
    gate.set()
    assert {reply.status_code for reply in await asyncio.gather(*waiting)} == {415}
    assert all(room.held == 0 for room in real.app.state.rooms)


async def fuzz(client, first: int, count: int) -> dict[int, int]:
    files, codes = list(seeds().values()), {}
    for number in range(first, first + count):
        data = mutated(files[number % len(files)], np.random.RandomState(number))
        reply = await send(client, "/translate", data, model="tiny-paint")
        assert reply.status_code in (200, 400, 413, 415, 422), (number, reply.text)
        codes[reply.status_code] = codes.get(reply.status_code, 0) + 1
    return codes


async def test_mutated_uploads_are_answered_or_refused(folder):
    async with client_over(folder, max_pixels=20_000, access_log=False) as client:
        assert set(await fuzz(client, 500_000, 150)) >= {200, 400, 415}


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(4))
async def test_more_mutated_uploads_are_answered_or_refused(folder, part):
    async with client_over(folder, max_pixels=20_000, access_log=False) as client:
        await fuzz(client, 600_000 + 500 * part, 500)


@pytest.mark.parametrize("version, bodies", [("1.0", [b"onetwo"]), ("1.1", [b"one", b"two", b""])])
async def test_clients_without_chunks_get_the_whole_with_its_length(version, bodies):
    ended, sent = [], []

    async def pieces():
        try:
            for piece in (b"one", b"two"):
                yield piece
        finally:
            ended.append(True)

    async def receive():
        await asyncio.Event().wait()

    async def send_on(message):
        sent.append(message)

    scope = {"type": "http", "http_version": version, "method": "GET", "asgi": {"spec_version": "2.4"}}
    await Streamed(pieces(), {"x-model": "m@1"}, "image/png")(scope, receive, send_on)
    head = dict(sent[0]["headers"])
    assert (head[b"x-model"], head[b"content-type"]) == (b"m@1", b"image/png")
    assert head.get(b"content-length") == (b"6" if version == "1.0" else None)
    assert [message["body"] for message in sent[1:]] == bodies and ended
