"""What each field of a request accepts: JSON values in, checked values out. Every error names the field."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationInfo

from service.api.strict_json import shown
from service.engine.latents import LATENT_MOST, SEED_END, TRUNCATION_MAX
from service.engine.steering import read_label_weights
from service.engine.wire import from_text, numbers_of
from service.errors import InvalidRequest, TooLarge

Floats = npt.NDArray[np.float32]
Weights = tuple[tuple[int | str, float], ...]

_RANGES = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?(,[0-9]{1,20}(-[0-9]{1,20})?)*", re.ASCII)
SEED_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": SEED_END - 1}
LABEL_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}


def whole(value: object, name: str, low: int, high: int | None) -> int:
    """A whole number in a range; without `high` its end is looked at later."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if not number or not low <= value or (high is not None and value > high):  # type: ignore[operator]
        end = "" if high is None else f" to {high}"
        raise ValueError(f"{name} is {shown(value)}, must be a whole number from {low}{end}")
    return value  # type: ignore[return-value]


def read_model(value: object) -> str:
    """A model's name, whether it is loaded or not."""
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise ValueError(f"model is {shown(value)}, must be a name such as 'fashion-28' or 'fashion-28@1'")
    return value


def read_seed(value: object) -> int:
    """One seed."""
    return whole(value, "seed", 0, SEED_END - 1)


def read_seeds(value: object, info: ValidationInfo) -> list[int]:
    """Seeds as an array, or as numbers and ranges in a text."""
    most = most_images(info)
    if isinstance(value, str):
        return _seed_ranges(value.replace(" ", ""), most)
    if not isinstance(value, list) or not value:
        raise ValueError(f'seeds is {_told(value)}, must be an array such as [0, 1] or a text such as "0,1,4-6"')
    check_count("seeds", len(value), most)
    return [whole(seed, f"seeds[{index}]", 0, SEED_END - 1) for index, seed in enumerate(value)]


def _told(value: object) -> str:
    return "empty" if value == [] else shown(value)


def _seed_ranges(text: str, most: int) -> list[int]:
    if len(text) > 24 * most or not _RANGES.fullmatch(text):
        raise ValueError(f'seeds is {shown(text)}, must be numbers and ranges such as "0,1,4-6"')
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low = whole(int(first), "a seed in seeds", 0, SEED_END - 1)
        high = whole(int(last or first), "a seed in seeds", 0, SEED_END - 1)
        if high < low:
            raise ValueError(f"seeds has the range {part}, which runs backwards")
        check_count("seeds", len(seeds) + high - low + 1, most)
        seeds.extend(range(low, high + 1))
    return seeds


def read_count(value: object, info: ValidationInfo) -> int:
    """How many images with random seeds."""
    count = whole(value, "count", 1, None)
    check_count("count", count, most_images(info))
    return count


def most_images(info: ValidationInfo) -> int:
    """Images that one request may ask for."""
    return int((info.context or {}).get("max_images", 4096))


def check_count(field: str, count: int, most: int) -> None:
    """Hold a number of images against the limit."""
    if count > most:
        raise TooLarge(f"{field} asks for {count} images, at most {most} in one request", field=field, allowed=[most])


def read_label(value: object, info: ValidationInfo) -> int | str | list[int | str] | Weights:
    """A class, one for each image, or a mix of classes."""
    if isinstance(value, dict):
        return read_label_weights(value)
    if isinstance(value, list):
        if not 1 <= len(value) <= most_images(info):
            raise ValueError(f"label is an array of {len(value)}, must have one label for each image")
        return [one_label(label, f"label[{index}]") for index, label in enumerate(value)]
    return one_label(value, "label")


def one_label(value: object, name: str) -> int | str:
    """A class by name or index."""
    if isinstance(value, str) and 1 <= len(value) <= 256:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    raise ValueError(f"{name} is {shown(value)}, must be a label's name or its index")


def read_noise_seed(value: object) -> int:
    """One seed, of noise."""
    return whole(value, "noise_seed", 0, SEED_END - 1)


def read_truncation(value: object) -> float:
    """From 0 to 2."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= TRUNCATION_MAX:  # type: ignore[operator]  # NaN compares false
        raise ValueError(f"truncation is {shown(value)}, must be a finite number from 0 to {TRUNCATION_MAX:g}")
    return abs(float(value))  # type: ignore[arg-type]  # -0.0 is the same request as 0


def read_latents(value: object, info: ValidationInfo) -> Floats:
    """Latents outright: [N, numbers]; in w+ [N, layers, numbers], or [N, 1, numbers of all layers].

    JSON arrays of numbers; or texts, base64 of little-endian float32 (one latent each) or of npy.
    """
    layered = info.data.get("space") == "w+"
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        rows = _from_texts(value, layered)
    elif layered:
        rows = _layers_of(value)
    else:
        rows = _numbers_of(value, most_images(info))
    check_count("latents", len(rows), most_images(info))
    return rows


def _from_texts(value: str | list[object], layered: bool) -> Floats:
    """One text (base64 of one latent, or of an npy of all), or one for each image."""
    if isinstance(value, str):
        given = from_text(value, "latents")
        inner = 2 if layered else 1  # dimensions of one latent, as an npy has them
        if given.ndim == 1:
            return given.reshape((1, 1, -1) if layered else (1, -1))
        if given.ndim > inner + 1:
            raise ValueError(f"latents is an npy of {list(given.shape)}, must have {inner} or {inner + 1} dimensions")
        return given[None] if given.ndim == inner else given
    rows = []
    for place, text in enumerate(value):
        if not isinstance(text, str):
            raise ValueError(f"latents[{place}] is {shown(text)}, must be a text like the first")
        row = from_text(text, f"latents[{place}]")
        row = row[0] if row.ndim > 1 and len(row) == 1 else row
        rows.append(row.reshape(1, -1) if layered and row.ndim == 1 else row)
        if rows[-1].shape != rows[0].shape or rows[-1].ndim != (2 if layered else 1):
            raise ValueError(f"latents[{place}] has shape {list(row.shape)}, which is not that of one latent")
    return np.stack(rows)


def _layers_of(value: object) -> Floats:
    """JSON in w+: an array for each layer (one image), an array of such, or all layers' numbers in a row."""
    array = numbers_of(value, "latents")
    if array is None:
        raise ValueError(f"latents is {shown(value)}, must be in w+ an array for each layer, or such for each image")
    if array.ndim == 1:
        array = array[None]
    return array if array.ndim == 3 else array[None]


def _numbers_of(value: object, most: int) -> Floats:
    if not isinstance(value, list) or not value:
        raise ValueError(f"latents is {_told(value)}, must be an array of numbers, or one such array for each image")
    rows = value if isinstance(value[0], list) else [value]
    check_count("latents", len(rows), most)
    length = len(rows[0])
    if not length:
        raise ValueError("latents[0] is empty, must be an array of numbers")
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != length or not row:
            raise ValueError(f"latents[{index}] is not an array of {length} numbers like the first")
        if not set(map(type, row)) <= {int, float}:
            raise ValueError(f"latents[{index}] holds something that is no number")
    return _finite(rows)


def _finite(rows: list[list[float]]) -> Floats:
    most = LATENT_MOST
    try:
        latents = np.array(rows, dtype=np.float64)
        if (np.abs(latents) <= most).all():  # NaN fails too
            return latents.astype(np.float32)
    except OverflowError:  # an integer such as 10**400
        pass
    places = ((index, place) for index, row in enumerate(rows) for place in range(len(row)))
    index, place = next((index, place) for index, place in places if not -most <= rows[index][place] <= most)
    value = shown(rows[index][place])
    raise ValueError(f"latents[{index}][{place}] is {value}, must be between -{most:g} and {most:g}")


def one_of(name: str, allowed: Sequence[str]) -> Callable[[object], str]:
    """A check that a value is one of some words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidRequest(
                f"{name} is {shown(value)}, must be one of {', '.join(allowed)}", field=name, allowed=allowed
            )
        return value

    return check


def schema_of_layers() -> dict[str, Any]:
    """Layers, as JSON Schema tells them."""
    numbers = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    return {
        "anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}, numbers],
        "description": 'Such as "0-3,6".',
    }


def schema_of_source(**more: dict[str, Any]) -> dict[str, Any]:
    """A seed, or a latent and its space."""
    latent = {"anyOf": [{"type": "array", "items": {}}, {"type": "string"}]}
    space = {"enum": ["z", "w", "w+"], "default": "z"}
    known = {"seed": SEED_SCHEMA, "latent": latent, "space": space, "label": LABEL_SCHEMA, **more}
    return {"type": "object", "properties": known, "additionalProperties": False}


MIX_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "anyOf": [
            schema_of_source(weight={"type": "number", "default": 1}),
            {"type": "array", "items": schema_of_source(weight={"type": "number", "default": 1})},
        ]
    },
    "description": "One image of several points, by weight; an array of such arrays gives one image for each.",
}
STYLES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": schema_of_source(layers=schema_of_layers()),
    "description": "Layers that get the styles of other points.",
}
DIRECTIONS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            {"type": "number"},
            {"type": "object", "properties": {"strength": {"type": "number"}, "layers": schema_of_layers()}},
        ]
    },
    "description": "Named directions and how far to go along each.",
}
