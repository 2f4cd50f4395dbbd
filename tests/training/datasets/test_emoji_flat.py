"""Flat emoji: the same choice and the same split as the shaded ones; the drawing program is stood in for."""

import json
from pathlib import Path

import numpy as np
import pytest
from tinyemoji import NAMES, package

from training.datasets import drawn, emoji, emoji_flat
from training.datasets.errors import FetchError
from training.datasets.packages import Fetched

TONES = [f"{tone:x}" for tone in emoji.TONES]
CHARS = {
    "1f600": "grinning-face",
    "1f44b": "waving-hand",
    **{f"1f44b-{tone}": f"waving-hand-{tone}" for tone in TONES},
    "1f431": "cat-face",
    "1f9d1-200d-1f373": "cook",
    "1faff": "of-no-name",
    "1f468-200d-1f373": "without-a-drawing",
}


@pytest.fixture
def fetched(tmp_path: Path) -> list[Fetched]:
    icons = {name: {"body": f'<path id="{name}"/>'} for name in CHARS.values() if name != "without-a-drawing"}
    return [
        package(
            tmp_path, emoji_flat.PICTURES,
            {"icons.json": json.dumps({"icons": icons}).encode(), "chars.json": json.dumps(CHARS).encode()},
        ),
        package(tmp_path, emoji.NAMES, {"data-by-emoji.json": json.dumps(NAMES).encode()}),
        package(tmp_path, drawn.RESVG, {}),
    ]  # fmt: skip


def test_the_drawings_of_both_sides_are_handed_to_the_program(tmp_path, fetched, monkeypatch):
    asked = {}

    def build(style, packages, work, train, test):
        asked.update(style.order, packages=[item.package.name for item in packages], counts=(train, test))
        images = {"train_images": np.zeros((train, 64, 64, 3), np.uint8)}
        return images | {"test_images": np.zeros((test, 64, 64, 3), np.uint8)}, b""

    monkeypatch.setattr(drawn, "build", build)
    arrays, captions = emoji_flat.build(fetched, tmp_path / "work")
    lines = [json.loads(line) for line in captions.decode().splitlines()]
    assert sorted(line["name"] for line in lines if not line["tone"]) == [
        "cat face",
        "cook",
        "grinning face",
        "waving hand",
    ]
    assert sum(bool(line["tone"]) for line in lines) == 1  # one of the hand's five
    for side in ("train", "test"):
        part = [line for line in lines if line["split"] == side]
        assert len(asked["drawings"][side]) == len(part) == len(arrays[f"{side}_labels"])
        for line, body in zip(part, asked["drawings"][side], strict=True):
            assert line["name"].split()[0] in body  # each line stands where its drawing does
        assert [emoji.CLASSES[label] for label in arrays[f"{side}_labels"]] == [line["group"] for line in part]
    assert asked["counts"] == tuple(len(asked["drawings"][side]) for side in ("train", "test"))
    assert asked["background"] == "white" and asked["packages"] == [drawn.RESVG.name]


def test_what_is_held_out_there_is_held_out_here():
    # A kin's side depends on the kin alone.
    some = [emoji.Drawing(Path("a"), 0, "x", "x", "Objects", f"kin-{number}", "") for number in range(200)]
    few, all_of_them = emoji.split(some[50:90]), emoji.split(some)
    for side in ("train", "test"):
        assert [one.kin for one in few[side]] == [one.kin for one in all_of_them[side] if one in some[50:90]]
    assert few["test"] and few["train"]


def test_a_package_without_drawings_is_an_error(tmp_path, fetched):
    bare = package(tmp_path, emoji_flat.PICTURES, {"icons.json": b'{"icons": {}}', "chars.json": b"{}"})
    with pytest.raises(FetchError, match="holds no drawing of a known emoji"):
        emoji_flat.build([bare, *fetched[1:]], tmp_path / "work")
