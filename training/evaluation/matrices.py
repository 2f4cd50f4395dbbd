"""Feature matrices, checked once and taken to float64, and the distances between their rows."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

CHUNK = 1024  # rows: 1024 x 10,000 distances are 80 MB


def matrix(name: str, features: npt.ArrayLike) -> torch.Tensor:
    """`features` [N, d] as a float64 tensor.

    Raises:
        ValueError: not a matrix with at least two rows, or not finite; the text begins with `name`.
    """
    array = np.asarray(features)
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise ValueError(f"{name}: want features [N >= 2, d], got shape {list(array.shape)}")
    result = torch.from_numpy(np.ascontiguousarray(array, np.float64))
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"{name}: features must be finite, got NaN or infinity")
    return result


def pair(names: tuple[str, str], a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices as `matrix` makes them, of the same length of row.

    Raises:
        ValueError: as `matrix`, or the lengths differ.
    """
    first, second = matrix(names[0], a), matrix(names[1], b)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]}: features of length {first.shape[1]} and {second.shape[1]} differ")
    return first, second


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Squared Euclidean distances from rows of `a` to all rows of `b`, CHUNK rows at a time: (rows, [rows, len(b)])."""
    norms = (b * b).sum(1)
    for start in range(0, len(a), CHUNK):
        rows = slice(start, min(start + CHUNK, len(a)))
        block = (a[rows] * a[rows]).sum(1, keepdim=True) + norms - 2 * (a[rows] @ b.T)
        if a is b:  # rounding must not push a point away from itself
            block[range(block.shape[0]), range(rows.start, rows.stop)] = 0
        yield rows, block.clamp_(min=0)


def squared_radii(name: str, points: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance of every point to its k-th nearest other point: [N].

    Raises:
        ValueError: there are not more than k points.
    """
    if not 1 <= k < len(points):
        raise ValueError(f"k: want 1 <= k < {len(points)} ({name} has {len(points)} rows), got {k}")
    # The point itself, at distance 0, is the first of the k + 1.
    return torch.cat([block.kthvalue(k + 1, dim=1).values for _, block in squared_distances(points, points)])
