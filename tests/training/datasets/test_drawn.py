"""Drawing in shards: a stand-in for `node` draws in one colour; what is tested is what surrounds the drawing."""

import dataclasses
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from training.datasets import drawn, faces, portraits, public
from training.datasets.errors import ClientFailed, ClientMissing
from training.datasets.packages import Fetched

STYLE = faces.STYLE
NODE = """#!{python}
import json, os, sys
order = json.load(sys.stdin)
log = os.path.join({folder!r}, "log")
for shard in order["shards"]:
    if os.path.exists(os.path.join({folder!r}, "fail-after")) and os.path.exists(log):
        print("out of ink", file=sys.stderr)
        sys.exit(3)
    with open(shard["target"] + ".jsonl", "w") as file:
        for seed in shard["seeds"]:
            file.write(json.dumps({{"seed": seed}}) + "\\n")
    side = order["size"] ** 2 * 3
    with open(shard["target"] + ".rgb", "wb") as file:
        for seed in shard["seeds"]:
            file.write(bytes([seed % 251]) * side)
    with open(log, "a") as file:
        file.write(str(len(shard["seeds"])) + "\\n")
    print(len(shard["seeds"]), flush=True)
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the stand-in keeps its log; a file `fail-after` there makes it fail after the first shard."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "node").write_text(NODE.format(python=sys.executable, folder=str(folder)))
    (folder / "node").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(drawn, "SHARD", 4)
    return folder


@pytest.fixture
def fetched(tmp_path: Path) -> list[Fetched]:
    out = []
    for package in STYLE.packages:
        path = tmp_path / f"{package.stem}{package.version}.tgz"
        with tarfile.open(path, "w:gz") as tar:
            entry = tarfile.TarInfo("package/package.json")
            body = json.dumps({"name": package.name}).encode()
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
        out.append(Fetched(package, path, package.sha256))
    return out


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_pictures_and_attributes_are_in_order_of_their_seeds(
    tmp_path: Path, node: Path, fetched: list[Fetched], processes: int
) -> None:
    arrays, attributes = drawn.build(STYLE, fetched, tmp_path / "work", 10, 3, processes)
    assert arrays["train_images"].shape == (10, 64, 64, 3) and arrays["test_images"].shape == (3, 64, 64, 3)
    assert arrays["train_images"][:, 0, 0, 0].tolist() == list(range(10))
    assert arrays["test_images"][:, 9, 9, 2].tolist() == [(drawn.TEST_SEEDS + i) % 251 for i in range(3)]
    lines = [json.loads(line) for line in attributes.decode().splitlines()]
    assert [(line["split"], line["index"]) for line in lines] == [
        *(("train", i) for i in range(10)),
        *(("test", i) for i in range(3)),
    ]
    assert [line["seed"] for line in lines] == [*range(10), *range(drawn.TEST_SEEDS, drawn.TEST_SEEDS + 3)]
    names = {path.parent.relative_to(tmp_path).as_posix() for path in (tmp_path / "work").rglob("package.json")}
    assert {name.split("node_modules/")[1] for name in names} == {package.name for package in STYLE.packages}


def test_an_interrupted_drawing_goes_on_where_it_stopped(tmp_path: Path, node: Path, fetched: list[Fetched]) -> None:
    (node / "fail-after").touch()
    with pytest.raises(ClientFailed, match="out of ink"):
        drawn.build(STYLE, fetched, tmp_path / "work", 10, 3, 1)
    assert (node / "log").read_text().split() == ["4"]
    (node / "fail-after").unlink()
    arrays, _ = drawn.build(STYLE, fetched, tmp_path / "work", 10, 3, 1)
    assert (node / "log").read_text().split() == ["4", "4", "2", "3"]
    assert arrays["train_images"][:, 0, 0, 0].tolist() == list(range(10))


@pytest.mark.parametrize(
    "style", [portraits.STYLE, dataclasses.replace(STYLE, order={**STYLE.order, "crop": "0 0 9 9"})]
)
def test_shards_of_another_drawing_are_not_taken(
    tmp_path: Path, node: Path, fetched: list[Fetched], style: drawn.Style
) -> None:
    drawn.build(STYLE, fetched, tmp_path / "work", 4, 4, 1)
    drawn.build(STYLE, fetched, tmp_path / "work", 4, 4, 1)
    assert (node / "log").read_text().split() == ["4"] * 2
    drawn.build(style, fetched, tmp_path / "work", 4, 4, 1)
    assert (node / "log").read_text().split() == ["4"] * 4


def test_without_node_it_is_said(tmp_path: Path, fetched: list[Fetched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClientMissing, match="node"):
        drawn.build(STYLE, fetched, tmp_path / "work", 4, 4)


@pytest.mark.parametrize("style", [faces.STYLE, portraits.STYLE])
def test_every_style_has_its_module_its_crop_and_the_rasteriser(style: drawn.Style) -> None:
    assert "export async function load(" in style.module.read_text()
    _, _, width, height = style.order["crop"].split()
    assert width == height and drawn.RESVG in style.packages


def test_train_and_test_seeds_do_not_meet() -> None:
    assert max(public.PUBLIC[name].counts[0] for name in ("faces", "portraits")) <= drawn.TEST_SEEDS
