"""Equalised layers, resampling and the ladder against worked examples."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from service.manifest import TensorSpec
from training.export import to_onnx
from training.family import GraphExport
from training.progressive import (
    GAIN,
    WHOLE,
    Blur,
    EqualConv2d,
    EqualLinear,
    Halve,
    LadderDiscriminator,
    PixelNorm,
    refuse_clipping,
    split_level,
)
from training.recipe import Recipe, RecipeError


def test_equalised_layers_keep_the_variance():
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    assert EqualLinear(256, 512)(x).std().item() == pytest.approx(1, rel=0.05)
    images = torch.randn(4, 64, 16, 16)
    assert EqualConv2d(64, 64, 3)(images)[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, rel=0.05)
    through = F.leaky_relu(EqualConv2d(64, 64, 1, gain=GAIN)(images), 0.2)
    assert through.square().mean().item() == pytest.approx(1, rel=0.1)


def test_a_slow_layer_is_the_same_function_and_moves_less():
    torch.manual_seed(0)
    moved = {}
    for rate in (1.0, 0.01):
        layer = EqualLinear(64, 64, rate=rate, bias=1.0)
        assert (layer(torch.randn(256, 64)) - 1).std().item() == pytest.approx(1, rel=0.1)
        before = (layer.weight * layer.scale).detach().clone()
        optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
        layer(torch.randn(8, 64)).sum().backward()
        optimiser.step()
        moved[rate] = (layer.weight * layer.scale - before).abs().mean().item()
    assert moved[0.01] == pytest.approx(0.01 * moved[1.0], rel=0.01)


@pytest.mark.parametrize("resample", ["nearest", "bilinear"])
def test_upsampling_convolutions_interpolate_and_convolve(resample):
    torch.manual_seed(0)
    layer = EqualConv2d(3, 5, 3, gain=2.0, up=True, resample=resample)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 8, 8)
    weight = layer.weight * layer.scale
    if resample == "nearest":
        expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), expected)
        return
    zeros = torch.zeros(2, 3, 16, 16)
    zeros[:, :, ::2, ::2] = x
    wide = Blur(3, gain=4.0)(zeros)
    # The transposed kernel is the flipped one.
    expected = F.conv2d(wide, weight.flip(2, 3), layer.bias, padding=1)
    torch.testing.assert_close(layer(x)[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-5, rtol=1e-4)


def test_zeros_and_blur_are_bilinear_interpolation_between_pixels():
    zeros = torch.zeros(1, 1, 1, 8)
    zeros[0, 0, 0, ::2] = torch.tensor([1.0, 3.0, 5.0, 7.0])
    row = Blur(1, gain=4.0)(F.pad(zeros.expand(1, 1, 8, 8).clone(), (0, 0, 0, 0)) * _every_second_row())[0, 0, 2]
    assert row[:7].tolist() == [1, 2, 3, 4, 5, 6, 7]


def _every_second_row():
    rows = torch.zeros(1, 1, 8, 1)
    rows[:, :, ::2] = 1
    return rows


@pytest.mark.parametrize("resample, taps", [("nearest", [0.5, 0.5]), ("bilinear", [0.125, 0.375, 0.375, 0.125])])
def test_halving(resample, taps):
    x = torch.randn(1, 2, 8, 8)
    out = Halve(2, resample)(x)
    assert out.shape == (1, 2, 4, 4)
    first = 2 - (len(taps) // 2 - 1)
    weights = torch.tensor(taps)
    window = x[0, 1, first : first + len(taps), first : first + len(taps)]
    torch.testing.assert_close(out[0, 1, 1, 1], (weights[:, None] * weights * window).sum())


def test_pixel_norm():
    out = PixelNorm()(torch.randn(2, 16, 3, 3) * 7)
    torch.testing.assert_close(out.square().mean(dim=1), torch.ones(2, 3, 3), rtol=1e-4, atol=1e-4)
    assert PixelNorm()(torch.zeros(1, 4)).isfinite().all()


@pytest.mark.parametrize("value, expected", [(0, (0, 1.0)), (300, (1, 0.3)), (1000, (1, 1.0)), (2300, (3, 0.3))])
def test_levels(value, expected):
    stage, share = split_level(torch.tensor(value))
    assert stage == expected[0] and math.isclose(share, expected[1])


def _ladder(growing=True):
    torch.manual_seed(0)
    recipe = Recipe(size=16, discriminator_width=4, max_channels=8, minibatch_stddev=False)
    return LadderDiscriminator(recipe, growing)


def test_a_growing_ladder_fades_without_a_jump():
    ladder, images = _ladder(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        ladder.level.fill_(1)  # nothing of the new octave yet
        one = ladder(images)
        ladder.level.fill_(0)
        torch.testing.assert_close(one, ladder(F.avg_pool2d(images, 2)), atol=0.01, rtol=0.01)
        ladder.level.fill_(WHOLE)
        whole = ladder(images)
        ladder.level.fill_(WHOLE - 1)
        torch.testing.assert_close(whole, ladder(images), atol=0.01, rtol=0.01)
        assert not torch.allclose(one, whole, atol=0.05)


def test_a_ladder_at_rest_has_one_rung():
    assert len(_ladder(growing=False).rungs) == 1 and len(_ladder().rungs) == 3
    assert _ladder(growing=False)(torch.zeros(2, 3, 16, 16)).shape == (2,)


def test_clipping_is_refused():
    refuse_clipping(Recipe())
    with pytest.raises(RecipeError, match="equalised weights do not bear"):
        refuse_clipping(Recipe(clip=0.01))


@pytest.mark.slow
def test_even_rows_survive_the_export():
    """A root's epsilon below 1e-8 is optimised away by the exporter, and what is even becomes NaN."""
    tensor = TensorSpec(name="x", kind="latent", dtype="float32", shape=("batch", 4))
    data = to_onnx(GraphExport(PixelNorm(), (tensor,), (tensor.model_copy(update={"name": "y"}),)))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.zeros((2, 4), np.float32)})
    assert np.isfinite(answer).all()
