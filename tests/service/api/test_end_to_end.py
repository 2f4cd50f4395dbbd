"""The app over the real engine and tiny real models: pixels, labels, batching, models that arrive or are bad."""

import asyncio
import base64
import io
import json
import shutil

import numpy as np
import pytest
from apiclient import client_of
from PIL import Image
from sockets import served
from tinymodels import write_picture_model, write_tiny
from uploads import saved, smooth

from service.api.app import engine_of
from service.manifest import Task
from service.settings import Settings

END = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"

QUICK = {"profile_s": 0.0, "providers": "cpu", "lanes": 1, "threads_per_lane": 1}


async def open_client(models, **settings):
    settings = {**QUICK, "models": models, **settings}
    engine = engine_of(Settings(**settings))
    return client_of(engine, **settings)


@pytest.fixture
async def real(tiny_models):
    async with await open_client(tiny_models) as client:
        yield client


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


async def test_the_picture_is_what_the_engine_draws(real):
    drawn = await real.parts.engine.generate("tiny-rgb", seeds=[7])
    reply = await real.post("/generate", json={"model": "tiny-rgb", "seed": 7})
    np.testing.assert_array_equal(pixels(reply.content), drawn.images[0])
    assert reply.headers["x-model"] == "tiny-rgb@1"


async def test_alone_and_among_many_a_seed_is_the_same_bytes(real):
    alone = [(await real.post("/generate", json={"model": "tiny-grey", "seed": seed})).content for seed in range(24)]

    async def one(seed: int) -> bytes:
        return (await real.post("/generate", json={"model": "tiny-grey", "seed": seed})).content

    together = await asyncio.gather(*(one(seed) for seed in range(24)))
    assert list(together) == alone
    listed = (await real.post("/generate", json={"model": "tiny-grey", "seeds": "0-23"})).json()
    assert [base64.b64decode(image["b64"]) for image in listed["images"]] == alone
    assert len(set(alone)) == 24


async def test_a_picture_can_be_made_again_from_its_own_text(real):
    first = await real.post("/generate", json={"model": "tiny-grey", "count": 1, "truncation": 0.6})
    recipe = json.loads(Image.open(io.BytesIO(first.content)).text["ganymede"])
    assert recipe["seed"] == int(first.headers["x-seed"]) and recipe["label"] == first.headers["x-label"]
    assert (await real.post("/generate", json=recipe)).content == first.content


@pytest.mark.parametrize("label", ["Square", "sQUARE", 1, "1"])
async def test_labels_by_name_and_index(real, label):
    reply = await real.post("/generate", json={"model": "tiny-grey", "seed": 1, "label": label})
    assert reply.headers["x-label"] == "Square"
    assert (await real.get(f"/generate?model=tiny-grey&seed=1&label={label}")).content == reply.content


@pytest.mark.parametrize(
    "body, status, field",
    [
        ({"model": "tiny-gray"}, 404, "model"),
        ({"model": "tiny-grey@9"}, 404, "model"),
        ({"model": "tiny-grey@x"}, 404, "model"),
        ({"model": "tiny-grey", "label": "Star"}, 422, "label"),
        ({"model": "tiny-grey", "label": 3}, 422, "label"),
        ({"model": "tiny-rgb", "label": "Square"}, 422, "label"),
        ({"model": "tiny-rgb", "latents": [1, 2, 3]}, 422, "latents"),
        ({"model": "tiny-rgb", "count": 65}, 422, "count"),
    ],
)
async def test_the_real_engines_refusals_name_the_field(real, body, status, field):
    reply = await real.post("/generate", json=body)
    assert (reply.status_code, reply.json()["field"]) == (status, field)


async def test_latents_and_seeds_agree(real):
    z = np.random.RandomState(5).randn(8).astype(np.float32)
    by_seed = await real.post("/generate", json={"model": "tiny-rgb", "seed": 5})
    by_latents = await real.post("/generate", json={"model": "tiny-rgb", "latents": [float(number) for number in z]})
    np.testing.assert_array_equal(pixels(by_latents.content), pixels(by_seed.content))
    assert "x-seed" not in by_latents.headers


async def test_a_deadline_that_has_passed_is_504_or_429(real):
    async def one() -> int:
        headers = {"x-request-timeout-ms": "1"}
        body = {"model": "tiny-rgb", "seeds": "0-63", "as": "grid"}
        return (await real.post("/generate", json=body, headers=headers)).status_code

    codes = set(await asyncio.gather(*(one() for _ in range(64))))
    assert codes <= {200, 429, 504} and codes != {200}


async def test_models_and_metrics_of_the_real_engine(real):
    await real.post("/generate", json={"model": "tiny-rgb", "seeds": "0-4"})
    page = (await real.get("/models/tiny-rgb")).json()
    assert page["providers"] == ["cpu"] and page["plans"]["generator"]["lanes"] == 1
    assert page["image"] == {"height": 8, "width": 8, "channels": 3}
    text = (await real.get("/metrics")).text
    assert 'ganymede_rows_total{model="tiny-rgb@1"}' in text and 'provider="cpu"' in text
    assert (await real.get("/models/tiny-rgb/card")).text == "# tiny-rgb\n"
    assert Image.open(io.BytesIO((await real.get("/models/tiny-rgb/samples.png")).content)).size == (1, 1)


async def test_a_model_that_arrives_is_served_without_a_restart(tiny_models, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    async with await open_client(models, poll_models_s=0.05, admin=True) as client:
        write_tiny(models, "tiny-late")
        async with asyncio.timeout(20):
            while (await client.get("/models/tiny-late")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await client.post("/generate", json={"model": "tiny-late", "seed": 1})).status_code == 200
        assert (await client.post("/models/tiny-late/unload")).status_code == 204
        assert (await client.post("/generate", json={"model": "tiny-late", "seed": 1})).status_code == 404
        assert (await client.post("/models/tiny-late/load")).json()["ref"] == "tiny-late@1"
        assert (await client.post("/models/nowhere/load")).status_code == 404


async def test_a_bad_folder_is_refused_by_name_and_the_others_serve(tiny_models, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    with (models / "tiny-rgb" / "1" / "generator.onnx").open("ab") as file:
        file.write(b"\0")
    async with await open_client(models, admin=True) as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 200 and list(ready.json()["refused"]) == ["tiny-rgb@1"]
        assert (await client.post("/generate", json={"model": "tiny-rgb"})).status_code == 404
        assert (await client.post("/generate", json={"model": "tiny-grey", "seed": 1})).status_code == 200
        assert (await client.post("/models/tiny-rgb/load")).status_code == 409
        assert "ganymede_models_refused 1.0" in (await client.get("/metrics")).text


class TestAsleep:
    """Models that are loaded when somebody asks for them."""

    @pytest.mark.parametrize("fast", [True, False])
    async def test_the_first_request_waits_for_its_model(self, tiny_models, monkeypatch, fast):
        settings = {**QUICK, "models": tiny_models, "load_on_demand": True}
        async with served(engine_of(Settings(**settings)), monkeypatch, fast=fast, **settings) as app:
            listed = (await app.client.get("/models")).json()
            assert listed["models"] == [] and listed["asleep"] == ["tiny-grey@1", "tiny-rgb@1"]
            assert (await app.client.get("/readyz")).status_code == 200
            body = b'{"model":"tiny-rgb","seed":7}'
            head = b"host: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body)
            asked = b"POST /generate HTTP/1.1\r\n" + head + b"%b\r\n" + body
            first, second = await asyncio.gather(*(app.talk(asked % b"connection: close\r\n") for _ in range(2)))
            assert first.startswith(b"HTTP/1.1 200") and b"x-model: tiny-rgb@1" in first
            assert first.partition(b"\r\n\r\n")[2] == second.partition(b"\r\n\r\n")[2]
            link = b"GET /generate?model=tiny-grey@latest&seed=1 HTTP/1.1\r\nhost: x\r\n"
            assert b"x-model: tiny-grey@1" in await app.talk(link + b"\r\n" + END)
            assert len(app.fast) == (1 if fast else 0)
            assert (await app.client.get("/models")).json()["asleep"] == []

    async def test_what_is_said_of_one_that_is_not_asked_to_draw(self, tiny_models):
        async with await open_client(tiny_models, load_on_demand=True) as client:
            reply = await client.get("/models/tiny-rgb")
            assert (reply.status_code, reply.json()["reason"]) == (503, "asleep") and "retry-after" in reply.headers

    @pytest.mark.parametrize("query", ["?model=tiny-x2", ""])
    async def test_an_upload_waits_too(self, tmp_path, query):
        write_picture_model(tmp_path, "tiny-x2", Task.UPSCALE, scale=2)
        async with await open_client(tmp_path, load_on_demand=True) as client:
            file = {"image": ("a.png", saved(smooth(8, 6), "PNG"), "image/png")}
            reply = await client.post(f"/upscale{query}", files=file, data={} if query else {"model": "tiny-x2"})
            assert reply.status_code == 200 and reply.headers["x-model"] == "tiny-x2@1"
