"""Weights back out of an exported model: the same pictures, and at twice the side the same ones softly."""

import io

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from service.engine.latents import latents_from_seeds
from service.manifest import Provenance
from training.checkpoint import CheckpointError
from training.export import write_export
from training.exported import adopt, teach_grown
from training.families import FAMILIES
from training.layers import from_pixels, latent_to_image, to_pixels

RECIPE = (
    FAMILIES["dcgan"]
    .recipes["modern"]
    .replaced(size=16, channels=3, latent_dim=8, generator_width=8, max_channels=32, palette=16)
)


def packaged(models, family, spec, recipe):
    """The folder of a model that has seen 777 images."""
    samples = io.BytesIO()
    Image.new("L", (1, 1)).save(samples, "PNG")
    provenance = Provenance(recipe=recipe.to_json(), dataset="none", images_seen=777, commit="", seed=0)
    return write_export(
        models, "shown", FAMILIES[family], spec, provenance, card_text="A test.\n", samples_png=samples.getvalue(),
        data_license="Apache-2.0",
    )  # fmt: skip


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
    folder = packaged(tmp_path_factory.mktemp("models"), "dcgan", spec, RECIPE)
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


@pytest.mark.parametrize("family", ["dcgan", "stylegan"])
def test_a_grown_generator_begins_with_the_small_ones_pictures(family, monkeypatch):
    """Only what the small one does not have learns, and the pictures come near the small one's, enlarged."""
    small_recipe = (
        FAMILIES[family]
        .recipes["modern"]
        .replaced(size=16, channels=3, latent_dim=8, generator_width=8, max_channels=32, palette=16, precision="fp32")
    )
    recipe = small_recipe.replaced(size=32, generator_width=4)
    torch.manual_seed(1)
    small = FAMILIES[family].nets(small_recipe)["generator"]
    for parameter in small.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for _ in range(20):
        small(torch.randn(64, 8))
    small.eval()
    z = torch.from_numpy(latents_from_seeds(range(16), 8))
    with torch.no_grad():
        target = F.interpolate(small(z), scale_factor=2.0, mode="bilinear", align_corners=False)
    apart = {}
    for kimg in (0.016, 3.2):
        monkeypatch.setattr("training.exported.GROWN_KIMG", kimg)
        torch.manual_seed(2)
        generator = FAMILIES[family].nets(recipe)["generator"]
        own, given = generator.state_dict(), small.state_dict()
        fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
        generator.load_state_dict(fitting, strict=False)
        said: list[str] = []
        teach_grown(generator, small, set(own) - set(fitting), recipe, "small", say=said.append)
        assert "imitating small" in said[-1]
        after = dict(generator.named_parameters())
        assert all(torch.equal(after[name], given[name]) for name in fitting if name in after)
        with torch.no_grad():
            draw = getattr(generator, "plain", generator)
            apart[kimg] = [(draw(z) - one).abs().mean().item() for one in (target, target.roll(1, 0))]
    assert apart[3.2][0] < apart[0.016][0] / 1.5 and apart[3.2][0] < apart[3.2][1] / 1.2, apart


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


PAIRS = {
    "pix2pix": FAMILIES["pix2pix"].recipes["weather"].replaced(
        size=16, generator_width=4, max_channels=8, downsamplings=2, residual_blocks=1
    ),
    "srgan": FAMILIES["srgan"].recipes["sharp"].replaced(size=16, scale=2, generator_width=4, residual_blocks=1),
}  # fmt: skip


@pytest.fixture(scope="module", params=PAIRS)
def translator(request, tmp_path_factory):
    """A family, its generator with every parameter moved, and the folder that it was exported to."""
    recipe = PAIRS[request.param]
    torch.manual_seed(1)
    nets = FAMILIES[request.param].nets(recipe)
    for parameter in nets["generator"].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    (spec,) = FAMILIES[request.param].exports(nets.eval(), recipe, ())
    folder = packaged(tmp_path_factory.mktemp("models"), request.param, spec, recipe)
    return request.param, nets["generator"], folder


def pair_generator(family, **changes):
    torch.manual_seed(2)
    recipe = PAIRS[family].replaced(**changes)
    return FAMILIES[family].nets(recipe)["generator"], recipe


def test_a_generator_of_images_from_images_goes_on_as_it_was(translator):
    family, whole, folder = translator
    generator, recipe = pair_generator(family)
    assert adopt(generator, family, recipe, folder) == ([], 777)
    theirs = dict(whole.named_parameters())
    for name, tensor in generator.named_parameters():
        assert torch.equal(tensor, theirs[name]), name


def test_another_kind_of_output_begins_with_a_fresh_last_layer(translator):
    family, whole, folder = translator
    generator, recipe = pair_generator(family, output="image")
    before = {name: tensor.clone() for name, tensor in generator.named_parameters()}
    new, _ = adopt(generator, family, recipe, folder)
    assert new and all("to_image." in name for name in new)
    for name, tensor in generator.named_parameters():
        assert torch.equal(tensor, before[name] if name in new else dict(whole.named_parameters())[name]), name


def test_translators_that_do_not_fit_are_refused(translator):
    family, _, folder = translator
    generator, recipe = pair_generator(family, generator_width=6)
    with pytest.raises(CheckpointError, match=r"head.weight is \[4, .*that of this recipe \[6, .*generator_width"):
        adopt(generator, family, recipe, folder)
    with pytest.raises(CheckpointError, match=f"a model of family '{family}', not 'dcgan'"):
        adopt(fresh(RECIPE), "dcgan", RECIPE, folder)


def test_a_net_that_fills_holes_goes_on_as_one_that_settles_them(tmp_path):
    """Both mean the same by the last layer."""
    recipe = FAMILIES["pix2pix"].recipes["holes"].replaced(
        size=16, generator_width=4, max_channels=8, downsamplings=2, residual_blocks=1, output="fill"
    )  # fmt: skip
    nets = FAMILIES["pix2pix"].nets(recipe)
    (spec,) = FAMILIES["pix2pix"].exports(nets.eval(), recipe, ())
    folder = packaged(tmp_path, "pix2pix", spec, recipe)
    recipe = recipe.replaced(output="inpaint")
    assert adopt(FAMILIES["pix2pix"].nets(recipe)["generator"], "pix2pix", recipe, folder)[0] == []
