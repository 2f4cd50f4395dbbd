"""The latent API over HTTP: what a body may say, what answers tell, and that their own words ask for them again."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from apiclient import client_of
from PIL import Image
from tinymodels import STYLE_DIM, STYLE_LAYERS, TINY_LABELS, write_tiny, write_tiny_style

from service.api.app import engine_of
from service.engine.latents import latents_from_seeds
from service.engine.wire import npy_of
from service.settings import Settings

QUICK = {"profile_s": 0.0, "providers": "cpu", "lanes": 1, "threads_per_lane": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_style(root, directions=("sefa_1", "sefa_2", "glasses"))
    write_tiny(root, "tiny-rgb", directions=("smile",))
    write_tiny(root, "tiny-grey", channels=1, labels=TINY_LABELS)
    write_tiny(root, "tiny-mixed", labels=TINY_LABELS, weighed=True)
    return root


@pytest.fixture
async def real(models):
    settings = {**QUICK, "models": models}
    async with client_of(engine_of(Settings(**settings)), **settings) as client:
        yield client


async def post(client, status=200, **body):
    reply = await client.post("/generate", json={"model": "tiny-w", **body})
    assert reply.status_code == status, reply.text
    return reply


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


STEERED = [
    {"mix": [{"seed": 1, "weight": 0.7}, {"seed": 2, "weight": 0.3}], "truncation": 0.7},
    {"seed": 3, "directions": {"sefa_1": 2.0, "glasses": {"strength": -1.5, "layers": "1-2"}}},
    {"seed": 3, "styles": [{"seed": 4, "layers": "0-1"}, {"seed": 5, "layers": 2}], "noise": "random"},
    {"seed": 3, "truncation": 0.5, "truncation_cutoff": 1, "noise": "none"},
    {"mix": [{"seed": 1}, {"latent": [0.5] * STYLE_DIM, "space": "w"}], "noise": "random", "noise_seed": 9},
    {"latents": [[0.25 * layer] * STYLE_DIM for layer in range(STYLE_LAYERS)], "space": "w+"},
    {"latents": [1, -1, 0, 0, 0.5, 0, 0, 0], "directions": {"sefa_2": 0.5}},
    {"latents": [1, -1, 0, 0, 0.5, 0, 0, 0]},
    {"model": "tiny-rgb", "latents": [1, -1, 0, 0, 0.5, 0, 0, 0], "truncation": 0.5},
    {"model": "tiny-grey", "latents": [1, -1, 0, 0, 0.5, 0, 0, 0], "label": TINY_LABELS[1]},
]


@pytest.mark.parametrize("body", STEERED)
@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp"])
async def test_a_picture_says_how_to_make_it_again(real, body, fmt):
    first = await post(real, **body, format=fmt)
    picture = Image.open(io.BytesIO(first.content))
    if fmt == "png":
        recipe = json.loads(picture.text["ganymede"])
    else:
        recipe = json.loads(bytes(picture.getexif().get_ifd(0x8769)[0x9286]).removeprefix(b"ASCII\0\0\0"))
    assert recipe == json.loads(first.headers["x-recipe"])
    again = await real.post("/generate", json={**recipe, "format": fmt})
    assert again.content == first.content
    if "latents" not in body:  # which may be written in several ways
        assert first.headers["etag"] == again.headers["etag"]
    assert ("x-seed" in first.headers) == ("seed" in body)


@pytest.mark.parametrize("body", STEERED)
async def test_json_says_it_too(real, body):
    answer = (await post(real, **body, **{"as": "json"})).json()
    image = answer["images"][0]
    recipe = {name: value for name, value in image.items() if name not in ("media_type", "b64")}
    again = (await post(real, **{**body, **recipe, "truncation": answer["truncation"], "as": "json"})).json()
    assert again["images"] == answer["images"]


@pytest.mark.parametrize("encoding", ["json", "base64", "npy"])
@pytest.mark.parametrize("model, name", [("tiny-w", "sefa_1"), ("tiny-rgb", "smile")])
async def test_latents_come_back_and_go_in_again(real, encoding, model, name):
    body = {"model": model, "seeds": "1,4-5", "truncation": 0.6, "directions": {name: 1.25}}
    answer = (await post(real, **body, return_latents=encoding)).json()
    assert answer["space"] == ("w+" if model == "tiny-w" else "z")
    latents = [image["latent"] for image in answer["images"]]
    sent = {"model": model, "latents": latents, "space": answer["space"], "as": "json"}
    again = (await post(real, **sent)).json()
    for one, two in zip(answer["images"], again["images"], strict=True):
        np.testing.assert_array_equal(pixels(base64.b64decode(one["b64"])), pixels(base64.b64decode(two["b64"])))
    alone = (await post(real, **{**sent, "latents": latents[1]})).json()
    assert len(alone["images"]) == 1
    np.testing.assert_array_equal(
        pixels(base64.b64decode(alone["images"][0]["b64"])), pixels(base64.b64decode(answer["images"][1]["b64"]))
    )


async def test_latents_alone_count_as_no_pictures(real):
    before = (await real.get("/metrics")).text
    assert (await post(real, seeds=[1, 2], **{"as": "npy"})).status_code == 200
    assert "ganymede_images_total{" not in before and "ganymede_images_total{" not in (await real.get("/metrics")).text


async def test_latents_as_an_npy_file(real):
    drawn = await real.parts.engine.generate("tiny-w", seeds=[1, 2], truncation=0.5)
    reply = await post(real, seeds=[1, 2], truncation=0.5, **{"as": "npy"})
    assert (reply.headers["content-type"], reply.headers["x-space"]) == ("application/x-npy", "w+")
    latents = np.load(io.BytesIO(reply.content), allow_pickle=False)
    np.testing.assert_array_equal(latents, drawn.latents)
    packed = await post(real, seeds=[1, 2], truncation=0.5, return_latents="npy", **{"as": "zip"})
    archive = zipfile.ZipFile(io.BytesIO(packed.content))
    assert archive.namelist() == ["seed-1.png", "seed-2.png", "latents.npy", "images.json"]
    assert archive.read("latents.npy") == reply.content
    assert json.loads(archive.read("images.json"))["space"] == "w+"
    head = {"content-type": "application/x-npy"}
    sent = await real.post("/generate?model=tiny-w&space=w%2B&as=json", content=reply.content, headers=head)
    for image, expected in zip(sent.json()["images"], drawn.images, strict=True):
        np.testing.assert_array_equal(pixels(base64.b64decode(image["b64"])), expected)
    z = npy_of(latents_from_seeds([7], 8))
    plain = await real.post("/generate?model=tiny-w&truncation=0.5&directions=sefa_1:2", content=z, headers=head)
    other = await post(real, seed=7, truncation=0.5, directions={"sefa_1": 2})
    np.testing.assert_array_equal(pixels(plain.content), pixels(other.content))


async def test_steered_pictures_have_urls(real):
    steered = {"truncation_cutoff": 2, "truncation": 0.5, "noise": "random", "noise_seed": 5}
    query = "&".join(f"{name}={value}" for name, value in steered.items())
    reply = await real.get(f"/generate?model=tiny-w&seed=3&{query}&directions=sefa_1:2,glasses:-0.5")
    assert reply.status_code == 200, reply.text
    posted = await post(real, seed=3, **steered, directions={"glasses": -0.5, "sefa_1": 2})
    assert reply.content == posted.content


async def test_a_seed_mixed_with_itself_is_the_seeds_file(real):
    plain = await post(real, seed=6, truncation=0.5)
    mixed = await post(real, mix=[{"seed": 6, "weight": 1}, {"seed": 6}], truncation=0.5, directions={"glasses": 0})
    assert mixed.content == plain.content and mixed.headers["x-seed"] == "6"
    assert "x-recipe" not in mixed.headers


@pytest.mark.parametrize(
    "body",
    [
        {"seeds": "0-2"},
        {"seeds": "0-2", "model": "tiny-grey"},
        {"seeds": "0-2", "model": "tiny-mixed", "label": {TINY_LABELS[0]: 0.7, TINY_LABELS[1]: 0.3}},
        {"seeds": "0-2", "directions": {"sefa_1": 1.5}, "truncation": 0.5},
        {"latents": [[0.5] * 8, [1.0] * 8]},
        {"latents": [[0.5] * STYLE_DIM, [1.0] * STYLE_DIM], "space": "w"},
        {"mix": [[{"seed": 1}], [{"seed": 1}, {"seed": 2}]]},
        {"mix": [[{"seed": 1}, {"seed": 2}], [{"latent": [0.5] * STYLE_DIM, "space": "w"}], [{"seed": 3}]]},
    ],
)
async def test_a_grid_says_how_to_make_it_again(real, body):
    first = await post(real, **body, **{"as": "grid"})
    recipe = json.loads(Image.open(io.BytesIO(first.content)).text["ganymede"])
    again = await real.post("/generate", json=recipe)
    assert again.status_code == 200, again.text
    assert again.content == first.content


@pytest.mark.parametrize("shape", ["image", "grid"])
async def test_a_recipe_that_is_too_long_is_no_shorter_picture(real, monkeypatch, shape):
    """Less of it would ask for another picture: a mark names the model alone, and there is no header."""
    body = {"seed": 1, "styles": [{"seed": 2, "layers": "0-1"}], "as": shape}
    monkeypatch.setattr("service.api.pictures.MARK_CHARACTERS", 60)
    monkeypatch.setattr("service.api.pictures.HEADER_CHARACTERS", 60)
    reply = await post(real, **body)
    assert json.loads(Image.open(io.BytesIO(reply.content)).text["ganymede"]) == {"model": "tiny-w@1"}
    assert "x-recipe" not in reply.headers


async def test_numbers_that_could_not_be_sent_back_are_refused(real):
    for field, body in {
        "mix": {"mix": [{"seed": 1, "weight": 1000}, {"seed": 2, "weight": -999.999998}]},
        "truncation": {"model": "tiny-rgb", "latents": [[9e5] * 8], "truncation": 2},
    }.items():
        problem = (await post(real, 422, **body)).json()
        assert problem["field"] == field and "leads to numbers beyond 1e+06" in problem["detail"], problem


async def test_a_null_within_a_part_is_absent_too(real):
    one = await post(real, mix=[{"seed": 1, "weight": None, "label": None}, {"seed": 2}])
    assert one.content == (await post(real, mix=[{"seed": 1}, {"seed": 2}])).content
    styles = [{"latent": [0.5] * 8, "layers": 1, "space": None}]
    assert (await post(real, seed=1, styles=styles)).status_code == 200


@pytest.mark.parametrize("kind", ["Application/X-NPY", "application/x-npy; v=1"])
async def test_the_type_of_an_npy_may_be_written_in_any_way(real, kind):
    body = npy_of(latents_from_seeds([3], 8))
    reply = await real.post("/generate?model=tiny-rgb", content=body, headers={"content-type": kind})
    assert reply.status_code == 200, reply.text
    other = await real.post("/generate?model=tiny-rgb", content=body, headers={"content-type": "text/plain"})
    assert other.status_code == 415 and other.json()["allowed"] == ["application/json", "application/x-npy"]
    assert other.headers["accept-post"] == "application/json, application/x-npy"


async def test_grids_and_zips_of_mixes(real):
    mixes = [[{"seed": 1, "weight": one}, {"seed": 2, "weight": 4 - one}] for one in (1, 2, 3)]
    grid = await post(real, mix=mixes, **{"as": "grid"})
    recipe = json.loads(Image.open(io.BytesIO(grid.content)).text["ganymede"])
    assert [len(mix) for mix in recipe["mix"]] == [2, 2, 2]
    archive = zipfile.ZipFile(io.BytesIO((await post(real, mix=mixes, **{"as": "zip"})).content))
    assert archive.namelist() == ["mix-0.png", "mix-1.png", "mix-2.png", "images.json"]
    assert json.loads(archive.read("images.json"))["images"][2]["mix"] == [
        {"seed": 1, "weight": 3.0},
        {"seed": 2, "weight": 1.0},
    ]


async def test_the_document_names_the_headers_of_answers(real):
    document = (await real.get("/openapi.json")).json()
    asked = [
        ("/generate", "post", {"seed": 1}, 200),
        ("/generate", "post", {"seeds": "1-2", "as": "npy"}, 200),
        ("/generate", "post", {"mix": [{"seed": 1}, {"seed": 2}], "format": "png"}, 200),
        ("/generate", "post", {"seed": -1}, 422),
        ("/interpolate", "post", {"seeds": "1,2", "frames": 2}, 200),
    ]
    for path, method, body, status in asked:
        reply = await real.request(method, path, json={"model": "tiny-w", **body})
        assert reply.status_code == status
        named = {name.lower() for name in document["paths"][path][method]["responses"][str(status)]["headers"]}
        own = {name for name in reply.headers if name.startswith("x-")} - {"x-content-type-options"}
        own |= {"etag", "server-timing", "traceparent"} & set(reply.headers)
        assert len(own) >= 3 and own <= named, own - named


async def test_etags_tell_steerings_apart(real):
    bodies = [{"seed": 3}, *STEERED, {"seed": 3, "directions": {"sefa_1": 2.0}}, {"seed": 3, "noise": "none"}]
    tags = [(await post(real, **body)).headers["etag"] for body in bodies]
    assert len(set(tags)) == len(bodies)


async def test_what_a_model_can_do_is_stated(real):
    told = (await real.get("/models/tiny-w")).json()
    assert told["steering"] == {
        "spaces": ["z", "w", "w+"],
        "style_layers": STYLE_LAYERS,
        "style_dim": STYLE_DIM,
        "mix": "w",
        "class_mix": False,
        "noise": ["constant", "random", "none"],
        "directions": ["sefa_1", "sefa_2", "glasses"],
        "project": None,
    }
    assert told["manifest"]["generate"]["directions"] == ["sefa_1", "sefa_2", "glasses"]
    grey = (await real.get("/models/tiny-grey")).json()["steering"]
    assert (grey["spaces"], grey["mix"], grey["noise"], grey["directions"]) == (["z"], "z", [], [])


B64 = base64.b64encode(np.zeros(8, "<f4").tobytes()).decode()
WRONG = [
    ({"seed": 1, "mix": [{"seed": 2}]}, "mix", "seed and mix exclude each other"),
    ({"mix": []}, "mix", "must be an array of parts"),
    ({"mix": [{"seed": 1, "wieght": 2}]}, "mix", "mix[0] has the unknown field 'wieght'; did you mean 'weight'?"),
    ({"mix": [{"seed": 1, "latent": B64}]}, "mix", "mix[0]: give either seed or latent"),
    ({"mix": [{"weight": 1}]}, "mix", "mix[0]: give either seed or latent"),
    ({"mix": [{"seed": -1}]}, "mix", "mix[0].seed: -1 is outside"),
    ({"mix": [{"seed": 1, "weight": "x"}]}, "mix", "mix[0].weight: must be a finite number"),
    ({"mix": [{"seed": 1, "weight": 1}, {"seed": 2, "weight": -1}]}, "mix", "sum must be above 0"),
    ({"mix": [{"seed": 1, "space": "w"}]}, "mix", "mix[0].space: is that of a latent"),
    ({"mix": [{"latent": ["1"]}]}, "mix", "mix[0].latent: must be an array of numbers"),
    ({"mix": [{"latent": [1, "a" * 2000, *[2] * 9]}]}, "mix", "mix[0].latent: must be an array of numbers"),
    ({"mix": [[{"seed": 1}] * 60] * 5}, "mix", "300 parts in all, at most 256"),
    ({"mix": [[{"seed": 1}] * 65]}, "mix", "mix[0] has 65 parts, at most 64"),
    ({"latents": [[1, "a"], [1, 2]], "space": "w+"}, "latents", "must be in w+ an array for each layer"),
    ({"latents": [[1, 2], [1]], "space": "w+"}, "latents", "must be in w+ an array for each layer"),
    ({"latents": [[10**400, 2], [1, 2]], "space": "w+"}, "latents", "must be in w+ an array for each layer"),
    ({"latents": [[1e39, 2], [1, 2]], "space": "w+"}, "latents", "not between -1e+06 and 1e+06"),
    ({"mix": [{"latent": "!"}]}, "mix", "mix[0].latent: is no base64"),
    ({"seed": 1, "directions": {"glases": 1}}, "directions", "'glases' is unknown; did you mean 'glasses'?"),
    ({"seed": 1, "directions": {"glasses": "1"}}, "directions", "directions.glasses: must be a finite number"),
    ({"seed": 1, "directions": {"glasses": 101}}, "directions", "from -100 to 100"),
    ({"seed": 1, "directions": ["glasses"]}, "directions", "must be an object such as"),
    ({"seed": 1, "styles": [{"seed": 2}]}, "styles", "styles[0].layers: is missing"),
    ({"seed": 1, "styles": [{"seed": 2, "layers": "0,2-1"}]}, "styles", "styles[0].layers: has the range 2-1"),
    (
        {"seed": 1, "styles": [{"seed": 2, "layers": "0-1"}, {"seed": 3, "layers": 1}]},
        "styles",
        "styles[1].layers: layer 1 is that of styles[0]",
    ),
    ({"seed": 1, "truncation_cutoff": -1}, "truncation_cutoff", "a whole number of layers"),
    ({"seed": 1, "noise": "loud"}, "noise", "must be one of constant, random, none"),
    ({"seed": 1, "noise": "random", "noise_seed": 2**32}, "noise_seed", "from 0 to 4294967295"),
    ({"seed": 1, "space": "x"}, "space", "must be one of z, w, w+"),
    ({"latents": "AAA="}, "latents", "2 bytes are no whole number of 32-bit floats"),
    ({"latents": [B64, B64[:8]]}, "latents", "latents[1]"),
    ({"latents": [[1] * 5] * 3, "space": "w+"}, "latents", "3 rows of 6 numbers"),
    ({"latents": [[0.5] * 18] * 2, "space": "w+"}, "latents", "shape [2, 18] given"),
    ({"seed": 1, "space": "w"}, "space", "that of latents, and there are none"),
    ({"mix": [{"seed": 1, "label": "Circle"}]}, "mix", "no classes"),
    ({"seed": 1, "styles": [{"latent": [1], "layers": 0}]}, "styles", "styles: a latent of shape [1]"),
    ({"model": "tiny-mixed", "seed": 1, "label": {"Nope": 0, "Circle": 1}}, "label", "'Nope' is unknown"),
    ({"seed": 1, "as": "npy", "format": "jpeg"}, "format", "holds latents and no pictures"),
    ({"seeds": "0-99999999999"}, "seeds", "from 0 to 4294967295"),
    ({"count": 2**40}, "count", "at most 64 in one request"),
    ({"latents": base64.b64encode(b"\x93NUMPY\x01\0\x02\0{}").decode()}, "latents", "is no npy file"),
    ({"seed": 1, "return_latents": "json", "as": "grid"}, "as", "has no room for them"),
    ({"seed": 1, "return_latents": "xml"}, "return_latents", "must be one of json, base64, npy"),
    ({"seed": 1, "style": []}, "style", "did you mean 'styles'?"),
    ({"seed": 1, "label": {"Circle": 1}}, "label", "no classes"),
]


@pytest.mark.parametrize("body, field, says", WRONG)
async def test_what_is_wrong_is_named(real, body, field, says):
    problem = (await post(real, 422, **body)).json()
    assert problem["field"] == field and says in problem["detail"], problem
    assert problem["errors"][0]["pointer"].split("/")[1] == field


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"latents": []}, "latents is empty"),
        ({"latents": [[]]}, "latents[0] is empty"),
        ({"latents": [2e6] * 8}, "latents[0][0] is 2000000.0, must be between"),
        ({"latents": [[3e38] * STYLE_DIM], "space": "w"}, "must be between"),
        ({"mix": [{"latent": [3e38] * STYLE_DIM, "space": "w"}]}, "is not between"),
    ],
)
async def test_nothing_and_too_much_are_called_so(real, body, says):
    assert says in (await post(real, 422, **body)).json()["detail"]


async def test_a_direction_counts_once_in_a_url(real):
    reply = await real.get("/generate?model=tiny-w&seed=7&directions=glasses:3,glasses:-3")
    assert reply.status_code == 422 and '"glasses" is given more than once' in reply.json()["detail"]


async def test_class_mixes_need_a_graph_that_takes_them(real):
    problem = (await post(real, 422, model="tiny-grey", seed=1, label={"Circle": 1, "Square": 1})).json()
    assert "takes one whole class" in problem["detail"] and problem["allowed"] == list(TINY_LABELS)


async def test_an_npy_that_lies_about_its_size_is_refused(real):
    lying = npy_of(np.zeros((1, 8), np.float32)).replace(b"(1, 8)", b"(9, 8)")
    head = {"content-type": "application/x-npy"}
    reply = await real.post("/generate?model=tiny-w", content=lying, headers=head)
    assert reply.status_code == 422 and "does not hold" in reply.json()["detail"]
    reply = await real.post("/generate?model=tiny-w&sede=1", content=lying, headers=head)
    assert reply.status_code == 422 and reply.json()["field"] == "sede"
