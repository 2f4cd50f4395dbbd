"""Peak signal-to-noise ratio, of 8-bit images."""

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


def psnr(images: Images, targets: Images) -> npt.NDArray[np.float64]:
    """Of each of images [N, H, W, C] against its target: [N], dB over all channels; infinite where they are equal.

    Raises:
        ValueError: the shapes differ.
    """
    if images.shape != targets.shape:
        raise ValueError(f"images are {list(images.shape)}, targets {list(targets.shape)}: want the same")
    error = np.square(images.astype(np.float64) - targets).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        found: npt.NDArray[np.float64] = 10 * np.log10(255.0**2 / error)
    return found
