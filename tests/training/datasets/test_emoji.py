"""Emoji by Unicode's groups: the choice, the split by kin and the captions, from small packages made here."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinyemoji import NAMES, package

from training.datasets import emoji
from training.datasets.errors import FetchError
from training.datasets.packages import Fetched

TONES = [f"{tone:x}" for tone in emoji.TONES]
KEYWORDS = {"😀": ["grinning_face", "big_smile", "happy", "happy"], "🐱": ["cat_face", "meow"]}
FILES = [
    *("1f600", "1f44b", "1f431", "0023-fe0f-20e3", "23-fe0f-20e3", "1f3f4-e0067_e0062", "1f3fb", "1faff"),
    *(f"1f44b-{tone}" for tone in TONES),
    *(f"{who}-200d-1f373" for who in ("1f9d1", "1f468", "1f469")),
    *(f"{who}-{tone}-200d-1f373" for who in ("1f9d1", "1f468", "1f469") for tone in TONES),
]
COPY = ("1f63a", "1f431")  # in the package, too, another emoji has the cat's picture


def webp(value: int) -> bytes:
    """A square of one colour with a clear border."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((value, 10, 200, 255), (8, 8, 24, 24))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def packages(folder: Path, files: list[str], names: bytes, keywords: bytes = b"{}") -> list[Fetched]:
    pictures = {f"assets/{name}.webp": webp(index) for index, name in enumerate(files)}
    if COPY[1] in files:
        pictures[f"assets/{COPY[0]}.webp"] = pictures[f"assets/{COPY[1]}.webp"]
    return [
        package(folder, emoji.PICTURES, pictures),
        package(folder, emoji.NAMES, {"data-by-emoji.json": names}),
        package(folder, emoji.KEYWORDS, {"dist/emoji-en-US.json": keywords}),
    ]


@pytest.fixture
def fetched(tmp_path: Path) -> list[Fetched]:
    names = {**NAMES, "😺": {"name": "grinning cat", "group": "Smileys & Emotion"}}
    return packages(tmp_path, FILES, json.dumps(names).encode(), json.dumps(KEYWORDS).encode())


def captions(raw: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in raw.decode().splitlines()]


def test_pictures_lie_on_white_and_labels_are_their_groups(tmp_path: Path, fetched: list[Fetched]) -> None:
    arrays, raw = emoji.build(fetched, tmp_path / "work")
    lines = captions(raw)
    labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
    images = np.concatenate([arrays["train_images"], arrays["test_images"]])
    assert images.dtype == np.uint8 and images.shape[1:] == (64, 64, 3) and labels.dtype == np.int64
    assert [emoji.CLASSES[label] for label in labels] == [line["group"] for line in lines]
    assert (images[:, 0, 0] == 255).all()
    smile = next(index for index, line in enumerate(lines) if line["emoji"] == "😀")
    assert images[smile, 32, 32].tolist() == [FILES.index("1f600"), 10, 200]


def test_every_named_emoji_comes_once_and_every_kin_once_more_in_a_tone(tmp_path: Path, fetched: list[Fetched]) -> None:
    lines = captions(emoji.build(fetched, tmp_path / "work")[1])
    originals = [line["name"] for line in lines if not line["tone"]]
    assert sorted(originals) == sorted(entry["name"] for entry in NAMES.values() if entry["name"] != "nazar amulet")
    toned = [line for line in lines if line["tone"]]
    assert sorted(str(line["name"]).split()[-1] for line in toned) == ["cook", "hand"]
    assert {line["tone"] for line in toned} <= set(emoji.TONES.values())
    again = captions(emoji.build(fetched, tmp_path / "again")[1])
    assert again == lines


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_tones_and_genders_of_one_drawing_lie_on_one_side(
    tmp_path: Path, fetched: list[Fetched], monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    monkeypatch.setattr(emoji, "TEST_FRACTION", fraction)
    arrays, raw = emoji.build(fetched, tmp_path / "work")
    lines = captions(raw)
    for kin in ("cook", "hand"):
        assert len({line["split"] for line in lines if str(line["name"]).endswith(kin)}) == 1
    for split in ("train", "test"):
        part = [line for line in lines if line["split"] == split]
        assert [line["index"] for line in part] == list(range(len(arrays[f"{split}_images"])))
    assert [line["split"] for line in lines] == sorted((str(line["split"]) for line in lines), reverse=True)


def test_keywords_are_words_without_the_name(tmp_path: Path, fetched: list[Fetched]) -> None:
    by_name = {line["name"]: line["keywords"] for line in captions(emoji.build(fetched, tmp_path / "work")[1])}
    assert by_name["grinning face"] == ["big smile", "happy"]
    assert by_name["cat face"] == ["meow"] and by_name["cook"] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("🏃", "🏃🏽\u200d♀️\u200d➡️"), ("🧑🏻\u200d🚀", "👩\u200d🚀"), ("🕐", "🕧"), ("⛄", "☃️"), ("♥️", "❤️")],
)
def test_what_is_drawn_alike_is_of_one_kin(one: str, other: str) -> None:
    kin = [emoji.kinship(emoji.shown([ord(sign) for sign in text])) for text in (one, other)]
    assert kin[0] == kin[1]


@pytest.mark.parametrize(("one", "other"), [("👨", "👩"), ("😀", "😃"), ("♀️", "♂️"), ("🏻", "🏿"), ("🇫🇷", "🇩🇪")])
def test_what_is_drawn_differently_is_not(one: str, other: str) -> None:
    kin = [emoji.kinship(emoji.shown([ord(sign) for sign in text])) for text in (one, other)]
    assert kin[0] != kin[1]


@pytest.mark.parametrize("names", [b"[]", b"{not json", b"{}"])
def test_a_package_that_holds_something_else_is_refused(tmp_path: Path, names: bytes) -> None:
    with pytest.raises(FetchError):
        emoji.build(packages(tmp_path, ["1f600"], names), tmp_path / "work")
