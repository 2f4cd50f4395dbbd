"""Images in, distances to a fixed set of held-out real images out; features of real images are computed once."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.evaluation.density_coverage import density_coverage
from training.evaluation.frechet import frechet_distance
from training.evaluation.kernel import kernel_distance
from training.evaluation.precision_recall import precision_recall
from training.features import Lite0Features
from training.runlog import write_atomically

Images = npt.NDArray[np.uint8]  # [N, H, W, C]
Features = npt.NDArray[np.float32]  # [N, d]
Extractor = Callable[[Images], Features]

NEIGHBOURS = (
    5  # k of precision, recall, density and coverage: Naeem et al. choose it so that real against real covers 0.97
)


class Evaluator:
    """Measures generated images against held-out real ones. The trainer is handed one as its `evaluate`.

    Attributes:
        samples: how many images are measured on each side. Distances at different counts do not compare.
        space: the feature space's name, `lite0` unless another extractor was given.
    """

    def __init__(
        self, reference: Images, *, samples: int, cache: Path | None = None, extractor: Extractor | None = None
    ) -> None:
        """Choose the reference images; nothing is computed yet.

        Args:
            reference: held-out real images, uint8 [N, H, W, C], of which `samples` are drawn, always the same.
            samples: images on each side; fewer when `reference` holds fewer. More than NEIGHBOURS.
            cache: folder for the features of real images, by their content; made when needed. None keeps them in
                memory only.
            extractor: images to features; Lite0Features unless given. Its `space` names the metrics (else `custom`);
                without a `fingerprint` that tells its versions apart nothing of it is written to `cache`.

        Raises:
            ValueError: `reference` is not such an array, or there are too few samples.
        """
        _check_images("reference", reference)
        self.samples = min(samples, len(reference))
        if self.samples <= NEIGHBOURS:
            raise ValueError(f"samples: want more than {NEIGHBOURS}, got {self.samples} of {len(reference)} images")
        self._extractor = extractor or Lite0Features()
        self.space = str(getattr(self._extractor, "space", "custom"))
        self._fingerprint: str | None = getattr(self._extractor, "fingerprint", None)
        self._cache = cache
        self._images = draw(reference, self.samples)
        self._reference: Features | None = None

    @property
    def reference(self) -> Features:
        """Features of the reference images [samples, d]."""
        if self._reference is None:
            self._reference = self.real_features(self._images)
        return self._reference

    def __call__(self, fakes: Images) -> dict[str, float]:
        """Distances of the first `samples` of `fakes`, uint8 [N >= samples, H, W, C].

        Returns:
            kid_<space> and fd_<space> (0 is best), precision, recall and coverage (0..1), density (about 1 is real).

        Raises:
            ValueError: too few images, or not of the reference's size and channels.
        """
        return self.compare(self.features(fakes))

    def features(self, fakes: Images) -> Features:
        """Features [samples, d] of the first `samples` of `fakes`, which are as calling it wants them."""
        self.check("fakes", fakes)
        return self._extractor(fakes[: self.samples])

    def compare(self, features: Features) -> dict[str, float]:
        """As calling it, from features [samples, d] already there."""
        precision, recall = precision_recall(self.reference, features, k=NEIGHBOURS)
        density, coverage = density_coverage(self.reference, features, k=NEIGHBOURS)
        return {
            f"kid_{self.space}": kernel_distance(self.reference, features),
            f"fd_{self.space}": frechet_distance(self.reference, features),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
        }

    def real_features(self, images: Images) -> Features:
        """Features of images that will be asked for again: from the cache, or computed and kept there."""
        if self._cache is None or self._fingerprint is None:
            return self._extractor(images)
        digest = hashlib.sha256(repr(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()
        path = self._cache / f"{self._fingerprint}-{digest[:32]}.npy"
        try:
            kept: Features = np.load(path, allow_pickle=False)
            if kept.ndim == 2 and len(kept) == len(images):
                return kept
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or damaged: both are cured by computing it
        features = self._extractor(images)
        buffer = io.BytesIO()
        np.save(buffer, features, allow_pickle=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        return features

    def check(self, name: str, images: Images) -> None:
        """Raise ValueError unless there are `samples` images like the reference's; the text begins with `name`."""
        _check_images(name, images)
        if images.shape[1:] != self._images.shape[1:]:
            raise ValueError(
                f"{name}: images are {list(images.shape[1:])}, the reference's {list(self._images.shape[1:])}"
            )
        if len(images) < self.samples:
            raise ValueError(f"{name}: want at least {self.samples} images, got {len(images)}")


def draw(images: Images, count: int, seed: int = 0) -> Images:
    """`count` of the images without replacement, the same ones every time: sets often come sorted by class."""
    return images[np.random.RandomState(seed).permutation(len(images))[:count]]


def _check_images(name: str, images: Images) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"{name}: want uint8 [N, H, W, 1 or 3], got {images.dtype} {list(images.shape)}")
