"""Building blocks against worked examples."""

import numpy as np
import pytest
import torch
from torch import nn

from training.families import FAMILIES
from training.layers import (
    ClassBatchNorm,
    ClassTable,
    ConvDiscriminator,
    ConvGenerator,
    Maxout,
    MinibatchStddev,
    PaletteHead,
    channel_plan,
    from_pixels,
    initialise,
    octaves,
    to_pixels,
)
from training.recipe import Recipe, RecipeError


def test_all_256_levels_survive_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    images = from_pixels(levels)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(to_pixels(images), levels)


def test_pixels_are_rounded_and_clipped():
    images = torch.tensor([-9.0, -1.0, -1 + 0.6 / 127.5, -1 + 0.4 / 127.5, 1.0, 9.0]).view(1, 1, 1, 6)
    assert to_pixels(images).flatten().tolist() == [0, 0, 1, 0, 255, 255]


def test_channels_go_last():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 2] = 1
    assert to_pixels(image)[0, 0, 0].tolist() == [128, 128, 255]


@pytest.mark.parametrize(
    "size, expected", [(8, (4, 1)), (28, (7, 2)), (32, (4, 3)), (48, (6, 3)), (64, (4, 4)), (80, (5, 4)), (96, (6, 4))]
)
def test_octaves(size, expected):
    start, doublings = octaves(size)
    assert (start, doublings) == expected and start * 2**doublings == size


@pytest.mark.parametrize("size", [1, 2, 4, 5, 7, 9, 15, 22, 27, 30, 100])
def test_sizes_without_octaves(size):
    with pytest.raises(RecipeError, match=f"size is {size}, must be 4 to 7 px doubled"):
        octaves(size)


def test_channel_plan():
    assert channel_plan(16, 4, 64) == [64, 64, 32, 16]
    assert channel_plan(16, 1, 64) == [16]


def test_minibatch_stddev_is_the_groups_mean_deviation():
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    out = MinibatchStddev(group=4)(x)
    assert out.shape == (8, 4, 2, 2) and torch.equal(out[:, :3], x)
    values = x.numpy()
    for first in (0, 1):  # rows 0, 2, 4, 6 are one group, rows 1, 3, 5, 7 the other
        expected = values[first::2].std(axis=0).mean()
        np.testing.assert_allclose(out[first::2, 3].numpy(), np.full((4, 2, 2), expected), rtol=1e-5)


def test_minibatch_stddev_of_odd_batches_and_of_copies():
    layer = MinibatchStddev(group=4)
    x = torch.randn(6, 2, 2, 2)
    np.testing.assert_allclose(layer(x)[:, 2].numpy(), x.numpy().std(axis=0).mean(), rtol=1e-5)
    assert layer(torch.ones(1, 2, 2, 2))[0, 2].max() < 1e-3
    copies = torch.randn(1, 2, 2, 2).expand(4, 2, 2, 2).clone().requires_grad_(True)
    layer(copies)[:, 2].sum().backward()  # the root at zero must not make NaN
    assert copies.grad.isfinite().all()


def test_maxout():
    layer = Maxout(2, 2, 3)
    x = torch.randn(5, 2)
    pieces = x @ layer.linear.weight.T + layer.linear.bias
    expected = torch.stack([pieces[:, :3].amax(1), pieces[:, 3:].amax(1)], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_class_batch_norm_scales_by_class():
    norm = ClassBatchNorm(2, classes=3)
    x, labels = torch.randn(6, 2, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(norm(x, labels), plain)  # begins as plain batch norm
    with torch.no_grad():
        norm.scale.weight[1] = torch.tensor([2.0, 3.0])
        norm.shift.weight[1] = torch.tensor([5.0, 7.0])
    out = norm(x, labels)
    torch.testing.assert_close(out[labels != 1], plain[labels != 1])
    expected = plain[labels == 1] * torch.tensor([2.0, 3.0]).view(2, 1, 1) + torch.tensor([5.0, 7.0]).view(2, 1, 1)
    torch.testing.assert_close(out[labels == 1], expected)


def test_class_batch_norm_without_classes_is_plain():
    norm = ClassBatchNorm(2, classes=0)
    assert {name for name, _ in norm.named_parameters()} == {"norm.weight", "norm.bias"}
    assert norm(torch.randn(4, 2, 3, 3), None).mean().abs() < 1e-5


def test_weights_are_drawn_as_the_recipe_says():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(8, 64, 4), nn.ConvTranspose2d(64, 8, 4), nn.BatchNorm2d(512))
    before = [p.detach().clone() for p in net.parameters()]
    initialise(net, Recipe(weight_std=0.0))
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
    initialise(net, Recipe(weight_std=0.02))
    for layer in net[:3]:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1) and not layer.bias.any()
    assert float(net[3].weight.detach().mean()) == pytest.approx(1, abs=0.01)
    assert float(net[3].weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_projection_adds_the_classes_say():
    torch.manual_seed(0)
    recipe = Recipe(size=8, classes=3, discriminator_width=4, max_channels=8, minibatch_stddev=False)
    net = ConvDiscriminator(recipe)
    images = torch.randn(1, 3, 8, 8).expand(3, 3, 8, 8)
    logits = net(images, torch.arange(3))
    assert len(set(logits.tolist())) == 3
    nn.init.zeros_(net.classes.weight)
    assert torch.allclose(net(images, torch.arange(3)), net(images, torch.zeros(3, dtype=torch.int64)))


def test_rows_of_a_discriminator_without_batch_statistics_are_strangers():
    torch.manual_seed(0)
    net = ConvDiscriminator(Recipe(size=8, discriminator_width=4, max_channels=8, minibatch_stddev=False))
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(net(images)[2:3], net(images[2:3]))


def test_a_palette_generator_mixes_few_colours_and_draws_flat_areas_flat():
    recipe = (
        FAMILIES["dcgan"].recipes["modern"].replaced(size=8, latent_dim=8, generator_width=4, max_channels=8, palette=4)
    )
    generator = ConvGenerator(recipe).eval()
    z = torch.randn(2, 8)
    with torch.no_grad():
        colours = generator.to_image.palette(z)
        images = generator(z)
        assert torch.equal(colours[0, 0], colours[1, 0]) and not torch.equal(colours[0, 1], colours[1, 1])
        low, high = colours.amin(1)[:, :, None, None], colours.amax(1)[:, :, None, None]
        assert images.shape == (2, 3, 8, 8) and (images >= low - 1e-6).all() and (images <= high + 1e-6).all()
        generator.to_image.mix.bias[1] += 100  # the second colour wins everywhere
        flat = generator(z)
    assert torch.equal(flat, colours[:, 1, :, None, None].expand_as(flat))


def test_residual_blocks_begin_close_to_the_identity():
    plain = FAMILIES["dcgan"].recipes["modern"].replaced(size=8, latent_dim=8, generator_width=4, residual_blocks=0)
    torch.manual_seed(0)
    one = ConvGenerator(plain).eval()
    grown = ConvGenerator(plain.replaced(residual_blocks=2)).eval()
    grown.load_state_dict(one.state_dict(), strict=False)
    z = torch.randn(4, 8)
    with torch.no_grad():
        first, second, other = one(z), grown(z), ConvGenerator(plain).eval()(z)
    assert not torch.equal(first, second)
    assert (first - second).abs().mean() < 0.3 * (first - other).abs().mean()


def test_weights_of_classes_are_their_mixtures_and_one_alone_is_its_row():
    table = ClassTable(3, 5)
    labels = torch.tensor([2, 0, 1, 2])
    torch.testing.assert_close(table(torch.eye(3)[labels]), table(labels), rtol=0, atol=0)
    mixed = table(torch.tensor([[0.25, 0.75, 0.0]]))
    torch.testing.assert_close(mixed[0], 0.25 * table.weight[0] + 0.75 * table.weight[1])


def test_a_slow_palette_draws_the_same_and_learns_at_its_rate():
    recipe = FAMILIES["stylegan"].recipes["modern"].replaced(palette=8, channels=3, latent_dim=4)
    heads = []
    for rate in (1.0, 0.05):
        torch.manual_seed(0)
        heads.append(PaletteHead(6, recipe, rate))
    x, z = torch.randn(2, 6, 8, 8), torch.randn(2, 4)
    plain, slow = (head(x, z) for head in heads)
    torch.testing.assert_close(plain, slow)
    steps = []
    for head in heads:
        before = head.palette(z).detach()
        optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
        head(x, z).square().mean().backward()
        optimiser.step()
        steps.append(float((head.palette(z) - before).abs().mean().detach()))
    assert steps[1] == pytest.approx(0.05 * steps[0], rel=0.1)
