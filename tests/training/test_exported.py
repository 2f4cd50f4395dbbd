"""Weights back out of an exported model: the same pictures, and at twice the side the same ones softly."""

import json

import pytest
import torch
import torch.nn.functional as F

from service.engine.latents import latents_from_seeds
from training.checkpoint import CheckpointError
from training.export import to_onnx
from training.exported import adopt
from training.families import FAMILIES
from training.layers import from_pixels, latent_to_image, to_pixels

RECIPE = (
    FAMILIES["dcgan"]
    .recipes["modern"]
    .replaced(size=16, channels=3, latent_dim=8, generator_width=8, max_channels=32, palette=16)
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A generator whose batch norms have seen something, its folder, and what it draws for 16 seeds."""
    torch.manual_seed(1)
    generator = FAMILIES["dcgan"].nets(RECIPE)["generator"]
    for parameter in generator.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for _ in range(20):
        generator(torch.randn(64, 8))
    generator.eval()
    (spec,) = latent_to_image(torch.nn.ModuleDict({"generator": generator}), RECIPE, ())
    folder = tmp_path_factory.mktemp("models") / "drawn" / "3"
    folder.mkdir(parents=True)
    (folder / "generator.onnx").write_bytes(to_onnx(spec.graphs["generator"]))
    manifest = {
        "family": "dcgan", "graphs": {"generator": {"file": "generator.onnx"}}, "provenance": {"images_seen": 777},
        "generate": {"latent_dim": 8, "labels": None},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    z = torch.from_numpy(latents_from_seeds(range(16), 8))
    with torch.no_grad():
        return folder, z, to_pixels(generator(z)).float()


def fresh(recipe):
    torch.manual_seed(2)
    return FAMILIES["dcgan"].nets(recipe)["generator"]


def test_the_same_side_is_the_same_generator(exported):
    folder, z, drawn = exported
    generator = fresh(RECIPE)
    new, seen = adopt(generator, "dcgan", RECIPE, folder)
    assert seen == 777 and not [name for name in new if name in dict(generator.named_parameters())]
    with torch.no_grad():
        again = to_pixels(generator.eval()(z)).float()
    assert (again - drawn).abs().max() <= 1
    assert (drawn - drawn[:1]).abs().max() > 20, "the pictures do not depend on the seed"


def test_it_learns_on_from_there(exported):
    """In training mode, whose norms use the batch's statistics, it still draws much the same."""
    folder, z, drawn = exported
    generator, untouched = fresh(RECIPE), fresh(RECIPE)
    adopt(generator, "dcgan", RECIPE, folder)
    z = torch.cat([z, torch.randn(240, 8)])
    with torch.no_grad():
        apart = [(to_pixels(one.train()(z))[:16].float() - drawn).abs().mean().item() for one in (generator, untouched)]
    assert apart[0] < apart[1] / 3, apart


def test_twice_the_side_begins_with_the_same_pictures(exported, monkeypatch):
    folder, z, drawn = exported
    recipe = RECIPE.replaced(size=32, generator_width=4)
    target, other = (
        F.interpolate(from_pixels(one), scale_factor=2.0, mode="bilinear", align_corners=False)
        for one in (drawn, drawn.roll(1, 0))
    )
    apart = {}
    for kimg in (0.016, 3.2):
        generator, said = fresh(recipe), []
        monkeypatch.setattr("training.exported.GROWN_KIMG", kimg)
        new, _ = adopt(generator, "dcgan", recipe, folder, say=said.append)
        assert {name.split(".")[0] for name in new} == {"ups", "norms", "refines", "to_image"} and said
        with torch.no_grad():
            again = generator.train()(z)
        apart[kimg] = [(again - one).abs().mean().item() for one in (target, other)]
        assert all(parameter.requires_grad for parameter in generator.parameters())
    assert apart[3.2][0] < apart[0.016][0] / 1.5 and apart[3.2][0] < apart[3.2][1] / 1.2, apart


def test_another_family_imitates(exported):
    folder, z, drawn = exported
    recipe = (
        FAMILIES["stylegan"]
        .recipes["modern"]
        .replaced(size=32, channels=3, latent_dim=8, generator_width=8, palette=16, precision="fp32")
    )
    target = F.interpolate(from_pixels(drawn), scale_factor=2.0, mode="bilinear", align_corners=False)
    apart = {}
    for kimg in (0.016, 3.2):
        torch.manual_seed(2)
        generator = FAMILIES["stylegan"].nets(recipe)["generator"]
        new, seen = adopt(generator, "stylegan", recipe.replaced(imitation_kimg=kimg), folder)
        assert set(new) == set(generator.state_dict()) and seen == 0
        with torch.no_grad():
            apart[kimg] = (generator.plain(z) - target).abs().mean().item()
    assert apart[3.2] < apart[0.016] / 1.5, apart


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator_width": 6}, r"first layer is \[512, 8\], that of this recipe \[384, 8\]"),
        ({"latent_dim": 7}, "latent_dim is 8, that of this recipe 7"),
        ({"classes": 3}, "from latents alone"),
    ],
)
def test_what_does_not_fit_is_refused(exported, changes, said):
    recipe = RECIPE.replaced(**changes)
    with pytest.raises(CheckpointError, match=said):
        adopt(fresh(recipe), "dcgan", recipe, exported[0])


def test_no_model_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="no exported model"):
        adopt(fresh(RECIPE), "dcgan", RECIPE, tmp_path)
