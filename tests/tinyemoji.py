"""A handful of emoji and the packages that hold them, for the tests of both sets."""

import io
import tarfile
from pathlib import Path

from training.datasets.packages import Fetched, Package

NAMES = {
    "😀": {"name": "grinning face", "group": "Smileys & Emotion"},
    "👋": {"name": "waving hand", "group": "People & Body"},
    "🧑\u200d🍳": {"name": "cook", "group": "People & Body"},
    "👨\u200d🍳": {"name": "man cook", "group": "People & Body"},
    "👩\u200d🍳": {"name": "woman cook", "group": "People & Body"},
    "🐱": {"name": "cat face", "group": "Animals & Nature"},
    "#\ufe0f\u20e3": {"name": "keycap #", "group": "Symbols"},
    "🏴\U000e0067\U000e0062\U000e007f": {"name": "flag somewhere", "group": "Flags"},
    "🧿": {"name": "nazar amulet", "group": "Objects"},  # without a picture
}


def package(folder: Path, pin: Package, parts: dict[str, bytes]) -> Fetched:
    path = folder / f"{pin.stem}{pin.version}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in parts.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return Fetched(pin, path, pin.sha256)
