"""One tiny exported model of each family and recipe: an export costs seconds, so the tests share them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.export import TrainedRun


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[TrainedRun, Path]]:
    """(family, recipe) -> the run as read back, and its model folder; to be read only."""
    from tinytraining import shrunk, tiny_run

    from training.export import export_run, read_run

    made: dict[tuple[str, str], tuple[TrainedRun, Path]] = {}

    def export(family: str, recipe: str) -> tuple[TrainedRun, Path]:
        if (family, recipe) not in made:
            root = tmp_path_factory.mktemp("exported")
            run = read_run(tiny_run(root / "run", family, shrunk(family, recipe)))
            (folder,) = export_run(run, root / "models", f"{family}-{recipe}")
            made[family, recipe] = run, folder
        return made[family, recipe]

    return export
