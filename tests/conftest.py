"""A tiny real model repository for every test that serves; `tinymodels.py` builds it."""

from pathlib import Path

import pytest
from tinymodels import TINY_LABELS, write_tiny


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models' folder, to be read only: `tiny-rgb` (unconditional, 8x8x3), `tiny-grey` (3 classes, 8x8x1)."""
    root = tmp_path_factory.mktemp("models")
    write_tiny(root, "tiny-rgb", channels=3)
    write_tiny(root, "tiny-grey", channels=1, labels=TINY_LABELS, seed=1)
    return root
