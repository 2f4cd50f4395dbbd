"""What one would do without a model, for each job: the tools that a translation must beat."""

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, median_filter

Images = npt.NDArray[np.uint8]
LUMA = np.array([0.299, 0.587, 0.114])


def answers(degradation: str, sources: Images, targets_of_training: Images, scale: int) -> dict[str, Images]:
    """Baselines by name, [N, sH, sW, 3] each, the input itself (or its bicubic enlargement) first.

    Args:
        degradation: of the sources.
        sources: [N, H, W, 3 or 4].
        targets_of_training: [M, H, W, 3]: tints are chosen on them, not on the held-out targets.
        scale: output side over input side.
    """
    images = sources[..., :3]
    if scale > 1:
        kinds = {"bicubic": Image.Resampling.BICUBIC, "Lanczos": Image.Resampling.LANCZOS}
        return {name: np.stack([enlarged(image, scale, kind) for image in images]) for name, kind in kinds.items()}
    found = {"the input itself": np.ascontiguousarray(images)}
    base = degradation.removesuffix("-unseen")
    if base in ("rain", "snow", "weather", "old"):
        for size in (3, 5):
            found[f"median filter, {size} px"] = np.stack([median_filter(image, (size, size, 1)) for image in images])
    if base == "holes":
        found |= {name: np.stack([fill(source) for source in sources]) for name, fill in _FILLS.items()}
        found |= _opencv(sources)
    if base in ("grey", "sketch"):
        found["one tint"] = tinted(images, targets_of_training)
    if base == "night":
        found["gamma and tint"] = tinted((255 * (images / 255.0) ** 1.8).astype(np.uint8), targets_of_training)
    return found


def enlarged(image: Images, scale: int, kind: Image.Resampling) -> Images:
    """[H, W, 3] to [sH, sW, 3]."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return np.asarray(Image.fromarray(image).resize(size, kind))


def tinted(images: Images, targets: Images) -> Images:
    """The images' luminance, with the mean colour that the targets have at each level of luminance."""
    levels = (targets @ LUMA).astype(np.uint8).reshape(-1)
    colours = targets.reshape(-1, 3).astype(np.float64)
    counts = np.bincount(levels, minlength=256)
    table = (
        np.stack([np.bincount(levels, colours[:, c], 256) for c in range(3)], axis=1) / np.maximum(counts, 1)[:, None]
    )
    known = np.flatnonzero(counts)
    table = np.stack([np.interp(np.arange(256), known, table[known, c]) for c in range(3)], axis=1)
    result: Images = np.rint(table[(images @ LUMA).astype(np.uint8)]).clip(0, 255).astype(np.uint8)
    return result


def nearest_fill(source: Images) -> Images:
    """Missing pixels take the nearest known one's colour, softened within the hole."""
    missing = source[..., 3] >= 128
    if missing.all() or not missing.any():
        return np.ascontiguousarray(source[..., :3])
    rows, columns = distance_transform_edt(missing, return_distances=False, return_indices=True)
    filled = source[rows, columns, :3]
    soft = gaussian_filter(filled.astype(np.float64), (2, 2, 0))
    return np.where(missing[..., None], np.rint(soft).astype(np.uint8), source[..., :3])


def harmonic_fill(source: Images, steps: int = 300) -> Images:
    """Missing pixels settle to the mean of their neighbours (heat that flows in from the hole's border)."""
    missing = source[..., 3] >= 128
    image = nearest_fill(source).astype(np.float64)
    for _ in range(steps):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
        image[missing] = mean[missing]
    return np.rint(image).clip(0, 255).astype(np.uint8)


_FILLS = {"nearest colour": nearest_fill, "harmonic fill": harmonic_fill}


def _opencv(sources: Images) -> dict[str, Images]:
    """Telea's and the Navier-Stokes inpainting, where OpenCV is installed."""
    try:
        import cv2
    except ImportError:
        return {}
    found = {}
    for name, method in (("OpenCV, Telea", cv2.INPAINT_TELEA), ("OpenCV, Navier-Stokes", cv2.INPAINT_NS)):
        filled = [cv2.inpaint(np.ascontiguousarray(s[..., :3]), s[..., 3].copy(), 5, method) for s in sources]
        found[name] = np.stack(filled).astype(np.uint8)
    return found
