"""`/generate` through the whole stack: forms, headers, seeds, conditional requests, what reaches the engine."""

import asyncio
import base64
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from apiclient import client_of
from fakeengine import LABELS, FakeEngine
from PIL import Image

from service.imaging import FORMATS


def pixels(data: bytes) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(data)))
    return image[:, :, None] if image.ndim == 2 else image


async def test_one_image_comes_as_itself(client):
    reply = await client.post("/generate", json={"model": "faces", "seed": 7, "truncation": 0.5})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    np.testing.assert_array_equal(pixels(reply.content), FakeEngine._picture(7, None, 3))
    assert (reply.headers["x-seed"], reply.headers["x-model"]) == ("7", "faces@1")
    assert "x-label" not in reply.headers
    stages = [part.split(";")[0] for part in reply.headers["server-timing"].split(", ")]
    assert stages == ["read", "queue", "run", "encode", "total"]
    recipe = json.loads(Image.open(io.BytesIO(reply.content)).text["ganymede"])
    assert recipe == {"model": "faces@1", "seed": 7, "truncation": 0.5}


@pytest.mark.parametrize("fmt", FORMATS)
async def test_format_goes_before_accept(client, fmt):
    body = {"model": "faces", "seed": 1, "format": fmt}
    reply = await client.post("/generate", json=body, headers={"accept": "image/gif"})
    assert reply.headers["content-type"] == FORMATS[fmt]
    assert Image.MIME[Image.open(io.BytesIO(reply.content)).format] == FORMATS[fmt]


async def test_accept_chooses_where_the_body_is_silent(client):
    body = {"model": "faces", "seed": 1}
    reply = await client.post("/generate", json=body, headers={"accept": "image/webp, image/*;q=0.5"})
    assert reply.headers["content-type"] == "image/webp"
    reply = await client.post("/generate", json=body, headers={"accept": "text/html"})
    assert (reply.status_code, reply.json()["field"]) == (406, "accept")
    assert reply.json()["allowed"] == ["image/png", "image/jpeg", "image/webp", "application/json", "application/zip"]


@pytest.mark.parametrize(
    "body, seeds",
    [
        ({"seeds": [3, 1, 3]}, [3, 1, 3]),
        ({"seeds": "0,1,4-6"}, [0, 1, 4, 5, 6]),
        ({"seeds": " 7 - 8 , 1"}, [7, 8, 1]),
        ({"count": 3}, [1000, 1001, 1002]),
    ],
)
async def test_several_come_as_json_with_every_seed(client, body, seeds):
    reply = (await client.post("/generate", json={"model": "clothes", "label": "sneaker", **body})).json()
    assert [image["seed"] for image in reply["images"]] == seeds
    assert {image["label"] for image in reply["images"]} == {"Sneaker"}
    assert reply["model"] == "clothes@1" and reply["timings"]["batch_rows"] == len(seeds)
    for image in reply["images"]:
        drawn = pixels(base64.b64decode(image["b64"]))
        np.testing.assert_array_equal(drawn, FakeEngine._picture(image["seed"], None, 1))


async def test_one_image_as_json_when_asked(client):
    reply = await client.post("/generate", json={"model": "faces", "seed": 1, "as": "json", "format": "jpeg"})
    assert [image["media_type"] for image in reply.json()["images"]] == ["image/jpeg"]


async def test_zip_names_files_by_seed(client):
    body = {"model": "clothes", "seeds": [4, 9, 4], "label": ["Trouser", 0, "Sneaker"], "as": "zip"}
    reply = await client.post("/generate", json=body)
    assert (reply.headers["content-type"], reply.headers["x-seeds"]) == ("application/zip", "4,9,4")
    archive = zipfile.ZipFile(io.BytesIO(reply.content))
    assert archive.namelist() == ["seed-4.png", "seed-9.png", "seed-4-2.png", "images.json"]
    index = json.loads(archive.read("images.json"))
    assert [image["label"] for image in index["images"]] == ["Trouser", "T-shirt/top", "Sneaker"]
    assert (await client.post("/generate", json=body)).content == reply.content


async def test_grid_is_one_picture(client):
    reply = await client.post("/generate", json={"model": "faces", "seeds": "1-4", "as": "grid"})
    assert (reply.headers["content-type"], reply.headers["x-seeds"]) == ("image/png", "1,2,3,4")
    assert pixels(reply.content).shape == (2 * 8 + 2, 2 * 6 + 2, 3)


@pytest.mark.parametrize("latents, count", [([0, 1, 2.5, -1], 1), ([[0, 1, 2, 3], [1, 1, 1, 1]], 2)])
async def test_latents_outright_have_no_seed(client, latents, count):
    reply = (await client.post("/generate", json={"model": "faces", "latents": latents, "as": "json"})).json()
    assert [image["seed"] for image in reply["images"]] == [None] * count


@pytest.mark.parametrize("shape", ["zip", "grid"])
async def test_latents_outright_have_no_list_of_seeds(client, shape):
    body = {"model": "faces", "latents": [[0, 1, 2, 3], [1, 1, 1, 1]], "as": shape}
    reply = await client.post("/generate", json=body)
    assert reply.status_code == 200 and "x-seeds" not in reply.headers


async def test_label_in_a_header_is_percent_encoded(client):
    reply = await client.post("/generate", json={"model": "clothes", "seed": 1, "label": LABELS.index("Čepice")})
    assert reply.headers["x-label"] == "%C4%8Cepice"
    reply = await client.post("/generate", json={"model": "clothes", "seed": 1, "label": "t-shirt/TOP"})
    assert reply.headers["x-label"] == "T-shirt/top"


async def test_a_null_field_is_an_absent_one(client):
    body = {"model": "faces", "seed": None, "seeds": [5], "label": None, "as": None, "format": None}
    assert (await client.post("/generate", json=body)).headers["x-seed"] == "5"


async def test_deadline_and_priority_reach_the_engine(client, engine):
    await client.post("/generate", json={"model": "faces", "seed": 1})
    await client.post(
        "/generate", json={"model": "faces", "seed": 1}, headers={"x-request-timeout-ms": "250", "x-priority": "2"}
    )
    assert [call["priority"] for call in engine.calls] == [5, 2]
    left_s = [call["timeout_s"] for call in engine.calls]
    assert 29 < left_s[0] < 30 and 0.001 <= left_s[1] < 0.25, "what it took to come is part of it"


@pytest.mark.parametrize("name", ["x-request-timeout-ms", "x-priority"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "", "99999999999", "٣"])
async def test_wrong_headers_are_named(client, name, value):
    headers = {name.encode(): value.encode()}
    reply = await client.post("/generate", json={"model": "faces", "seed": 1}, headers=headers)
    assert (reply.status_code, reply.json()["field"].lower()) == (422, name)


async def test_a_picture_has_a_url(client, engine):
    url = "/generate?model=clothes&seed=7&label=Sneaker&truncation=0.7&format=png"
    got = await client.get(url)
    body = {"model": "clothes", "seed": 7, "label": "sneaker", "truncation": 0.7, "format": "png"}
    posted = await client.post("/generate", json=body)
    assert (got.status_code, got.content, got.headers["etag"]) == (200, posted.content, posted.headers["etag"])
    assert got.headers["cache-control"] == "public, max-age=60"
    ran = len(engine.calls)
    again = await client.get(url, headers={"if-none-match": f'"x", {got.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", got.headers["etag"])
    assert len(engine.calls) == ran
    pinned = await client.get(url.replace("clothes", "clothes@1"))
    assert pinned.headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_a_number_in_the_query_is_an_index(client):
    reply = await client.get("/generate?model=clothes&seed=7&label=2")
    assert reply.headers["x-label"] == "Sneaker"


@pytest.mark.parametrize(
    "query, field",
    [
        ("seed=1", "model"),
        ("model=faces", "seed"),
        ("model=faces&seed=1&seed=2", "seed"),
        ("model=faces&seed=x", "seed"),
        ("model=faces&seed=-1", "seed"),
        ("model=faces&seed=4294967296", "seed"),
        ("model=faces&seed=1&truncation=nan", "truncation"),
        ("model=faces&seed=1&truncation=1e999", "truncation"),
        ("model=faces&seed=1&truncation=3", "truncation"),
        ("model=faces&seed=1&format=gif", "format"),
        ("model=faces&seed=1&labl=x", "labl"),
        ("model=clothes&seed=1&label=Hat", "label"),
        ("model=clothes&seed=1&label=17", "label"),
        ("model=faces&seed=1&label=%ff%00", "label"),
        ("model=&seed=1", "model"),
    ],
)
async def test_wrong_queries_name_the_parameter(client, query, field):
    reply = await client.get(f"/generate?{query}")
    assert (reply.status_code, reply.json()["field"]) == (422, field)


async def test_etag_names_all_that_the_bytes_depend_on(client, engine):
    async def tag(**changes) -> str:
        body = {"model": "clothes", "seed": 1, "label": 2, "truncation": 1, "format": "png"} | changes
        return (await client.post("/generate", json=body)).headers.get("etag")

    first = await tag()
    assert await tag(label="SNEAKER") == first == await tag(seed=None, seeds=[1])
    others = [
        await tag(seed=2),
        await tag(label=1),
        await tag(truncation=0.5),
        await tag(format="webp"),
        await tag(label=None),
    ]
    others.append(await tag(seed=None, latents=[0, 0, 0, 1]))
    others.append(await tag(seed=None, latents=[0, 0, 0, 2]))
    engine.infos["clothes@1"] = replace(engine.infos["clothes@1"], providers=("cuda",))
    others.append(await tag())
    assert len({first, *others}) == len(others) + 1
    assert await tag(seed=None, count=1) is None
    async with client_of(engine, provenance=False) as plain:
        body = {"model": "clothes", "seed": 1, "label": 2, "truncation": 1, "format": "png"}
        assert (await plain.post("/generate", json=body)).headers["etag"] not in {first, *others}


async def test_without_marks_the_file_is_bare(engine):
    async with client_of(engine, provenance=False) as client:
        reply = await client.post("/generate", json={"model": "faces", "seed": 1})
    assert not Image.open(io.BytesIO(reply.content)).text


async def test_large_pictures_encode_in_a_thread(client, engine, monkeypatch):
    monkeypatch.setattr("service.api.pictures.INLINE_BYTES", 0)
    reply = await client.post("/generate", json={"model": "faces", "seed": 3})
    np.testing.assert_array_equal(pixels(reply.content), FakeEngine._picture(3, None, 3))
    assert any(thread.name.startswith("encode") for thread in client.parts.encoders._threads)


async def test_any_copy_is_current_for_a_star(client, engine):
    url = "/generate?model=clothes&seed=7"
    assert (await client.get(url, headers={"if-none-match": "*"})).status_code == 304
    lines = [("if-none-match", '"x"'), ("if-none-match", (await client.get(url)).headers["etag"])]
    assert (await client.get(url, headers=lines)).status_code == 304
    assert (await client.get(url, headers={"if-none-match": '"*"'})).status_code == 200


async def test_accept_may_come_in_several_lines(client):
    lines = [("accept", "text/plain"), ("accept", "image/webp")]
    reply = await client.post("/generate", json={"model": "faces", "seed": 1}, headers=lines)
    assert reply.headers["content-type"] == "image/webp"


async def test_minus_zero_is_zero(client):
    replies = [
        await client.post("/generate", json={"model": "faces", "seed": 1, "truncation": value}) for value in (0, -0.0)
    ]
    assert replies[0].content == replies[1].content and replies[0].headers["etag"] == replies[1].headers["etag"]


async def test_a_get_with_too_large_a_body_is_413(client, engine):
    async def stream():
        for _ in range(64):
            yield b" " * (1 << 15)

    engine.gate = asyncio.Event()  # the body is read while the picture is waited for
    async with asyncio.timeout(20):
        reply = await client.request("GET", "/generate?model=faces&seed=1", content=stream())
    assert reply.status_code == 413 and engine.cancelled == 1


async def test_a_version_that_comes_in_between_has_no_tag_of_the_one_before(client, engine):
    engine.gate = asyncio.Event()
    asking = asyncio.create_task(client.get("/generate?model=clothes&seed=7"))
    async with asyncio.timeout(20):
        while not engine.calls:  # noqa: ASYNC110  # the fake tells nobody
            await asyncio.sleep(0.001)
        engine.answers_as = "clothes@2"
        engine.gate.set()
        reply = await asking
    assert reply.headers["x-model"] == "clothes@2" and "etag" not in reply.headers
