"""The docs say what there is: what is not documented fails, and so does what is documented and gone."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from apiclient import client_of
from fakeengine import LABELS, FakeEngine, manifest, translator, upscaler
from uploads import saved, smooth

from service.api import problems, schemas
from service.api.app import create_app
from service.api.bodies import names_of
from service.api.motion_body import InterpolateRequest
from service.engine.engine import Engine, EngineOptions
from service.engine.wire import npy_of
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STYLE_LAYERS, LATENT_DIM = 9, 64  # of faces-64


def page(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.fixture
def engine(tmp_path) -> FakeEngine:
    (tmp_path / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "CARD.md").write_text("# card")
    drawing = manifest("fashion-28", version=2, labels=LABELS, channels=1), manifest("faces-32")
    return FakeEngine(tmp_path, *drawing, upscaler("photo-x4", scale=4), translator("sketch-to-colour"))


def first_column(text: str) -> list[str]:
    """The first cell of each table row, where it is code."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def test_every_endpoint_has_a_heading(engine):
    paths = create_app(Settings(), engine).openapi()["paths"]
    there = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    there |= {"GET /", "GET /docs", "GET /openapi.json"}
    told = {
        one for line in re.findall(r"^##+ (.*)$", page("api.md"), re.MULTILINE) for one in re.findall("`([^`]+)`", line)
    }
    assert told == there


def test_every_field_of_generate_is_told():
    fields = {field.alias or name for name, field in schemas.GenerateRequest.model_fields.items()}
    section = page("api.md").split("## `POST /generate`")[1].split("\n## ")[0]
    assert fields <= set(first_column(section))


def test_every_field_of_interpolate_is_told():
    section = page("api.md").split("## `POST /interpolate`")[1].split("\n## ")[0]
    told = {
        name
        for cell in re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
        for name in re.findall("`([^`]+)`", cell)
    }
    assert set(names_of(InterpolateRequest)) <= told


@pytest.mark.parametrize("path", ["/translate", "/upscale", "/project"])
def test_every_field_of_an_upload_is_told(engine, path):
    operation = create_app(Settings(), engine).openapi()["paths"][path]["post"]
    fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    section = page("api.md").split(f"## `POST {path}`")[1].split("\n## ")[0]
    assert set(first_column(section)) == set(fields)


LONG = "request-header-fields-too-large"


def test_every_problem_is_told():
    section = page("api.md").split("## Errors")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \|", section, re.MULTILINE)
    assert {(int(status), code) for status, code in rows} == {
        (kind.status, kind.code) for kind in problems.KINDS.values()
    } | {
        (400, "bad-request"),
        (501, "not-implemented"),
        (404, "not-found"),
        (405, "method-not-allowed"),
        (408, "request-timeout"),
        (431, LONG),
    }


def test_every_setting_is_told_with_its_default():
    text = page("settings.md")
    assert sorted(first_column(text)) == sorted(PREFIX + name.upper() for name in Settings.model_fields)
    for name, field in Settings.model_fields.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{PREFIX}{name.upper()}` |"))
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        default = {None: "unset", (): "unset", ("auto",): "auto"}.get(field.default, default)
        assert f"| {default} |" in row, row
        assert field.description in row, row


async def test_every_series_is_told(engine):
    async with client_of(engine) as client:
        await client.post("/generate", json={"model": "fashion-28", "seed": 1})
        await client.post("/generate", json={"model": "x"})
        text = (await client.get("/metrics")).text
    there = {name for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) if name.startswith("ganymede_")}
    told = {name for name in first_column(page("metrics.md")) if name.startswith("ganymede_")}
    assert told == there


def curl_lines() -> list[str]:
    text = page("api.md").replace("\\\n", " ")
    return list(re.findall(r"^curl .*$", text, re.MULTILINE))


def test_there_are_curl_lines():
    assert len(curl_lines()) >= 12


@pytest.fixture(scope="module")
def steered(tmp_path_factory) -> Path:
    """What is steered must be what a model has: the shipped ones."""
    root = tmp_path_factory.mktemp("models")
    for name in ("faces-32", "faces-64"):
        shutil.copytree(ROOT / "models" / name, root / name)
    return root


@pytest.mark.parametrize("line", curl_lines())
async def test_every_curl_line_works(engine, steered, line):
    """What curl would send, sent through the app."""
    if "faces-64" in line or "directions" in line:
        engine = Engine(EngineOptions(models=steered, providers=("cpu",), profile_s=0, poll_models_s=None, lanes=1))
    words = shlex.split(line.split(" | ")[0])[1:]
    method, headers, body, url = None, {}, None, None
    files, fields = {}, {}
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(":")
            headers[name] = value.strip()
        elif word == "-d":
            body = words.pop(0)
        elif word == "--data-binary":
            kind = words.pop(0).rpartition(".")[2].replace("jpg", "jpeg")
            body = npy_of(np.zeros((2, STYLE_LAYERS, LATENT_DIM))) if kind == "npy" else saved(smooth(8, 8), kind)
        elif word == "-F":
            name, _, value = words.pop(0).partition("=")
            if value.startswith("@"):
                files[name] = value[1:], saved(smooth(8, 8), value.rpartition(".")[2].replace("jpg", "jpeg"))
            else:
                fields[name] = value
        elif word == "-o":
            words.pop(0)
        elif not word.startswith("-"):
            url = word
    assert url and url.startswith("localhost:8000")
    if body is not None and "content-type" not in headers:
        headers["content-type"] = "application/x-www-form-urlencoded"
    async with client_of(engine, admin=True) as client:
        method = method or ("POST" if body is not None or files else "GET")
        given = {"files": files, "data": fields} if files else {"content": body}
        reply = await client.request(method, url.removeprefix("localhost:8000"), headers=headers, **given)
    assert reply.status_code in (200, 204, 304), reply.text
