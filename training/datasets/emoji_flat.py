"""Flat emoji: the two-dimensional form of Microsoft's Fluent Emoji, the same subjects as `emoji` by the same hands.

The counterpart of `emoji` for translation without pairs, flat to three-dimensional and back. Choice and split are
those of `emoji`: what is held out there is held out here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from training.datasets import drawn, emoji
from training.datasets.errors import FetchError
from training.datasets.packages import Fetched, Package, unpack_npm

SIDE = 32  # of the drawings' canvas
PICTURES = Package(
    "npm",
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    1_172_438,
)
PACKAGES = (PICTURES, emoji.NAMES, drawn.RESVG)


def build(fetched: Sequence[Fetched], work: Path) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Rasterise the drawings on white, one or two for each emoji.

    Args:
        fetched: the packages of PACKAGES.
        work: folder to unpack them in.

    Returns:
        The arrays of the prepared form, images uint8 [N, 64, 64, 3], labels by group, and captions.jsonl: one line per
        picture, train before test, each in the order of its array.

    Raises:
        FetchError: a package does not hold what it should.
    """
    items = {item.package.name: item for item in fetched}
    for name in (PICTURES.name, emoji.NAMES.name):
        unpack_npm(items[name].path, work / name)
    icons = emoji.table(work / PICTURES.name / "icons.json").get("icons", {})
    files = {
        emoji.shown([int(part, 16) for part in points.split("-")]): Path(icon)
        for points, icon in sorted(emoji.table(work / PICTURES.name / "chars.json").items())
        if icon in icons
    }
    drawings = emoji.choose(files, emoji.table(work / emoji.NAMES.name / "data-by-emoji.json"))
    if not drawings:
        raise FetchError(f"{PICTURES.name} holds no drawing of a known emoji")
    sides = emoji.split(drawings)
    style = drawn.Style(
        module=Path(__file__).with_name("emoji_flat_style.mjs"),
        order={
            "background": "white",
            "side": SIDE,
            "test_seeds": drawn.TEST_SEEDS,
            "drawings": {name: [icons[one.path.name]["body"] for one in part] for name, part in sides.items()},
        },
        packages=PACKAGES,
    )
    images, _ = drawn.build(style, [items[drawn.RESVG.name]], work, len(sides["train"]), len(sides["test"]))
    labels, captions = emoji.labelled(sides)
    return images | labels, captions
