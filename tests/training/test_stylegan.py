"""StyleGAN: each feature does what it is for, and what is exported is what a server needs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tinytraining import shrunk, tiny_trainer

from service.engine.engine import Engine, EngineOptions, KeyFrame, Steering, Track
from service.engine.latents import latents_from_seeds, noise_from_seeds
from training.export import to_onnx
from training.families import FAMILIES
from training.families.stylegan import (
    MEAN_W_KEEP,
    AdaptiveLayer,
    DemodulatedLayer,
    Generator,
    directions,
    path_length_penalty,
)
from training.recipe import RecipeError

FEATURES = {
    "resample": "nearest",
    "constant_input": False,
    "noise": False,
    "style_mixing": 0.0,
    "mapping_layers": 0,
}
"""Each feature and its value when switched off."""


def small(recipe="features", **changes):
    return shrunk("stylegan", recipe, **{"size": 16, **changes})


def generator(recipe="features", **changes) -> Generator:
    torch.manual_seed(0)
    built = FAMILIES["stylegan"].nets(small(recipe, **changes))["generator"]
    for name, parameter in built.named_parameters():
        if name.endswith("strength"):
            torch.nn.init.constant_(parameter, 3.0)  # begins at zero: noise would not show
    return built


@pytest.mark.parametrize("name", FEATURES)
def test_each_feature_is_a_switch_of_its_own(tmp_path, name):
    off = {name: FEATURES[name]}
    if name == "mapping_layers":
        off |= {"constant_input": False, "style_mixing": 0.0}  # which need styles
    recipe = small(**off)
    assert np.isfinite(list(tiny_trainer(tmp_path, "stylegan", recipe).step().values())).all()
    net = generator(**off).eval()
    graph = FAMILIES["stylegan"].exports(torch.nn.ModuleDict({"generator": net}), recipe, ())[0]
    kinds = [tensor.kind for tensor in graph.graphs["synthesis"].inputs]
    assert kinds == (["latent"] if name == "noise" else ["latent", "noise"])
    assert ("directions" in graph.arrays) == (name != "mapping_layers")


def test_features_that_need_styles_say_so():
    for changes, match in (
        ({"mapping_layers": 0}, "constant_input is True, but mapping_layers is 0"),
        ({"mapping_layers": 0, "constant_input": False}, r"style_mixing is 0\.9"),
    ):
        with pytest.raises(RecipeError, match=match):
            generator(**changes)
    with pytest.raises(RecipeError, match="'demod' cannot do without"):
        generator("modern", mapping_layers=0, constant_input=False, style_mixing=0.0, path_length_weight=0.0)
    with pytest.raises(RecipeError, match="palette is 8"):
        generator(palette=8)


@pytest.mark.parametrize("recipe", ["features", "modern", "paper2"])
def test_inference_is_a_function_of_z_with_the_noise_of_seed_0(recipe):
    net = generator(recipe).eval()
    z = torch.randn(4, 8)
    images = net(z)
    torch.manual_seed(1)
    assert torch.equal(images, net(z)) and images.abs().max() <= 1
    noise = torch.from_numpy(noise_from_seeds([0, 5, 5, 6], 8, net.synthesis.noise_dim))
    other = net.synthesis(net.styles(z), noise)
    torch.testing.assert_close(images[:1], other[:1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(images[1:], other[1:], atol=1e-3)


def test_noise_planes_come_in_the_layers_order():
    net = generator()  # in training mode nothing is clipped
    sides = net.synthesis.sides
    assert sides == [4, 4, 8, 8, 16, 16] and net.synthesis.noise_dim == sum(side**2 for side in sides)
    assert generator("modern").synthesis.sides == [4, 8, 8, 16, 16]
    styles, noise = net.eval().styles(torch.randn(1, 8)), torch.zeros(1, net.synthesis.noise_dim)
    net.train()
    plain = net.synthesis(styles, noise)
    noise[:, -16 * 16 + 5 * 16 + 3] = 9.0  # row 5, column 3 of the last layer
    where = (net.synthesis(styles, noise) - plain).abs().sum(dim=1)[0]
    # AdaIN's statistics spread a little of it over the whole plane.
    assert where.argmax().item() == 5 * 16 + 3


def test_a_layer_listens_to_its_own_style():
    net = generator("modern").eval()
    one, two = net.styles(torch.randn(2, 8)).split(1)
    mixed = one.clone()
    mixed[:, -1] = two[:, -1]
    noise = torch.zeros(1, net.synthesis.noise_dim)
    images = [net.synthesis(styles, noise) for styles in (one, mixed, two)]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
    assert (images[0] - images[1]).square().mean() < (images[0] - images[2]).square().mean()


def test_mixing_is_for_training_and_leaves_the_first_layer():
    net = generator(style_mixing=1.0)
    z = torch.randn(64, 8)
    w = net.mapping(z)
    styles = net.styles(z)
    assert torch.equal(styles[:, 0], w) and not torch.isclose(styles[:, -1], w).all(dim=1).any()
    cuts = (styles == w[:, None]).all(dim=2).sum(dim=1)
    assert set(cuts.tolist()) == set(range(1, net.style_layers))
    assert torch.equal(net.eval().styles(z), w[:, None].expand(-1, net.style_layers, -1))
    half = generator(style_mixing=0.5)
    z = torch.randn(400, 8)
    unmixed = (half.styles(z) == half.mapping(z)[:, None]).all(dim=2).all(dim=1).float().mean()
    assert 0.4 < unmixed < 0.6


def test_the_mean_of_w_is_tracked_in_training_alone():
    net = generator()
    z = torch.randn(32, 8)
    net.styles(z)
    torch.testing.assert_close(net.mean_w, (1 - MEAN_W_KEEP) * net.mapping(z).mean(dim=0))
    before = net.mean_w.clone()
    net.eval().styles(z)
    assert torch.equal(net.mean_w, before)


def test_adain_gives_every_channel_the_styles_mean_and_deviation():
    torch.manual_seed(0)
    layer = AdaptiveLayer(small(), 3, 4)
    w, x = torch.randn(2, 8), torch.randn(2, 3, 16, 16)
    out = layer(x, w, torch.randn(2, 1, 16, 16))
    scale, shift = layer.style(w).chunk(2, dim=1)
    torch.testing.assert_close(out.mean(dim=(2, 3)), shift, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out.std(dim=(2, 3), unbiased=False), (1 + scale).abs(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("up", [False, True])
def test_scaling_activations_is_demodulating_weights(up):
    """The published form: a kernel of its own for each image, normalised; ours gives the same numbers."""
    torch.manual_seed(0)
    layer = DemodulatedLayer(small("modern"), 3, 4, up=up)
    w, x = torch.randn(2, 8), torch.randn(2, 3, 8, 8)
    expected = []
    for row in range(2):
        kernel = layer.conv.weight * layer.conv.scale * layer.style(w[row : row + 1])[0][None, :, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        single = x[row : row + 1]
        if up:
            wide = F.conv_transpose2d(single, kernel.transpose(0, 1), stride=2, padding=1, output_padding=1)
            expected.append(layer.conv.blur(wide))
        else:
            expected.append(F.conv2d(single, kernel, padding=1))
    from training.progressive import GAIN, SLOPE

    wanted = F.leaky_relu(GAIN * torch.cat(expected), SLOPE)
    torch.testing.assert_close(layer(x, w, None), wanted, atol=1e-5, rtol=1e-4)


def test_path_length_of_a_linear_map():
    """G(w) = a w for every pixel: each length is a |y's mean| and a generator of even lengths has no penalty."""
    net = generator("modern", style_mixing=0.0)

    class Linear(torch.nn.Module):
        def forward(self, styles, noise=None):
            return 3 * styles.sum(dim=(1, 2))[:, None, None, None].expand(-1, 3, 16, 16)

    net.synthesis.forward = Linear().forward
    net.mean_path_length.fill_(5.0)
    torch.manual_seed(0)
    penalty, length = path_length_penalty(net, torch.randn(4000, 8))
    # y sums to N(0, C) after the division by the side; 8 components of w carry each sum.
    lengths = 3 * np.sqrt(8) * np.abs(np.random.default_rng(0).normal(0, np.sqrt(3), 100_000))
    assert length.item() == pytest.approx(lengths.mean(), rel=0.05)
    mean = net.mean_path_length.item()
    assert mean == pytest.approx(5 + 0.01 * (length.item() - 5), rel=1e-4)
    assert penalty.item() == pytest.approx(np.square(lengths - mean).mean(), rel=0.1)


def test_path_length_regularisation_evens_lengths_out(tmp_path):
    recipe = small("modern", path_length_weight=2.0)
    turns = []
    phases = FAMILIES["stylegan"].phases(recipe)
    turns = [(phase.name, phase.every, phase.step) for phase in phases]
    assert ("path_length", recipe.path_length_every, False) in turns and turns[-1][0] == "generator"
    plain = FAMILIES["stylegan"].phases(replace(recipe, path_length_weight=0.0))
    assert "path_length" not in [phase.name for phase in plain]
    torch.manual_seed(0)
    net = generator("modern", style_mixing=0.0)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    spread = []
    for _ in range(60):
        penalty, length = path_length_penalty(net, torch.randn(16, 8))
        spread.append((penalty / length.square()).item())
        penalty.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert np.mean(spread[-10:]) < 0.8 * np.mean(spread[:10])


def test_directions_are_what_the_styles_answer_to():
    net = generator("modern")
    found, strengths = directions(net.synthesis, 5)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)
    weights = torch.cat([m.style.weight * m.style.scale for m in net.synthesis.modules() if hasattr(m, "style")])
    answers = np.linalg.norm(weights.detach().numpy() @ found.T, axis=0) ** 2
    np.testing.assert_allclose(answers, strengths, rtol=1e-3)
    assert (np.diff(strengths) <= 0).all() and found.dtype == np.float32
    random = np.random.default_rng(0).normal(size=(8, 200))
    random /= np.linalg.norm(random, axis=0)
    assert (np.linalg.norm(weights.detach().numpy() @ random, axis=0) ** 2 <= strengths[0] * 1.001).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, changes", [("paper2", {}), ("features", {"noise": False}), ("modern", {"palette": 8})]
)
def test_what_the_family_tests_do_not_export(recipe, changes):
    net = generator(recipe, **changes).eval()
    spec = FAMILIES["stylegan"].exports(torch.nn.ModuleDict({"generator": net}), small(recipe, **changes), ())[0]
    for graph in spec.graphs.values():
        assert to_onnx(graph)
    z = torch.from_numpy(latents_from_seeds(range(4000), 8))
    np.testing.assert_allclose(spec.arrays["mean_w"], net.mapping(z).mean(dim=0).detach().numpy(), atol=0.1)
    assert spec.generate.style_layers == net.style_layers == spec.graphs["synthesis"].inputs[0].shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["features", "modern"])
async def test_what_is_exported_can_be_steered(exported, recipe):
    """SeFa's directions go by name, noise by seed, styles by layer; strength 0 and a mix of one are the seed."""
    _, folder = exported("stylegan", recipe)
    name = folder.parent.name
    options = EngineOptions(models=folder.parent.parent, providers=("cpu",), profile_s=0, poll_models_s=None)
    async with Engine(options) as engine:
        info = engine.model(name)
        assert info.directions[:2] == ("sefa_1", "sefa_2") == info.manifest.generate.directions[:2]
        layers = info.manifest.generate.style_layers

        async def draw(**steering):
            return await engine.generate(name, seeds=[7], truncation=0.7, steering=Steering.of(**steering))

        plain = await engine.generate(name, seeds=[7], truncation=0.7)
        still = await draw(directions={"sefa_1": 0}, truncation_cutoff=layers)
        np.testing.assert_array_equal(still.images, plain.images)
        moved = await draw(directions={"sefa_1": 3}, styles=[{"seed": 8, "layers": f"{layers - 1}"}])
        assert moved.latents.shape == plain.latents.shape and (moved.latents[0] != plain.latents[0]).any(axis=1).all()
        again = await engine.generate(name, latents=moved.latents, steering=Steering(space="w+"))
        np.testing.assert_array_equal(again.images, moved.images)
        motion = await engine.interpolate(name, [KeyFrame.of(1), KeyFrame.of(2)], Track(5))
        frames = await motion.whole()
        ends = await engine.generate(name, seeds=[1, 2])
        np.testing.assert_array_equal(frames[[0, -1]], ends.images)
