"""Models, health, operator calls, playground and reference."""

import asyncio
import os
import re

import httpx
import pytest
from apiclient import client_of

from service.api.app import create_app
from service.errors import FileInvalid, HashMismatch
from service.settings import Settings


async def test_models_are_listed_with_what_a_client_needs(client):
    body = (await client.get("/models")).json()
    assert [model["ref"] for model in body["models"]] == ["clothes@1", "faces@1", "photo-x2@1"]
    clothes = body["models"][0]
    assert clothes["labels"][2] == "Sneaker" and clothes["latent_dim"] == 4
    assert clothes["image"] == {"height": 8, "width": 6, "channels": 1}
    assert body["models"][2]["tasks"] == ["upscale"]


@pytest.mark.parametrize("ref", ["clothes", "clothes@1"])
async def test_one_model_in_full(client, ref):
    body = (await client.get(f"/models/{ref}")).json()
    assert body["ref"] == "clothes@1" and body["providers"] == ["cpu"]
    assert body["manifest"]["schema"] == 1 and body["loaded_at"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("path", ["/models/nope", "/models/clothes@2", "/models/nope/card", "/models/nope/samples.png"])
async def test_unknown_models(client, path):
    reply = await client.get(path)
    assert (reply.status_code, reply.json()["field"]) == (404, "model")


async def test_samples_and_card(client, tmp_path):
    (tmp_path / "CARD.md").write_text("# Čepice")
    assert (await client.get("/models/faces/samples.png")).headers["content-type"] == "image/png"
    reply = await client.get("/models/faces@1/card")
    assert (reply.headers["content-type"], reply.text) == ("text/markdown; charset=utf-8", "# Čepice")
    (tmp_path / "CARD.md").unlink()
    assert (await client.get("/models/faces/card")).json()["type"].endswith("file-missing")


@pytest.mark.parametrize("path", ["/models/faces/load", "/models/faces/unload"])
async def test_operator_calls_are_off_by_default(client, engine, path):
    reply = await client.post(path)
    assert reply.status_code == 403 and "GANYMEDE_ADMIN" in reply.json()["detail"]
    assert engine.calls == [] and len(engine.infos) == 3


async def test_operator_calls(engine):
    async with client_of(engine, admin=True) as client:
        assert (await client.post("/models/faces/load")).json()["ref"] == "faces@1"
        await client.post("/models/faces/load?version=1")
        await client.post("/models/faces/load", json={"version": 2})
        assert [call["version"] for call in engine.calls] == [None, 1, 2]
        for wrong in ({"version": 0}, {"version": True}, {"version": "x"}, {"versoin": 1}):
            assert (await client.post("/models/faces/load", json=wrong)).status_code == 422
        assert (await client.post("/models/faces/unload", json={"versoin": 1})).status_code == 422
        assert (await client.post("/models/faces/unload?version=x")).status_code == 422
        assert (await client.post("/models/faces/unload?version=1")).status_code == 204
        assert engine.calls[-1] == {"unload": "faces", "version": 1}
        assert (await client.post("/models/faces/unload")).status_code == 404


async def test_a_refused_folder_is_a_conflict(engine, monkeypatch):
    async def refuse(name, version=None):
        raise HashMismatch("generator.onnx differs", model="faces@1")

    monkeypatch.setattr(engine, "load", refuse)
    async with client_of(engine, admin=True) as client:
        reply = await client.post("/models/faces/load")
        assert reply.status_code == 409 and "generator.onnx" in reply.json()["detail"]


async def test_health(client, engine):
    engine.refused = {"broken@1": "hash"}
    assert (await client.get("/livez")).json() == {"state": "alive"}
    reply = await client.get("/readyz")
    assert (reply.status_code, reply.json()["state"], reply.json()["refused"]) == (200, "ready", engine.refused)
    assert (await client.head("/readyz")).status_code == 200
    client.parts.draining = True
    reply = await client.get("/readyz")
    assert (reply.status_code, reply.json()["state"], reply.headers["retry-after"]) == (503, "draining", "1")
    assert (await client.head("/livez")).status_code == 200
    head = await client.head("/generate?model=faces&seed=1")
    assert (head.status_code, head.content, head.headers["x-seed"]) == (200, b"", "1")
    assert (await client.head("/models/faces/load")).status_code == 405


async def test_while_loading(engine, tmp_path):
    (tmp_path / "not-yet" / "1").mkdir(parents=True)
    gate, opened = asyncio.Event(), engine.open

    async def slowly():
        await gate.wait()
        await opened()

    engine.open = slowly
    app = create_app(Settings(models=tmp_path), engine)
    connection = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
    async with app.router.lifespan_context(app), connection as client:
        assert (await client.get("/livez")).status_code == 200
        for name in ("never", "../x", "not-yet@2"):  # no folder of theirs is there to be loaded
            assert (await client.post("/generate", json={"model": name})).status_code == 404
        assert (await client.get("/readyz")).json()["state"] == "loading"
        for name in ("not-yet", "not-yet@1", "not-yet@latest"):
            reply = await client.post("/generate", json={"model": name})
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        gate.set()
        await engine.opened.wait()
        await asyncio.sleep(0)
        assert (await client.get("/readyz")).json()["state"] == "ready"
    assert engine.draining


async def test_models_that_cannot_be_opened_fail_the_app(engine):
    async def fail():
        raise FileInvalid("is not a folder", model="models")

    engine.open = fail
    async with client_of(engine) as client:
        assert (await client.get("/readyz")).json()["state"] == "failed"
        assert isinstance(client.parts.failure, FileInvalid)


async def test_without_models_not_ready(engine):
    engine.infos.clear()
    async with client_of(engine) as client:
        assert (await client.get("/readyz")).json()["state"] == "no-models"


async def test_shutdown_drains_the_engine(engine):
    async with client_of(engine):
        assert not engine.draining
    assert engine.draining


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_need_nothing_from_outside(client, path):
    reply = await client.get(path)
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    texts, asked = [reply.text], set()
    for text in texts:  # grows
        for link in re.findall(r"""(?:src=|href=|from )["']([^"']+)["']""", text):
            assert link.startswith(("/", "#")), link
            if link.startswith("/playground/") and link not in asked:
                asked.add(link)
                got = await client.get(link)
                assert got.status_code == 200, link
                texts.append(got.text)
    assert len(texts) >= 3 and ("/playground/shared.js" in asked)
    for text in texts:
        assert not re.findall(r"https?://(?!www\.w3\.org/)[^\s\"'`]*", text)
        assert not re.findall(r"""\sstyle=["']|\son\w+=["']|<script>|<style>""", text)  # the policy blocks them


async def test_the_playground_names_elements_that_are_there(client):
    page = (await client.get("/")).text
    there = set(re.findall(r' id="([^"]+)"', page))
    for script in ("app.js", "edit.js"):
        text = (await client.get(f"/playground/{script}")).text
        named = set(re.findall(r'\bat\("([^"]+)"\)', text))
        assert named and named <= there, named - there


async def test_pages_revalidate(client):
    first = await client.get("/")
    again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_the_playground_can_be_off(engine):
    async with client_of(engine, playground=False) as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/models")).status_code == 200


async def test_openapi_is_whole(client):
    document = (await client.get("/openapi.json")).json()
    names = set(document["components"]["schemas"])

    def references(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    assert {reference.rsplit("/", 1)[1] for reference in references(document)} <= names
    post = document["paths"]["/generate"]["post"]
    assert {"200", "400", "404", "406", "413", "415", "422", "429", "500", "503", "504"} <= set(post["responses"])
    properties = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert list(properties) == [
        "model", "seed", "seeds", "count", "mix", "space", "latents", "label", "truncation", "truncation_cutoff",
        "styles", "directions", "noise", "noise_seed", "return_latents", "format", "as",
    ]  # fmt: skip
    assert all("description" in schema for schema in properties.values())


async def test_files_of_models_revalidate(client):
    first = await client.get("/models/faces/samples.png")
    for given in (first.headers["etag"], f'"x", W/{first.headers["etag"]}', "*"):
        again = await client.get("/models/faces/samples.png", headers={"if-none-match": given})
        assert (again.status_code, again.content) == (304, b""), given


@pytest.mark.parametrize("odd", ["link", "dangling", "pipe", "folder"])
async def test_only_files_of_the_folder_are_sent(client, tmp_path, tmp_path_factory, odd):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    card = tmp_path / "CARD.md"
    make = {
        "link": lambda: card.symlink_to(secret),
        "dangling": lambda: card.symlink_to(secret.with_name("none")),
        "pipe": lambda: os.mkfifo(card),
        "folder": card.mkdir,
    }
    make[odd]()
    async with asyncio.timeout(20):
        reply = await client.get("/models/faces/card")
    assert reply.status_code == 404 and "secret" not in reply.text
