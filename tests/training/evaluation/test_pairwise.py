"""PSNR, SSIM, LPIPS-HED and the table of a translation: against formulas, scikit-image, and order where none exist."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from training import perceptual
from training.evaluation import pairwise
from training.evaluation.classical import answers, harmonic_fill, nearest_fill, tinted
from training.evaluation.lpips_hed import lpips_hed
from training.evaluation.pairwise import PairReport, compare_all, quick
from training.evaluation.psnr import psnr
from training.evaluation.ssim import ssim
from training.features import FeaturesUnavailable


def pictures(count: int = 3, side: int = 40) -> np.ndarray:
    """Smooth random colours, uint8 [count, side, side, 3]."""
    noise = np.random.default_rng(0).normal(size=(count, side, side, 3))
    soft = gaussian_filter(noise, (0, 2, 2, 0))
    return ((soft - soft.min()) / np.ptp(soft) * 255).astype(np.uint8)


def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
    return (images + np.random.default_rng(1).normal(0, sigma, images.shape)).clip(0, 255).astype(np.uint8)


def test_psnr_and_ssim_are_scikit_images():
    targets = pictures()
    for images in (noisy(targets, 4), noisy(targets, 30), 255 - targets, gaussian_filter(targets, (0, 1, 1, 0))):
        for index, (found_psnr, found_ssim) in enumerate(
            zip(psnr(images, targets), ssim(images, targets), strict=True)
        ):
            pair = images[index], targets[index]
            assert found_psnr == pytest.approx(peak_signal_noise_ratio(*pair[::-1]), abs=1e-9)
            wanted = structural_similarity(
                *pair, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
            )
            assert found_ssim == pytest.approx(wanted, abs=1e-6)


def test_equal_images():
    images = pictures()
    assert np.isinf(psnr(images, images)).all()
    np.testing.assert_allclose(ssim(images, images), 1)
    assert quick(images, images) == {"psnr": 100.0, "ssim": 1.0, "error": 0.0}


def test_what_does_not_fit_is_refused():
    images = pictures()
    for metric in (psnr, ssim, lpips_hed):
        with pytest.raises(ValueError, match="want the same"):
            metric(images, images[:, :-1])
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(images[:, :10, :10], images[:, :10, :10])


@pytest.fixture
def weights(tmp_path):
    """A VGG of random numbers with heads that weigh all channels alike, as `data hed-vgg` would write it."""
    torch.manual_seed(0)
    arrays = {}
    for b, block in enumerate(perceptual.Vgg().blocks):
        for c, conv in enumerate(block):
            arrays[f"conv{b + 1}_{c + 1}/weight"] = torch.nn.init.kaiming_normal_(conv.weight).numpy()
            arrays[f"conv{b + 1}_{c + 1}/bias"] = conv.bias.numpy()
        arrays[f"head{b + 1}"] = np.full((1, perceptual.WIDTHS[b], 1, 1), 0.1, np.float32)
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays)
    return path


def test_lpips_hed_is_zero_for_equal_images_and_grows_with_noise(weights):
    targets = pictures(2)
    figures = [lpips_hed(noisy(targets, sigma) if sigma else targets, targets, weights) for sigma in (0, 5, 20, 60)]
    np.testing.assert_allclose(figures[0], 0, atol=1e-7)
    for near, far in itertools.pairwise(figures):
        assert (near < far).all()
    one = lpips_hed(noisy(targets, 20)[1:], targets[1:], weights)
    np.testing.assert_allclose(one, figures[2][1:], rtol=1e-4)  # a row does not depend on its neighbours


def test_lpips_hed_says_how_to_get_its_weights(tmp_path):
    with pytest.raises(FeaturesUnavailable, match="python -m training data hed-vgg"):
        lpips_hed(pictures(), pictures(), tmp_path / "none.npz")


def test_the_perceptual_loss_has_gradients_for_the_images_alone(weights, monkeypatch):
    monkeypatch.setattr(perceptual, "WEIGHTS", weights)
    perceptual.load_vgg.cache_clear()
    torch.manual_seed(0)
    images, targets = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16, requires_grad=True)
    value = perceptual.loss(images * 2 - 1, targets * 2 - 1)
    value.backward()
    assert images.grad.abs().sum() > 0 and targets.grad is None
    assert perceptual.loss(targets.detach(), targets.detach()) == 0
    perceptual.load_vgg.cache_clear()


def test_classical_tools_do_their_jobs():
    clean = pictures(2)
    spotted = clean.copy()
    spotted[:, ::7, ::7] = 255
    found = answers("rain", spotted, clean, 1)
    assert list(found) == ["the input itself", "median filter, 3 px", "median filter, 5 px"]
    assert psnr(found["median filter, 3 px"], clean).mean() > psnr(spotted, clean).mean()
    assert list(answers("bicubic", clean, clean, 2)) == ["bicubic", "Lanczos"]
    assert answers("bicubic", clean, clean, 2)["bicubic"].shape == (2, 80, 80, 3)


def test_fills_come_near_what_is_missing_and_leave_the_rest():
    clean = np.broadcast_to(np.linspace(40, 200, 40).astype(np.uint8)[None, :, None], (40, 40, 3)).copy()
    mask = np.zeros((40, 40, 1), np.uint8)
    mask[12:24, 14:26] = 255
    source = np.concatenate([np.where(mask > 0, np.uint8(127), clean), mask], axis=2)
    for fill in (nearest_fill, harmonic_fill):
        filled = fill(source)
        np.testing.assert_array_equal(filled[mask[..., 0] == 0], clean[mask[..., 0] == 0])
    assert np.abs(harmonic_fill(source).astype(int) - clean).max() <= 4  # a ramp is harmonic
    empty = np.concatenate([clean, np.zeros((40, 40, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(nearest_fill(empty), clean)


def test_a_tint_is_the_mean_colour_of_each_luminance():
    sepia = np.zeros((1, 16, 16, 3), np.uint8)
    sepia[0, :, :8], sepia[0, :, 8:] = (60, 40, 20), (220, 200, 150)
    luma = (sepia @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    grey = np.repeat(luma[..., None], 3, axis=3)
    assert np.abs(tinted(grey, sepia).astype(int) - sepia).max() <= 12


def test_the_table_names_rows_and_figures(monkeypatch):
    monkeypatch.setattr(pairwise, "Lite0Features", lambda: lambda images: images.reshape(len(images), -1)[:, :16] / 255)
    targets = pictures(4)
    answers = {"this model": noisy(targets, 3), "the input itself": noisy(targets, 30)}
    rows = compare_all(answers, dict.fromkeys(answers, targets), perceptual=False)
    assert rows[0].metrics["psnr"] > rows[1].metrics["psnr"] and rows[0].metrics["ssim"] > rows[1].metrics["ssim"]
    made = PairReport({"Held out": rows}, 4).document()
    assert "| this model | " in made["table"] and "PSNR, dB" in made["table"] and "LPIPS-HED |" not in made["table"]
    assert [entry["metric"] for entry in made["metrics"]] == ["PSNR", "SSIM", "KID-lite0"]
    assert made["metrics"][0]["floor"] == rows[1].metrics["psnr"]
    (alone,) = compare_all({"x": targets}, {"x": targets}, paired=False)
    assert set(alone.metrics) == {"kid_lite0"}


def test_kid_does_not_hold_an_output_against_its_own_target(monkeypatch):
    """Copies of the targets are as far from the other targets as these are from each other: about 0, not below."""
    monkeypatch.setattr(pairwise, "Lite0Features", lambda: lambda images: images[:, 0, 0].astype(float))
    targets = np.random.default_rng(0).integers(0, 3, (400, 12, 12, 3), dtype=np.uint8)
    answers = {"same": targets, "shifted": targets + np.uint8(2)}
    rows = compare_all(answers, dict.fromkeys(answers, targets), perceptual=False)
    same, shifted = (row.metrics["kid_lite0"] for row in rows)
    assert abs(same) < 0.1 * shifted
