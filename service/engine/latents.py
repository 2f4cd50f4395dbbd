"""Seeds to latents: the seed promise, as pure NumPy.

A seed means one picture: `z` depends on the seed and the latent's length alone, and a class that the caller leaves open
depends on the seed and the number of classes alone. Neither depends on the batch, its order or the machine.
`RandomState` is the generator whose stream NumPy has frozen (NEP 19); StyleGAN's own scripts draw from it too.
Test vectors: docs/manifest.md and tests/service/engine/test_latents.py.
"""

import hashlib
import math
import operator
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import InvalidRequest

SEED_END = 2**32
"""Seeds are 0 <= seed < SEED_END: what `RandomState` takes as one integer."""

LATENT_MOST = 1e6
"""No number of a latent that is given may lie further from 0: much further off norms overflow float32, and pictures are
black or those of another latent. Where generators are trained, hardly any lies beyond 5."""

TRUNCATION_MAX = 2.0
"""Beyond two the latents lie where no generator was trained, and the pictures fall apart."""


_streams = threading.local()


def _stream() -> np.random.RandomState:
    """This thread's generator, to be seeded anew: 10 µs a row, where making a `RandomState` takes 400."""
    if not hasattr(_streams, "stream"):
        _streams.stream = np.random.RandomState(0)
    stream: np.random.RandomState = _streams.stream
    return stream


def check_seed(seed: object, *, field: str = "seed") -> int:
    """The seed as a plain int.

    Raises:
        InvalidRequest: not a whole number, or outside 0 <= seed < 2**32; names `field`.
    """
    if type(seed) is int and 0 <= seed < SEED_END:  # as nearly all are
        return seed
    if isinstance(seed, (bool, np.bool_)):
        raise InvalidRequest(f"{field}: {seed!r} is not a whole number", field=field)
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidRequest(f"{field}: {seed!r} is not a whole number", field=field) from None
    if not 0 <= value < SEED_END:
        raise InvalidRequest(f"{field}: {value} is outside 0 to {SEED_END - 1}", field=field)
    return value


def check_truncation(truncation: object, *, field: str = "truncation") -> float:
    """The truncation as a float in [0, 2].

    Raises:
        InvalidRequest: not a finite number, or outside the range; names `field`.
    """
    if type(truncation) is float and 0.0 <= truncation <= TRUNCATION_MAX:  # as nearly all are
        return truncation
    number = isinstance(truncation, (int, float, np.integer, np.floating)) and not isinstance(truncation, bool)
    if number and 0.0 <= truncation <= TRUNCATION_MAX:  # type: ignore[operator]
        return float(truncation)  # type: ignore[arg-type]
    if number and (isinstance(truncation, int) or math.isfinite(truncation)):  # type: ignore[arg-type]
        shown = truncation if abs(truncation) < 1e6 else "the number"  # type: ignore[arg-type]
        raise InvalidRequest(f"{field}: {shown} is outside 0 to {TRUNCATION_MAX:g}", field=field)
    raise InvalidRequest(f"{field}: {truncation!r} is not a finite number", field=field)


def latents_from_seeds(seeds: Sequence[int], latent_dim: int) -> npt.NDArray[np.float32]:
    """One standard normal row per seed: `RandomState(seed).randn(latent_dim)`, rounded to float32.

    Args:
        seeds: N whole numbers, 0 <= seed < 2**32.
        latent_dim: D, at least 1.

    Returns:
        [N, D] float32.

    Raises:
        InvalidRequest: a seed is not a whole number in range (field `seeds`), or latent_dim is below 1.
    """
    if latent_dim < 1:
        raise InvalidRequest(f"latent_dim: {latent_dim} is below 1", field="latent_dim")
    return latents_of([check_seed(seed, field="seeds") for seed in seeds], latent_dim)


def latents_of(seeds: Sequence[int], latent_dim: int) -> npt.NDArray[np.float32]:
    """As `latents_from_seeds`, of seeds from `check_seed` and a length of at least 1."""
    stream = _stream()
    seed_anew, draw = stream.seed, stream.randn
    if len(seeds) == 1:
        seed_anew(seeds[0])
        return draw(1, latent_dim).astype(np.float32)
    z = np.empty((len(seeds), latent_dim), np.float32)
    for row, seed in enumerate(seeds):
        seed_anew(seed)
        z[row] = draw(latent_dim)
    return z


def noise_from_seeds(seeds: Sequence[int], latent_dim: int, noise_dim: int) -> npt.NDArray[np.float32]:
    """Per-pixel noise of seeds: the numbers that follow z in the seed's stream, rounded to float32.

    Args:
        seeds: N whole numbers, 0 <= seed < 2**32. Constant noise is that of seed 0.
        latent_dim: D, numbers of z that come before.
        noise_dim: numbers of noise, those of the first layer first, each layer's plane row by row.

    Returns:
        [N, noise_dim] float32.

    Raises:
        InvalidRequest: a seed is not a whole number in range; field `seeds`.
    """
    noise = np.empty((len(seeds), noise_dim), np.float32)
    stream = _stream()
    for row, seed in enumerate(seeds):
        stream.seed(check_seed(seed, field="seeds"))
        stream.randn(latent_dim)
        noise[row] = stream.randn(noise_dim)
    return noise


def check_latents(latents: npt.ArrayLike, latent_dim: int, *, field: str = "latents") -> npt.NDArray[np.float32]:
    """Latents that a caller gives outright, as [N, D] float32; one flat row of D numbers is taken as N = 1.

    Raises:
        InvalidRequest: not numbers, not rows of length D, empty, or beyond `LATENT_MOST`; names `field`.
    """
    try:
        given: npt.NDArray[Any] = np.asarray(latents)
    except ValueError:  # rows of different lengths
        raise InvalidRequest(f"{field}: every row must have {latent_dim} numbers", field=field) from None
    if given.dtype.kind not in "iuf":
        raise InvalidRequest(f"{field}: must be rows of {latent_dim} numbers", field=field)
    if given.ndim == 1:
        given = given[np.newaxis]
    if given.ndim != 2 or given.shape[0] < 1 or given.shape[1] != latent_dim:
        shape = list(given.shape)
        raise InvalidRequest(f"{field}: shape {shape} given, must be rows of {latent_dim} numbers", field=field)
    with np.errstate(over="ignore"):
        z = np.ascontiguousarray(given, np.float32)
    within = np.abs(z) <= LATENT_MOST  # NaN is not
    if not within.all():
        row = int(np.flatnonzero(~within.all(axis=1))[0])
        detail = f"{field}: row {row} holds a number that is not between -{LATENT_MOST:g} and {LATENT_MOST:g}"
        raise InvalidRequest(detail, field=field)
    return z


def truncate(z: npt.NDArray[np.float32], truncation: float) -> npt.NDArray[np.float32]:
    """Pull latents towards the mean, for models without w space: z times the truncation.

    1 leaves z untouched, 0 gives every row the mean picture; in between, less variety for more typical pictures.
    """
    return z if truncation == 1.0 else z * np.float32(truncation)


def labels_from_seeds(seeds: Sequence[int], classes: int) -> npt.NDArray[np.int64]:
    """The class of each seed where the caller names none: uniform, and independent of the seed's z.

    The first eight bytes of SHA-256 over the ASCII text `label:<seed>`, read as a big-endian integer, modulo the
    number of classes: reproducible in any language.

    Returns:
        [N] int64 in [0, classes).
    """
    digests = (hashlib.sha256(b"label:%d" % check_seed(seed, field="seeds")).digest() for seed in seeds)
    return np.array([int.from_bytes(digest[:8], "big") % classes for digest in digests], np.int64)
