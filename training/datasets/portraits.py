"""Drawn portraits: DiceBear composes them from the parts of Lisa Wischofsky's Adventurer.

A counterpart of the faces for translation without pairs: another hand, but the head as large, on the same background,
and in colours spread alike, so that a translation need not change them and has the drawing itself to learn.
"""

from pathlib import Path

from training.datasets.drawn import RESVG, Style
from training.datasets.packages import Package

SKINS = (
    "f2d3b1", "ecad80", "9e5622", "763900",  # the style's own
    "f6dccb", "ddb7a0", "cb9469", "bb876f", "a67358", "74453d", "5c3937",  # between them, and paler
)  # fmt: skip
HAIRS = (  # three of five dark, as with most faces; the style's green, blue, pink and violet are left out
    "ac6511", "cb6820", "ab2a18", "e5d7a3", "b9a05f", "796a45", "6a4e35", "562306", "afafaf",
    *("0e0e0e", "231d1a", "2e1a0e") * 4,
)  # fmt: skip

STYLE = Style(
    module=Path(__file__).with_name("portraits_style.mjs"),
    order={
        "crop": "56 -8 660 660",  # of Adventurer's 762 x 762 canvas: the head in the middle, long hair cut off
        "skins": SKINS,
        "hairs": HAIRS,
        "glasses": 8,  # percent, as with the faces
        "features": 20,  # percent: moustache, blush, birthmark or freckles
    },
    packages=(
        Package(
            "npm", "@dicebear/core", "9.4.3", "6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d", 7_921
        ),
        Package(
            "npm",
            "@dicebear/adventurer",
            "9.4.3",
            "6edeac04f94ef6177c946918dce012e530200dfcc274b4f954239e33ecbe590c",
            112_369,
        ),
        RESVG,
    ),
)
