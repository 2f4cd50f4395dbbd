"""Lanczos resampling in numpy, and colours for transparent pixels: what models do not do themselves.

Lanczos: Duchon, "Lanczos filtering in one and two dimensions", 1979; three lobes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

LOBES = 3
BLOCK_ROWS = 256
"""Rows of a full-size picture that are held as floats at once."""


def lanczos(distance: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The kernel: sinc(x) sinc(x / 3) within three pixels, 0 beyond."""
    return np.where(np.abs(distance) < LOBES, np.sinc(distance) * np.sinc(distance / LOBES), 0.0)


def resize(picture: Pixels, height: int, width: int) -> Pixels:
    """A picture [H, W, C] at another size: averaged down while it is four times too large, then Lanczos."""
    out = _along_rows(_along_rows(picture, height).swapaxes(0, 1), width).swapaxes(0, 1)
    return np.ascontiguousarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))


def _along_rows(picture: npt.NDArray[np.number], rows: int) -> Floats:
    count = len(picture)
    box = max(1, count // (4 * rows))
    cells = -(-count // box)
    reduced = np.empty((cells, *picture.shape[1:]), np.float32)
    for cell in range(cells):
        reduced[cell] = picture[cell * box : (cell + 1) * box].mean(axis=0, dtype=np.float32)
    ratio = count / box / rows
    centres = (np.arange(rows) + 0.5) * ratio - 0.5
    weights = lanczos((centres[:, None] - np.arange(cells)) / max(1.0, ratio))
    weights /= weights.sum(axis=1, keepdims=True)
    out = np.empty((rows, *picture.shape[1:]), np.float32)
    for row, line in enumerate(weights.astype(np.float32)):
        near = np.flatnonzero(line)
        first, stop = near[0], near[-1] + 1  # not all by `@`: its library's threads would spin beside the lanes
        np.einsum("k,k...->...", line[first:stop], reduced[first:stop], out=out[row])
    return out


def enlarge(plane: Pixels, scale: int, top: int, bottom: int) -> Pixels:
    """Rows `top` to `bottom` of a plane [H, W] at `scale` times its size; the same bits whatever the rows asked for."""
    places = (np.arange(top, bottom) + 0.5) / scale - 0.5
    base = np.floor(places).astype(np.int64)
    taps = np.arange(1 - LOBES, LOBES + 1)
    weights = lanczos(places[:, None] - (base[:, None] + taps))
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.zeros((bottom - top, plane.shape[1]), np.float32)
    for place, tap in enumerate(taps):
        given = plane[np.clip(base + tap, 0, len(plane) - 1)]
        rows += weights[:, place, None].astype(np.float32) * given
    return np.clip(np.rint(_enlarge_columns(rows, scale)), 0, 255).astype(np.uint8)


def _enlarge_columns(rows: Floats, scale: int) -> Floats:
    """One pass for each of the places that an output pixel may have between two input pixels."""
    width = rows.shape[1]
    padded = np.pad(rows, ((0, 0), (LOBES + 1, LOBES + 1)), mode="edge")
    out = np.empty((len(rows), width * scale), np.float32)
    for phase in range(scale):
        place = (phase + 0.5) / scale - 0.5
        base = int(np.floor(place))
        taps = np.arange(1 - LOBES, LOBES + 1)
        weights = lanczos(place - (base + taps))
        weights /= weights.sum()
        total = np.zeros_like(rows)
        for weight, tap in zip(weights.astype(np.float32), taps, strict=True):
            start = LOBES + 1 + base + int(tap)
            total += weight * padded[:, start : start + width]
        out[:, phase::scale] = total
    return out


def on_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    """A picture [H, W, 3] laid on white by its alpha [H, W]; rounded."""
    out = np.empty_like(rgb)
    for top in range(0, len(rgb), BLOCK_ROWS):
        part = slice(top, top + BLOCK_ROWS)
        opaque = alpha[part, :, None].astype(np.uint16)
        out[part] = (rgb[part] * opaque + 255 * (255 - opaque) + 127) // 255
    return out


def bleed(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Give fully transparent pixels the colours that are near them, so that no border shows what was hidden.

    A pyramid of premultiplied halves; each level divides by its alpha, and lends to the finer one where that has none.
    """
    if alpha.all() or not alpha.any():
        return rgb
    colour, opaque = _halved(rgb, alpha)
    levels = [(colour, opaque)]
    while not levels[-1][1].all() and max(levels[-1][1].shape) > 1:
        levels.append((_half(levels[-1][0]), _half(levels[-1][1])))
    colour, opaque = levels.pop()
    filled = colour / np.maximum(opaque, 1e-6)[:, :, None]
    while levels:
        colour, opaque = levels.pop()
        lent = filled.repeat(2, axis=0).repeat(2, axis=1)[: len(opaque), : opaque.shape[1]]
        filled = np.where(opaque[:, :, None] > 0, colour / np.maximum(opaque, 1e-6)[:, :, None], lent)
    out = rgb.copy()
    for top in range(0, len(rgb), BLOCK_ROWS):
        hidden = alpha[top : top + BLOCK_ROWS] == 0
        near = filled[top // 2 : top // 2 + BLOCK_ROWS // 2 + 1].repeat(2, axis=0).repeat(2, axis=1)
        near = near[: len(hidden), : hidden.shape[1]]
        out[top : top + BLOCK_ROWS][hidden] = np.clip(np.rint(near[hidden]), 0, 255).astype(np.uint8)
    return out


def _halved(rgb: Pixels, alpha: Pixels) -> tuple[Floats, Floats]:
    """The first half, block by block: the full size is never held as floats."""
    colours, opaques = [], []
    for top in range(0, len(rgb), BLOCK_ROWS):
        opaque = alpha[top : top + BLOCK_ROWS].astype(np.float32)
        colours.append(_half(rgb[top : top + BLOCK_ROWS] * opaque[:, :, None]))
        opaques.append(_half(opaque))
    return np.concatenate(colours), np.concatenate(opaques)


def _half(values: Floats) -> Floats:
    """Sums of two by two; the last row or column of an odd number counts alone."""
    edges = [(0, size % 2) for size in values.shape[:2]] + [(0, 0)] * (values.ndim - 2)
    even = np.pad(values, edges) if any(edge[1] for edge in edges) else values
    out: Floats = even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2]
    return out
