"""`/project` through the whole stack: a picture's latent, what it draws, and that it can be edited then."""

import base64
import io
import json

import numpy as np
import pytest
from apiclient import client_of
from PIL import Image
from tinymodels import STYLE_DIM, STYLE_LAYERS, TINY_LABELS, write_picture_model, write_tiny, write_tiny_style

from service.api.app import engine_of
from service.imaging import encode
from service.manifest import Task
from service.settings import Settings

QUICK = {"profile_s": 0.0, "providers": "cpu", "lanes": 1, "threads_per_lane": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_style(root, encoder="passes", directions=("sefa_1",))
    write_tiny_style(root, "tiny-once", encoder="w")
    write_tiny_style(root, "tiny-kinds", encoder="w+", labels=TINY_LABELS)
    write_tiny(root, "tiny-rgb")
    write_picture_model(root, "tiny-paint", Task.TRANSLATE)
    return root


@pytest.fixture
async def real(models):
    settings = {**QUICK, "models": models}
    async with client_of(engine_of(Settings(**settings)), **settings) as client:
        yield client


@pytest.fixture
async def picture(real):
    drawn = await real.parts.engine.generate("tiny-w", seeds=[3], truncation=0.2)
    return encode(drawn.images[0], "png")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


async def send(client, picture, status=200, accept="*/*", **fields):
    fields = {"model": "tiny-w", **fields}
    reply = await client.post("/project", files={"image": ("a.png", picture)}, data=fields, headers={"accept": accept})
    assert reply.status_code == status, reply.text
    return reply


async def test_latent_and_reconstruction(real, picture):
    answer = (await send(real, picture, passes="8")).json()
    assert (answer["model"], answer["space"], answer["passes"], answer["label"]) == ("tiny-w@1", "w+", 8, None)
    assert np.shape(answer["latent"]) == (STYLE_LAYERS, STYLE_DIM)
    drawn = pixels(base64.b64decode(answer["reconstruction"]["b64"]))
    again = await real.post(
        "/generate", json={"model": "tiny-w", "latents": answer["latent"], "space": answer["space"]}
    )
    np.testing.assert_array_equal(pixels(again.content), drawn)
    assert answer["psnr_db"] > 25
    edit = {"model": "tiny-w", "latents": answer["latent"], "space": "w+", "directions": {"sefa_1": 1.0}}
    edited = await real.post("/generate", json=edit)
    assert (pixels(edited.content) != drawn).any()


@pytest.mark.parametrize("encoding", ["json", "base64", "npy"])
async def test_latents_in_every_writing(real, picture, encoding):
    answer = (await send(real, picture, return_latents=encoding, format="webp")).json()
    assert answer["reconstruction"]["media_type"] == "image/webp"
    sent = {"model": "tiny-w", "latents": [answer["latent"]], "space": "w+", "return_latents": "base64"}
    drawn = (await real.post("/generate", json=sent)).json()
    plain = (await send(real, picture, return_latents="base64")).json()
    assert drawn["images"][0]["latent"] == plain["latent"]


async def test_the_picture_itself_says_its_latent(real, picture):
    reply = await send(real, picture, accept="image/png")
    assert reply.headers["content-type"] == "image/png" and float(reply.headers["x-psnr-db"]) > 15
    recipe = json.loads(Image.open(io.BytesIO(reply.content)).text["ganymede"])
    assert recipe == json.loads(reply.headers["x-recipe"])
    again = await real.post("/generate", json=recipe)
    np.testing.assert_array_equal(pixels(again.content), pixels(reply.content))
    other = await send(real, picture, **{"as": "image"})
    assert other.content == reply.content and other.headers["etag"] == reply.headers["etag"]
    assert (await send(real, picture, passes="1", **{"as": "image"})).headers["etag"] != reply.headers["etag"]


async def test_the_latent_as_npy_and_the_picture_as_the_body(real, picture):
    reply = await send(real, picture, model="tiny-once", **{"as": "npy"})
    latents = np.load(io.BytesIO(reply.content))
    assert latents.shape == (1, STYLE_LAYERS, STYLE_DIM) and reply.headers["x-space"] == "w+"
    head = {"content-type": "image/png"}
    bare = await real.post("/project?model=tiny-once&as=npy", content=picture, headers=head)
    assert bare.content == reply.content


async def test_classes(real, picture):
    reply = await send(real, picture, model="tiny-kinds")
    assert reply.json()["label"] is None  # in w there is no class any more


async def test_what_a_model_can_do_is_stated(real):
    told = {model["name"]: model["steering"] for model in (await real.get("/models")).json()["models"]}
    assert told["tiny-w"]["project"] == {"space": "w+", "passes": 16}
    assert told["tiny-once"]["project"] == {"space": "w", "passes": 1}
    assert told["tiny-rgb"]["project"] is None and told["tiny-paint"] is None


WRONG = [
    ({"model": "tiny-rgb"}, 422, "model", "tiny-rgb@1 has no encoder to project by"),
    ({"model": "tiny-paint"}, 422, "model", "does not generate"),
    ({"model": "tiny"}, 404, "model", "'tiny' is not loaded"),
    ({"passes": "17"}, 422, "passes", "takes 1 to 16"),
    ({"passes": "x"}, 422, "passes", "takes 1 to 16"),
    ({"model": "tiny-once", "passes": "2"}, 422, "passes", "takes 1 to 1"),
    ({"as": "zip"}, 422, "as", "must be one of json, image, npy"),
    ({"format": "gif"}, 422, "format", "must be one of png, jpeg, webp"),
    ({"return_latents": "xml"}, 422, "return_latents", "must be one of json, base64, npy"),
    ({"return_latents": "json", "as": "image"}, 422, "as", "has no room for them"),
    ({"pass": "2"}, 422, "pass", "did you mean 'passes'?"),
    ({"label": "Circle"}, 422, "label", "no classes"),
]


@pytest.mark.parametrize("fields, status, field, says", WRONG)
async def test_what_is_wrong_is_named(real, picture, fields, status, field, says):
    problem = (await send(real, picture, status, **fields)).json()
    assert problem["field"] == field and says in problem["detail"], problem


async def test_what_is_no_picture_is_refused(real, picture):
    assert (await send(real, b"no picture", 415)).json()["field"] == "image"
    assert (await send(real, picture[:-20], 400)).json()["field"] == "image"
    assert (await send(real, picture, 406, accept="text/html")).json()["field"] == "accept"
