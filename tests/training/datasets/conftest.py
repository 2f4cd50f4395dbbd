"""Tiny sets on the disk, made here."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tinyimages import png, rgb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty different clean images, 16 px."""
    target = tmp_path / "photos"
    target.mkdir()
    for index in range(20):
        (target / f"{index:02d}.png").write_bytes(png(rgb(index)))
    return target


@pytest.fixture
def make_zip(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    def make(files: dict[str, bytes]) -> Path:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    return make
