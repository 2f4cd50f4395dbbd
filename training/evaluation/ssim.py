"""Structural similarity: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.

With the paper's Gaussian window (11 px, sigma 1.5), its constants, and population covariances; colours averaged.
"""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Images = npt.NDArray[np.uint8]
SIGMA, RADIUS = 1.5, 5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(images: Images, targets: Images) -> npt.NDArray[np.float64]:
    """Of each of images [N, H, W, C] against its target: [N], 1 for equal images. Borders of 5 px are left out.

    Raises:
        ValueError: the shapes differ, or a side is under 11 px.
    """
    if images.shape != targets.shape:
        raise ValueError(f"images are {list(images.shape)}, targets {list(targets.shape)}: want the same")
    if min(images.shape[1:3]) <= 2 * RADIUS:
        raise ValueError(f"images are {list(images.shape)}: sides must be at least {2 * RADIUS + 1} px")
    return np.array([_ssim(image, target) for image, target in zip(images, targets, strict=True)])


def _ssim(image: Images, target: Images) -> float:
    x, y = image.astype(np.float64), target.astype(np.float64)
    mean_x, mean_y = _window(x), _window(y)
    var_x = _window(x * x) - mean_x**2
    var_y = _window(y * y) - mean_y**2
    both = _window(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + C1) * (2 * both + C2)
    bottom = (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    return float((top / bottom)[RADIUS:-RADIUS, RADIUS:-RADIUS].mean())


def _window(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = gaussian_filter(x, (SIGMA, SIGMA, 0), truncate=RADIUS / SIGMA)
    return result
