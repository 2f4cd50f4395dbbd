"""Does a generator copy its training images? How near they are to it, against what is normal for new images."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from training.evaluation.matrices import pair, squared_distances


@dataclass(frozen=True)
class Nearest:
    """How close fakes come to training images.

    Attributes:
        ratio: median distance from a fake to its nearest training image, over that from a held-out real image to its
            own. About 1 is as new as real images; well below 1 says that training images are repeated.
        copies: share of fakes as close to a training image as the nearest 1 % of held-out images are: normally 0.01.
        indices: int64 [N], the nearest training image of every fake: to put them side by side in a picture.
    """

    ratio: float
    copies: float
    indices: npt.NDArray[np.int64] = field(compare=False)


def nearest(fake: npt.ArrayLike, train: npt.ArrayLike, test: npt.ArrayLike) -> Nearest:
    """Look for repeated training images among fakes, by features [N, d] of fakes, training and held-out images.

    Give all the images that were trained on where that is affordable: a copy of any other one goes unseen.

    Raises:
        ValueError: bad features, as frechet_distance; or held-out images that all are training images.
    """
    fake_distances, indices = _nearest("fake", fake, train)
    test_distances, _ = _nearest("test", test, train)
    usual = float(np.median(test_distances))
    if usual == 0:
        raise ValueError("test: half of the held-out images or more are training images, so nothing can be told")
    close = float(np.quantile(test_distances, 0.01))
    tolerance = 1e-5 * usual  # the rounding of a distance of nought
    copies = float((fake_distances <= close + tolerance).mean())
    return Nearest(float(np.median(fake_distances)) / usual, copies, indices)


def _nearest(
    name: str, points: npt.ArrayLike, train: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    rows, targets = pair((name, "train"), points, train)
    found = [block.min(1) for _, block in squared_distances(rows, targets)]
    distances = torch.cat([one.values for one in found]).sqrt().numpy()
    return distances, torch.cat([one.indices for one in found]).numpy()
