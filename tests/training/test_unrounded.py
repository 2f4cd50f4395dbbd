"""An exported generator as torch code sees one draws what the run it came from draws, before rounding."""

import onnx
import pytest
import torch
from tinytraining import shrunk, tiny_run

from service.engine.latents import latents_from_seeds
from training.checkpoint import CheckpointError
from training.export import export_run, read_run
from training.latentspace import LatentSpace
from training.layers import to_pixels
from training.unrounded import ExportedGenerator

KINDS = [
    ("dcgan", "modern"),
    ("stylegan", "features"),
    ("stylegan", "modern"),
    ("cgan", "modern"),
    ("lapgan", "modern"),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def both(request, tmp_path_factory):
    """A run, and what was exported of it."""
    family, recipe = request.param
    home = tmp_path_factory.mktemp("unrounded")
    run = read_run(tiny_run(home, family, shrunk(family, recipe)))
    (folder,) = export_run(run, home / "models", "shown")
    return run, folder


def test_it_draws_what_the_run_draws(both):
    run, folder = both
    mine, its = (
        LatentSpace(generator, run.recipe.latent_dim)
        for generator in (run.nets["generator"], ExportedGenerator(folder, 1).eval())
    )
    assert mine.spaces == its.spaces
    labels = torch.tensor([0, 1, 1]) if run.recipe.classes else None
    for space in mine.spaces:
        wanted, found = (one.draw(one.points([3, 4, 5], space), space, labels) for one in (mine, its))
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)
        assert len(torch.unique(found)) > len(torch.unique(to_pixels(found))), "it was rounded"
    z = torch.from_numpy(latents_from_seeds(range(3), run.recipe.latent_dim))
    wanted, found = (one(z, labels) for one in (run.nets["generator"], ExportedGenerator(folder, 1)))
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


def test_what_is_not_rounded_in_the_graph_is_refused(both, monkeypatch):
    _, folder = both
    whole = onnx.load

    def without(path):
        model = whole(path)
        for node in model.graph.node:
            if node.op_type == "Round":
                node.op_type = "Floor"
        return model

    monkeypatch.setattr(onnx, "load", without)
    with pytest.raises(CheckpointError, match="are not rounded within the graph"):
        ExportedGenerator(folder)


def test_a_class_must_be_given_where_there_are_some(both):
    run, folder = both
    if not run.recipe.classes:
        assert len(ExportedGenerator(folder)(torch.zeros(1, run.recipe.latent_dim))) == 1
        return
    with pytest.raises(CheckpointError, match="a class must be given"):
        ExportedGenerator(folder)(torch.zeros(1, run.recipe.latent_dim))
