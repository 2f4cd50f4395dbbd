"""`/interpolate` through the whole stack: every form, what is sent before the rest is drawn, and what is refused."""

import asyncio
import base64
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from apiclient import client_of
from PIL import Image, ImageSequence
from tinymodels import STYLE_DIM, TINY_LABELS, write_tiny, write_tiny_style

from service.api.app import engine_of
from service.api.faults import NotAcceptable
from service.api.motion_writer import BOUNDARY
from service.api.negotiation import choose_motion
from service.api.streaming import NotRead, Streamed
from service.errors import InvalidRequest, RunFailed
from service.settings import Settings

QUICK = {"profile_s": 0.0, "providers": "cpu", "lanes": 1, "threads_per_lane": 1, "max_batch": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_style(root, directions=("sefa_1", "glasses"))
    write_tiny(root, "tiny-rgb")
    write_tiny(root, "tiny-grey", channels=1, labels=TINY_LABELS)
    write_tiny(root, "tiny-mixed", labels=TINY_LABELS, weighed=True)
    return root


@pytest.fixture
async def real(models):
    settings = {**QUICK, "models": models, "max_motion_frames": 64}
    async with client_of(engine_of(Settings(**settings)), **settings) as client:
        yield client


async def post(client, status=200, accept="*/*", **body):
    body = {"model": "tiny-w", "seeds": "1,2", "frames": 6, **body}
    body = {name: value for name, value in body.items() if value is not None}
    reply = await client.post("/interpolate", json=body, headers={"accept": accept})
    assert reply.status_code == status, reply.text
    return reply


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def shown(data: bytes) -> list[np.ndarray]:
    return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]


def parts_of(reply) -> list[tuple[dict, bytes]]:
    """A multipart stream's parts, as a client takes them: by the length in each head."""
    data, found = reply.content, []
    while data.startswith(f"--{BOUNDARY}\r\n".encode()):
        head, _, data = data.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        length = int(fields["Content-Length"])
        found.append((fields, data[:length]))
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
    assert data == f"--{BOUNDARY}--\r\n".encode()
    return found


async def drawn(client, seeds, model="tiny-w", **arguments):
    return (await client.parts.engine.generate(model, seeds=seeds, **arguments)).images


async def test_apng_begins_and_ends_at_the_key_frames(real):
    reply = await post(real, format="apng", fps=10)
    assert reply.headers["content-type"] == "image/apng" and "content-length" not in reply.headers
    assert reply.headers["x-model"] == "tiny-w@1" and reply.headers["x-frames"] == "6"
    frames = shown(reply.content)
    ends = await drawn(real, [1, 2])
    np.testing.assert_array_equal(frames[0], ends[0])
    np.testing.assert_array_equal(frames[-1], ends[1])
    recipe = json.loads(Image.open(io.BytesIO(reply.content)).text["ganymede"])
    assert recipe == json.loads(reply.headers["x-recipe"])
    assert recipe["keys"] == [{"seed": 1}, {"seed": 2}]
    again = await real.post("/interpolate", json={**recipe, "format": "apng"})
    assert again.content == reply.content and again.headers["etag"] != ""


@pytest.mark.parametrize("fmt", ["webp", "gif"])
async def test_webp_and_gif(real, fmt):
    reply = await post(real, format=fmt, fps=20)
    assert reply.headers["content-type"] == f"image/{fmt}"
    picture = Image.open(io.BytesIO(reply.content))
    assert picture.n_frames == 6 and picture.info["loop"] == 0
    assert (await post(real, format=fmt, fps=20)).content == reply.content
    assert (await post(real, accept=f"image/{fmt}", fps=20)).content == reply.content


async def test_a_grid_and_a_zip(real):
    grid = await post(real, **{"as": "grid"})
    assert grid.headers["content-type"] == "image/png" and pixels(grid.content).shape == (2 * 8 + 2, 3 * 8 + 4, 3)
    reply = await post(real, **{"as": "zip"})
    archive = zipfile.ZipFile(io.BytesIO(reply.content))
    names = [f"frame-00{place}.png" for place in range(6)]
    assert archive.namelist() == [*names, "latents.npy", "animation.json"]
    told = json.loads(archive.read("animation.json"))
    assert (told["files"], told["method"], told["space"]) == (names, "linear", "w")
    assert np.load(io.BytesIO(archive.read("latents.npy"))).shape == (6, 3, STYLE_DIM)
    frames = shown((await post(real, format="apng")).content)
    for name, frame in zip(names, frames, strict=True):
        np.testing.assert_array_equal(pixels(archive.read(name)), frame)


@pytest.mark.parametrize("noise", [None, "none", "random"])
@pytest.mark.parametrize("model", ["tiny-w", "tiny-rgb", "tiny-grey"])
async def test_each_frame_says_how_to_draw_it_alone(real, model, noise):
    if noise and model != "tiny-w":
        return  # which takes no noise
    body = {"model": model, "noise": noise, "label": "Square" if model == "tiny-grey" else None}
    streamed = parts_of(await post(real, **body, **{"as": "stream"}))
    assert [fields["X-Frame"] for fields, _ in streamed] == list("012345")
    for fields, data in streamed:
        assert fields["Content-Type"] == "image/png"
        recipe = json.loads(Image.open(io.BytesIO(data)).text["ganymede"])
        alone = await real.post("/generate", json=recipe)
        np.testing.assert_array_equal(pixels(alone.content), pixels(data))


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ([{"seed": 1, "label": "Circle"}, {"seed": 2, "label": "Square"}], None),
        ([{"seed": 1, "label": {"Circle": 1, "Square": 2}}, {"seed": 2, "label": "Square"}], None),
        ([{"seed": 1}, {"seed": 2}], {"Circle": 0.7, "Square": 0.3}),
        ([{"seed": 1}, {"seed": 2}], None),
    ],
)
@pytest.mark.parametrize("form", ["stream", "zip"])
async def test_each_frame_says_its_classes(real, keys, label, form):
    """On a way between classes each frame is of a mix of its own; sent back, it is the same picture bit for bit."""
    body = {"model": "tiny-mixed", "seeds": None, "keys": keys, "label": label, "frames": 7}
    reply = await post(real, **body, **{"as": form})
    if form == "zip":
        archive = zipfile.ZipFile(io.BytesIO(reply.content))
        files = [archive.read(name) for name in archive.namelist() if name.startswith("frame")]
        assert len(json.loads(archive.read("animation.json"))["labels"]) == 7
    else:
        files = [data for _, data in parts_of(reply)]
    assert len(files) == 7
    for data in files:
        recipe = json.loads(Image.open(io.BytesIO(data)).text["ganymede"])
        alone = await real.post("/generate", json=recipe)
        assert alone.status_code == 200, alone.text
        np.testing.assert_array_equal(pixels(alone.content), pixels(data))


async def test_the_frames_noise_is_that_of_the_first_part_that_counts(real):
    keys = [{"mix": [{"seed": 1, "weight": 0}, {"seed": 2}]}, {"seed": 3}]
    for _, data in parts_of(await post(real, seeds=None, keys=keys, frames=3, noise="random", **{"as": "stream"})):
        recipe = json.loads(Image.open(io.BytesIO(data)).text["ganymede"])
        assert recipe["noise_seed"] == 2
        np.testing.assert_array_equal(pixels((await real.post("/generate", json=recipe)).content), pixels(data))


async def test_lines_of_json(real):
    reply = await post(real, format="webp", **{"as": "ndjson"})
    assert reply.headers["content-type"] == "application/x-ndjson" and "etag" not in reply.headers
    head, *frames, tail = [json.loads(line) for line in reply.content.splitlines()]
    assert (head["model"], head["frames"], head["height"], head["width"]) == ("tiny-w@1", 6, 8, 8)
    assert [frame["frame"] for frame in frames] == list(range(6))
    assert {frame["media_type"] for frame in frames} == {"image/webp"}
    assert pixels(base64.b64decode(frames[0]["b64"])).shape == (8, 8, 3)
    assert tail["done"] and tail["timings"]["runs"] >= 2


def watched(engine, *, fail_at=None, hold_at=None):
    """An engine whose motions note how many frames were asked of them; and may fail or be held at one."""
    real, asked, gate = engine.interpolate, [0], asyncio.Event()

    async def interpolate(*arguments, **options):
        motion = await real(*arguments, **options)

        async def batches():
            async for batch in motion.batches:
                if fail_at is not None and asked[0] >= fail_at:
                    raise RunFailed("synthesis.onnx: broken")
                if hold_at is not None and asked[0] >= hold_at:
                    await gate.wait()
                asked[0] += len(batch)
                yield batch

        return replace(motion, batches=batches())

    engine.interpolate = interpolate
    return asked, gate


async def pulled(app, body):
    """The pieces of an answer as the server sends them; an ASGI client of httpx would wait for all."""
    sent: asyncio.Queue = asyncio.Queue()
    raw = json.dumps(body).encode()
    received = [{"type": "http.request", "body": raw, "more_body": False}]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
    scope = {
        "type": "http", "method": "POST", "path": "/interpolate", "raw_path": b"/interpolate", "query_string": b"",
        "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
        "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip

    async def receive():
        if received:
            return received.pop()
        await asyncio.Event().wait()

    task = asyncio.create_task(app(scope, receive, sent.put))
    return task, sent


@pytest.mark.parametrize("form", [{"format": "apng"}, {"as": "stream"}, {"as": "ndjson"}])
async def test_the_first_frame_is_sent_before_the_last_is_drawn(real, form):
    asked, gate = watched(real.parts.engine, hold_at=12)
    task, sent = await pulled(real.app, {"model": "tiny-w", "seeds": "1,2", "frames": 60, **form})
    start = await asyncio.wait_for(sent.get(), 5)
    assert start["status"] == 200
    first = await asyncio.wait_for(sent.get(), 5)
    assert b"IDAT" in first["body"] or b"b64" in first["body"]
    assert asked[0] <= 12 and not gate.is_set()
    gate.set()
    await asyncio.wait_for(task, 10)
    assert asked[0] == 60


@pytest.mark.parametrize("form", [{"format": "apng"}, {"as": "stream"}, {"as": "ndjson"}, {"format": "webp"}])
async def test_an_error_before_the_first_frame_has_its_status(real, form):
    watched(real.parts.engine, fail_at=0)
    reply = await post(real, 500, **form)
    assert reply.json()["type"] == "urn:ganymede:problem:run-failed"


async def test_an_error_later_is_the_last_line(real):
    watched(real.parts.engine, fail_at=4)
    reply = await post(real, frames=20, **{"as": "ndjson"})
    *_, last = [json.loads(line) for line in reply.content.splitlines()]
    assert last["error"]["type"] == "urn:ganymede:problem:run-failed"


async def test_a_client_that_leaves_ends_the_frames(real):
    asked, gate = watched(real.parts.engine, hold_at=8)
    task, sent = await pulled(real.app, {"model": "tiny-w", "seeds": "1,2", "frames": 60, "as": "stream"})
    for _ in range(3):
        await asyncio.wait_for(sent.get(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await asyncio.sleep(0.05)
    assert asked[0] <= 12


async def test_an_animation_has_a_url(real):
    query = "model=tiny-w&seeds=1,2&frames=6&format=apng&truncation=0.5&directions=glasses:1&loop=true"
    reply = await real.get(f"/interpolate?{query}")
    posted = await post(real, format="apng", truncation=0.5, directions={"glasses": 1}, loop=True)
    assert reply.content == posted.content and reply.headers["etag"] == posted.headers["etag"]
    assert "max-age=60" in reply.headers["cache-control"]
    current = await real.get(f"/interpolate?{query}", headers={"if-none-match": reply.headers["etag"]})
    assert (current.status_code, current.content) == (304, b"")
    pinned = await real.get(f"/interpolate?{query.replace('tiny-w', 'tiny-w@1')}")
    assert "immutable" in pinned.headers["cache-control"]


async def test_key_frames_of_every_kind(real):
    keys = [
        {"seed": 1, "directions": {"sefa_1": -2}},
        {"latent": [0.5] * STYLE_DIM, "space": "w", "truncation": 0.5},
        {"mix": [{"seed": 1}, {"seed": 2, "weight": 2}], "styles": [{"seed": 9, "layers": 2}], "truncation_cutoff": 1},
    ]
    reply = await post(real, seeds=None, keys=keys, frames=5, truncation=0.8, method="cubic", format="apng")
    frames = shown(reply.content)
    first = await real.post(
        "/generate", json={"model": "tiny-w", "seed": 1, "truncation": 0.8, "directions": {"sefa_1": -2}}
    )
    np.testing.assert_array_equal(frames[0], pixels(first.content))
    last = await real.post("/generate", json={"model": "tiny-w", "truncation": 0.8, **keys[2]})
    np.testing.assert_array_equal(frames[4], pixels(last.content))
    recipe = json.loads(reply.headers["x-recipe"])
    again = await real.post("/interpolate", json={**recipe, "format": "apng"})
    assert again.content == reply.content


async def test_etags_tell_ways_apart(real):
    bodies = [
        {}, {"frames": 7}, {"method": "cubic"}, {"space": "z"}, {"loop": True}, {"fps": 12}, {"seeds": "2,1"},
        {"truncation": 0.5}, {"noise": "none"}, {"directions": {"glasses": 1}}, {"format": "gif"}, {"as": "zip"},
    ]  # fmt: skip
    tags = [(await post(real, **body)).headers["etag"] for body in bodies]
    assert len(set(tags)) == len(bodies)


WRONG = [
    ({"seeds": None}, "keys", "either as keys or as seeds"),
    ({"keys": [{"seed": 1}, {"seed": 2}]}, "keys", "either as keys or as seeds"),
    ({"seeds": "1"}, "seeds", "a way needs 2 at least"),
    ({"seeds": None, "keys": [{"seed": 1}]}, "keys", "a way needs 2 at least"),
    ({"seeds": None, "keys": [{"seed": 1}, {"sede": 2}]}, "keys", "keys[1] has the unknown field 'sede'; did you mean"),
    ({"seeds": None, "keys": [{"seed": 1}, {"seed": -2}]}, "keys", "keys[1].seed: -2 is outside"),
    ({"seeds": None, "keys": [{"seed": 1}, {"seed": 1, "truncation": 9}]}, "keys", "keys[1]: truncation is 9"),
    ({"seeds": None, "keys": [{"seed": 1, "mix": [{"seed": 1}]}, {"seed": 1}]}, "keys", "give seed, latent or mix"),
    ({"seeds": None, "keys": [{"mix": [[{"seed": 1}], [{"seed": 2}]]}, {"seed": 1}]}, "keys", "one mix"),
    ({"seeds": None, "keys": [1, 2]}, "keys", "keys[0]: must be an object"),
    ({"frames": 1}, "frames", "from 2"),
    ({"frames": 65}, "frames", "at most 64"),
    ({"fps": 0}, "fps", "from 1 to 60"),
    ({"loop": "yes"}, "loop", "must be true or false"),
    ({"method": "round"}, "method", "must be one of linear, spherical, cubic"),
    ({"space": "w+"}, "space", "must be one of z, w"),
    ({"model": "tiny-rgb", "space": "w"}, "space", "go through z"),
    ({"model": "tiny-grey", "seeds": "0,1"}, "label", "of the classes"),
    ({"label": ["a", "b"]}, "label", "one for all frames"),
    ({"directions": {"smile": 1}}, "directions", "'smile' is unknown"),
    ({"frame": 3}, "frame", "did you mean 'frames'?"),
    ({"frames": 2**40}, "frames", "at most 64"),
    ({"seeds": None, "keys": [{"seed": 1}, {"latent": [1.0] * 7}]}, "keys", "keys[1]: a latent of shape [7]"),
    (
        {"seeds": None, "keys": [{"mix": [{"seed": 1}, {"seed": 2}]}, {"seed": 3}], "space": "z"},
        "space",
        "mixes points in w",
    ),
    ({"as": "film"}, "as", "must be one of animation, grid"),
    ({"as": "zip", "format": "gif"}, "format", "zip comes as png, jpeg, webp, not gif"),
]


@pytest.mark.parametrize("body, field, says", WRONG)
async def test_what_is_wrong_is_named(real, body, field, says):
    problem = (await post(real, 422, **body)).json()
    assert problem["field"] == field and says in problem["detail"], problem


async def test_wrong_models_and_queries(real):
    assert (await post(real, 404, model="tiny")).json()["field"] == "model"
    frame = "model=tiny-w&seeds=1,2&frame=3"
    for query, field in ((frame, "frame"), ("model=tiny-w", "seeds"), ("seeds=1,2", "model")):
        reply = await real.get(f"/interpolate?{query}")
        assert reply.status_code == 422 and reply.json()["field"] == field


@pytest.mark.parametrize(
    "shape, fmt, accept, wanted",
    [
        (None, None, None, ("animation", "webp")),
        (None, None, "*/*", ("animation", "webp")),
        (None, None, "image/apng,image/*;q=0.5", ("animation", "apng")),
        (None, None, "image/gif", ("animation", "gif")),
        (None, None, "image/png", ("grid", "png")),
        (None, None, "application/zip", ("zip", "png")),
        (None, None, "multipart/x-mixed-replace", ("stream", "png")),
        (None, None, "application/x-ndjson", ("ndjson", "png")),
        (None, "gif", "image/webp", ("animation", "gif")),
        ("stream", None, "image/webp", ("stream", "png")),
        ("ndjson", "jpeg", None, ("ndjson", "jpeg")),
        ("grid", "webp", None, ("grid", "webp")),
    ],
)
def test_forms(shape, fmt, accept, wanted):
    form = choose_motion(shape, fmt, accept)
    assert (form.shape, form.fmt) == wanted


def test_forms_that_are_none():
    with pytest.raises(NotAcceptable):
        choose_motion(None, None, "text/html")
    with pytest.raises(InvalidRequest):
        choose_motion("grid", "apng", None)


async def test_a_client_that_reads_no_further_is_left(monkeypatch):
    """What its answer holds, pictures and room for them, others wait for."""
    monkeypatch.setattr("service.api.streaming.SEND_S", 0.05)
    ended = []

    async def pieces():
        try:
            while True:
                yield b"x"
        finally:
            ended.append(True)

    async def send(message):
        if message.get("body") and len(sent) == 3:
            await asyncio.Event().wait()
        sent.append(message)

    sent: list[dict] = []
    answer = Streamed(pieces(), {}, "image/png")
    async with asyncio.timeout(10):
        with pytest.raises(NotRead):
            await answer({"type": "http", "http_version": "1.1", "asgi": {"spec_version": "2.4"}}, None, send)
    assert ended == [True] and len(sent) == 3
