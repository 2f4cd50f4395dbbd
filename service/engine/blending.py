"""Points between latents: weighted mixes and paths through key frames, as pure NumPy.

Everything is computed row by row in double precision and rounded once, so that a result depends on its own arguments
alone. Sums are exact (`math.fsum`), and so the same on every processor. What is asked to be one of the given points
(a mix of one, a path at a key frame) is that point, bit for bit.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from service.errors import InvalidRequest

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

Method = Literal["linear", "spherical", "cubic"]
METHODS: tuple[Method, ...] = get_args(Method)

NEARLY = 1e-4
"""Radians: two vectors so close are joined by a straight line, and so close to opposite they have no shortest arc."""


def mix_normal(latents: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """A weighted sum of latents, brought to the weighted mean of their lengths.

    A plain mean of standard normal latents lies too near to the origin, where no generator was trained; with the length
    of its parts a mix is as typical as they are, and a mix of equal parts is the part itself.

    Args:
        latents: [D] each.
        weights: one each, finite; negative ones lead away from their latent.

    Returns:
        [D]; the latent itself where there is one.

    Raises:
        InvalidRequest: the parts cancel one another out; field `mix`.
    """
    if len(latents) == 1:
        return latents[0]
    total = _weighted(latents, weights)
    length, size = _length(total), math.fsum(abs(weight) for weight in weights)
    wanted = math.fsum(abs(weight) * _length(one) for one, weight in zip(latents, weights, strict=True)) / size
    if length <= NEARLY * wanted:
        raise InvalidRequest("mix: the parts cancel one another out", field="mix")
    return (total * (wanted / length)).astype(np.float32)


def mix_styles(styles: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """A weighted mean of w, which is made to be mixed so.

    Args:
        styles: equal shapes.
        weights: one each, finite; their sum is not zero.

    Returns:
        In the same shape; the styles themselves where there is one.
    """
    if len(styles) == 1:
        return styles[0]
    return (_weighted(styles, weights) / math.fsum(weights)).astype(np.float32)


def places(keys: int, frames: int, closed: bool) -> list[tuple[int, float]]:
    """Where each frame lies: the key frame before it, and how far it is on the way to the next, 0 to below 1.

    An open path begins at the first key frame and ends at the last; a closed one goes on to the first, which its last
    frame does not repeat. Worked out in whole numbers, so that what falls on a key frame has exactly 0.

    Args:
        keys: at least 2.
        frames: at least 2.
    """
    steps, parts = (keys, frames) if closed else (keys - 1, frames - 1)
    return [(frame * steps // parts, frame * steps % parts / parts) for frame in range(frames)]


def path(
    keys: Floats,
    frames: int,
    method: Method,
    *,
    closed: bool = False,
    centre: Floats | None = None,
    level: bool = False,
) -> Floats:
    """Points on a way through key frames, evenly spaced in time between each two.

    Args:
        keys: [K, D], or [K, layers, D] where each layer goes its own way; K at least 2.
        frames: at least 2.
        method: `linear`: straight lines. `spherical`: arcs around the centre, the distance from it going evenly from
            one key frame's to the next's (Shoemake 1985). `cubic`: a smooth curve through all of them (Catmull and Rom
            1974, uniform; beyond an open end it goes straight on).
        closed: go on from the last to the first.
        centre: [D], around which arcs are; the origin where it is not given.
        level: keep a curve's distance from the centre even, as arcs do: for latents whose length is typical.

    Returns:
        [frames, ...].

    Raises:
        InvalidRequest: two key frames lie opposite to one another, where no arc is the shortest; field `method`.
    """
    out = np.empty((frames, *keys.shape[1:]), np.float32)
    middle = np.zeros(keys.shape[-1]) if centre is None else centre.astype(np.float64)
    flat = keys.reshape(len(keys), -1, keys.shape[-1])
    for frame, (index, t) in enumerate(places(len(keys), frames, closed)):
        if t == 0.0:
            out[frame] = keys[index]
            continue
        four = _around(flat, index, closed) - middle  # [4, layers, D]
        if method == "linear" or (method == "cubic" and not level):  # number by number
            out[frame] = (_between(four, t, method, level, index) + middle).reshape(out[frame].shape)
            continue
        for layer in range(flat.shape[1]):
            point = _between(four[:, layer], t, method, level, index) + middle
            out[frame].reshape(-1, keys.shape[-1])[layer] = point
    return out


def _around(flat: Floats, index: int, closed: bool) -> Doubles:
    """The key frames before, at, behind and after a stretch; beyond an open end as far as the stretch is long."""
    count = len(flat)
    if closed:
        return flat[[(index + step) % count for step in (-1, 0, 1, 2)]].astype(np.float64)
    here, there = flat[index].astype(np.float64), flat[index + 1].astype(np.float64)
    before = flat[index - 1].astype(np.float64) if index else 2 * here - there
    after = flat[index + 2].astype(np.float64) if index + 2 < count else 2 * there - here
    return np.stack([before, here, there, after])


def _between(four: Doubles, t: float, method: Method, level: bool, index: int) -> Doubles:
    """One point, [D], on the stretch from four[1] to four[2]; seen from the centre."""
    before, here, there, after = four
    if method == "spherical":
        return _arc(here, there, t, index)
    if method == "linear":
        return np.asarray((1 - t) * here + t * there)
    curve = 0.5 * (
        2 * here
        + (there - before) * t
        + (2 * before - 5 * here + 4 * there - after) * t**2
        + (3 * (here - there) + after - before) * t**3
    )
    if not level:
        return np.asarray(curve)
    length = _length(curve)
    wanted = (1 - t) * _length(here) + t * _length(there)
    return np.asarray(curve * (wanted / length) if length > NEARLY * wanted else curve)


def _arc(here: Doubles, there: Doubles, t: float, index: int) -> Doubles:
    near, far = _length(here), _length(there)
    if near == 0.0 or far == 0.0:
        return (1 - t) * here + t * there
    one, two = here / near, there / far
    # Of a sum and a difference: the arc cosine of a product loses half of its digits near 0.
    angle = 2 * math.atan2(_length(one - two), _length(one + two))
    if angle < NEARLY:
        return (1 - t) * here + t * there
    if math.pi - angle < NEARLY:
        detail = f"method: key frames {index} and {index + 1} are opposite, no arc between them is the shortest"
        raise InvalidRequest(f"{detail}; linear has no such case", field="method", allowed=["linear", "cubic"])
    turned = (math.sin((1 - t) * angle) * one + math.sin(t * angle) * two) / math.sin(angle)
    return np.asarray(turned * ((1 - t) * near + t * far))


def _weighted(points: Sequence[Floats], weights: Sequence[float]) -> Doubles:
    total = np.zeros(points[0].shape, np.float64)
    for point, weight in zip(points, weights, strict=True):
        total += weight * point.astype(np.float64)
    return total


def _length(vector: npt.NDArray[np.floating]) -> float:
    return math.sqrt(math.fsum(np.square(vector, dtype=np.float64).ravel().tolist()))
