"""Every request and response body, and what each field accepts."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from service.api.faults import Invalid, pointer
from service.api.strict_json import shown
from service.engine.latents import SEED_END, TRUNCATION_MAX
from service.errors import InvalidRequest, TooLarge
from service.imaging import FORMATS

UNKNOWN_TOLD = 8
"""Unknown fields named in one answer: a body may hold tens of thousands, and each is compared with every known name."""

SHAPES = ("image", "json", "zip", "grid")
_RANGES = re.compile(r"[0-9]{1,10}(-[0-9]{1,10})?(,[0-9]{1,10}(-[0-9]{1,10})?)*", re.ASCII)
_SEED_SCHEMA = {"type": "integer", "minimum": 0, "maximum": SEED_END - 1}
_LABEL_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}


def _whole(value: object, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}, must be a whole number from {low} to {high}")
    return value


def _model(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise ValueError(f"model is {shown(value)}, must be a name such as 'fashion-28' or 'fashion-28@1'")
    return value


def _seed(value: object) -> int:
    return _whole(value, "seed", 0, SEED_END - 1)


def _seeds(value: object, info: ValidationInfo) -> list[int]:
    most = int((info.context or {}).get("max_images", 4096))
    if isinstance(value, str):
        return _seed_ranges(value.replace(" ", ""), most)
    if not isinstance(value, list) or not value:
        raise ValueError(f'seeds is {shown(value)}, must be an array such as [0, 1] or a text such as "0,1,4-6"')
    _check_count("seeds", len(value), most)
    return [_whole(seed, f"seeds[{index}]", 0, SEED_END - 1) for index, seed in enumerate(value)]


def _seed_ranges(text: str, most: int) -> list[int]:
    if len(text) > 24 * most or not _RANGES.fullmatch(text):
        raise ValueError(f'seeds is {shown(text)}, must be numbers and ranges such as "0,1,4-6"')
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low = _whole(int(first), "a seed in seeds", 0, SEED_END - 1)
        high = _whole(int(last or first), "a seed in seeds", 0, SEED_END - 1)
        if high < low:
            raise ValueError(f"seeds has the range {part}, which runs backwards")
        _check_count("seeds", len(seeds) + high - low + 1, most)
        seeds.extend(range(low, high + 1))
    return seeds


def _count(value: object, info: ValidationInfo) -> int:
    most = int((info.context or {}).get("max_images", 4096))
    count = _whole(value, "count", 1, 2**31)
    _check_count("count", count, most)
    return count


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise TooLarge(f"{field} asks for {count} images, at most {most} in one request", field=field, allowed=[most])


def _label(value: object, info: ValidationInfo) -> int | str | list[int | str]:
    if isinstance(value, list):
        if not 1 <= len(value) <= int((info.context or {}).get("max_images", 4096)):
            raise ValueError(f"label is an array of {len(value)}, must have one label for each image")
        return [_one_label(label, f"label[{index}]") for index, label in enumerate(value)]
    return _one_label(value, "label")


def _one_label(value: object, name: str) -> int | str:
    if isinstance(value, str) and 1 <= len(value) <= 256:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    raise ValueError(f"{name} is {shown(value)}, must be a label's name or its index")


def _truncation(value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= TRUNCATION_MAX:  # type: ignore[operator]  # NaN compares false
        raise ValueError(f"truncation is {shown(value)}, must be a finite number from 0 to {TRUNCATION_MAX:g}")
    return abs(float(value))  # type: ignore[arg-type]  # -0.0 is the same request as 0


def _latents(value: object, info: ValidationInfo) -> npt.NDArray[np.float32]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"latents is {shown(value)}, must be an array of numbers, or one such array for each image")
    rows = value if isinstance(value[0], list) else [value]
    _check_count("latents", len(rows), int((info.context or {}).get("max_images", 4096)))
    length = len(rows[0])
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != length or not row:
            raise ValueError(f"latents[{index}] is not an array of {length} numbers like the first")
        if not set(map(type, row)) <= {int, float}:
            raise ValueError(f"latents[{index}] holds something that is no number")
    return _finite(rows)


def _finite(rows: list[list[float]]) -> npt.NDArray[np.float32]:
    most = float(np.finfo(np.float32).max)
    try:
        latents = np.array(rows, dtype=np.float64)
        if (np.abs(latents) <= most).all():  # NaN fails too
            return latents.astype(np.float32)
    except OverflowError:  # an integer such as 10**400
        pass
    places = ((index, place) for index, row in enumerate(rows) for place in range(len(row)))
    index, place = next((index, place) for index, place in places if not -most <= rows[index][place] <= most)
    raise ValueError(f"latents[{index}][{place}] is {shown(rows[index][place])}, must be finite in 32-bit floats")


def _one_of(name: str, allowed: Sequence[str]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidRequest(
                f"{name} is {shown(value)}, must be one of {', '.join(allowed)}", field=name, allowed=allowed
            )
        return value

    return check


class GenerateRequest(BaseModel):
    """What to draw. At most one of `seed`, `seeds`, `count` and `latents`; none of them draws one random seed."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Annotated[
        str,
        PlainValidator(_model),
        WithJsonSchema({"type": "string", "description": "Name of a loaded model, or `name@version`."}),
    ]
    seed: Annotated[
        int | None,
        PlainValidator(_seed),
        WithJsonSchema(_SEED_SCHEMA | {"description": "One image. The same seed is the same picture."}),
    ] = None
    seeds: Annotated[
        list[int] | None,
        PlainValidator(_seeds),
        WithJsonSchema(
            {
                "anyOf": [{"type": "array", "items": _SEED_SCHEMA, "minItems": 1}, {"type": "string"}],
                "description": 'One image each: `[0, 1]`, or ranges `"0,1,4-6"`.',
            }
        ),
    ] = None
    count: Annotated[
        int | None,
        PlainValidator(_count),
        WithJsonSchema({"type": "integer", "minimum": 1, "description": "So many images with random seeds, returned."}),
    ] = None
    latents: Annotated[
        npt.NDArray[np.float32] | None,
        PlainValidator(_latents),
        WithJsonSchema(
            {
                "type": "array",
                "items": {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]},
                "description": "Latents outright: one array of `latent_dim` numbers, or one for each image.",
            }
        ),
    ] = None
    label: Annotated[
        int | str | list[int | str] | None,
        PlainValidator(_label),
        WithJsonSchema(
            {
                "anyOf": [*_LABEL_SCHEMA["anyOf"], {"type": "array", "items": _LABEL_SCHEMA}],
                "description": "Class by name or index; an array gives one for each image. "
                "Left out of a conditional model: a class drawn from each seed.",
            }
        ),
    ] = None
    truncation: Annotated[
        float,
        PlainValidator(_truncation),
        WithJsonSchema(
            {
                "type": "number",
                "minimum": 0,
                "maximum": TRUNCATION_MAX,
                "default": 1.0,
                "description": "Below 1: more typical, less varied pictures.",
            }
        ),
    ] = 1.0
    format: Annotated[
        str | None,
        PlainValidator(_one_of("format", tuple(FORMATS))),
        WithJsonSchema({"enum": list(FORMATS), "description": "The pictures' format; goes before `Accept`."}),
    ] = None
    as_: Annotated[
        str | None,
        PlainValidator(_one_of("as", SHAPES)),
        WithJsonSchema({"enum": list(SHAPES), "description": "How the pictures come; goes before `Accept`."}),
    ] = Field(None, alias="as")

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        given = [name for name in ("seed", "seeds", "count", "latents") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidRequest(f"{' and '.join(given)} exclude each other: give one of them", field=given[1])
        if self.as_ == "image" and self.images > 1:
            others = [shape for shape in SHAPES if shape != "image"]
            raise InvalidRequest(
                f"as is 'image' for {self.images} images, must be one of {', '.join(others)}",
                field="as",
                allowed=others,
            )
        if isinstance(self.label, list) and len(self.label) != self.images:
            raise InvalidRequest(f"label has {len(self.label)} entries for {self.images} images", field="label")
        return self

    @property
    def images(self) -> int:
        """How many images are asked for."""
        if self.latents is not None:
            return len(self.latents)
        return len(self.seeds) if self.seeds is not None else self.count or 1

    @property
    def reproducible(self) -> bool:
        """Whether the same request draws the same pictures again."""
        return self.seed is not None or self.seeds is not None or self.latents is not None


def parse_generate(fields: Mapping[str, Any], *, max_images: int) -> GenerateRequest:
    """Check a body. A null field is an absent one.

    Raises:
        InvalidRequest: names the first wrong field; `Invalid.errors` has them all.
    """
    names = _names()
    strangers = islice((name for name in fields if name not in names), UNKNOWN_TOLD)
    wrong = [_unknown(name, names) for name in strangers]
    present = {name: fields[name] for name in names if fields.get(name) is not None}
    try:
        request = GenerateRequest.model_validate(present, context={"max_images": max_images})
    except ValidationError as error:
        wrong += _wrong(error)
    if not wrong:
        return request
    if len(wrong) == 1:
        raise wrong[0]
    told = [{"detail": one.detail, "pointer": pointer(one.field or "")} for one in wrong]
    raise Invalid(told, field=wrong[0].field, allowed=wrong[0].allowed)


QUERY_FIELDS = ("model", "seed", "label", "truncation", "format")


def parse_query(pairs: Sequence[tuple[str, str]]) -> GenerateRequest:
    """Check the query of `GET /generate`: one seeded image.

    Args:
        pairs: decoded names and values.

    Raises:
        InvalidRequest: names the first wrong parameter.
    """
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name not in QUERY_FIELDS:
            raise _unknown(name, QUERY_FIELDS)
        if name in fields:
            raise InvalidRequest(f"{name} is given more than once", field=name)
        fields[name] = value
    for name in ("model", "seed"):
        if name not in fields:
            raise InvalidRequest(f"{name} is missing", field=name)
    if re.fullmatch(r"[0-9]{1,20}", fields["seed"]):
        fields["seed"] = int(fields["seed"])
    if re.fullmatch(r"[0-9.eE+-]{1,32}", fields.get("truncation", "")):
        with suppress(ValueError):  # stays a text, which the schema refuses by name
            fields["truncation"] = float(fields["truncation"])
    return parse_generate(fields, max_images=1)


def _wrong(error: ValidationError) -> list[InvalidRequest]:
    """What pydantic found, as our own errors."""
    found = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])[:60]
        said = str(item.get("ctx", {}).get("error", item["msg"]))
        found.append(InvalidRequest(f"{name} is missing" if item["type"] == "missing" else said, field=name))
    return found


@cache
def _names() -> list[str]:
    return [field.alias or name for name, field in GenerateRequest.model_fields.items()]


def _unknown(name: str, known: Sequence[str]) -> InvalidRequest:
    near = difflib.get_close_matches(name[:60].lower(), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    return InvalidRequest(f"unknown field {shown(name)}; {hint}", field=name[:60], allowed=list(known))


class Problem(BaseModel):
    """An error, as RFC 9457 writes it."""

    type: str = Field(description="What kind of problem: `urn:ganymede:problem:<code>`.")
    title: str
    status: int
    detail: str = Field(description="One sentence for a person.")
    instance: str = Field(description="The request's path.")
    request_id: str
    field: str | None = Field(None, description="The wrong field, as the caller wrote it.")
    allowed: list[str | int] | None = Field(None, description="What would be right.")
    errors: list[dict[str, str]] | None = Field(None, description="Each wrong field: `detail` and `pointer`.")
    reason: str | None = Field(None, description="A short fixed word where the service refuses for now.")


class DrawnImage(BaseModel):
    """One picture of a JSON answer."""

    seed: int | None = Field(description="Null where latents were given.")
    label: str | None = Field(description="Null for an unconditional model.")
    media_type: str
    b64: str = Field(description="The file, base64.")


class GenerateResponse(BaseModel):
    """Several pictures as JSON."""

    model: str = Field(description="`name@version`")
    truncation: float
    images: list[DrawnImage]
    timings: dict[str, float] = Field(description="Seconds per stage: queue_s, run_s, encode_s; and batch_rows.")


class ImageShape(BaseModel):
    """A picture's size in pixels; a size is null where the model leaves it open."""

    height: int | None
    width: int | None
    channels: int | None


class ModelSummary(BaseModel):
    """A loaded model, as `GET /models` lists it."""

    name: str
    version: int
    ref: str = Field(description="`name@version`")
    tasks: list[str]
    family: str
    image: ImageShape
    labels: list[str] | None = Field(description="The classes in index order; null if unconditional.")
    latent_dim: int | None
    truncation: bool
    license: str
    paper: str
    state: str
    links: dict[str, str]


class ModelPage(ModelSummary):
    """A loaded model in full."""

    providers: list[str]
    provider_notes: list[str] = Field(
        description="Why no better provider runs it, and what was done for lack of memory."
    )
    plans: dict[str, dict[str, Any]] = Field(description="Lanes, threads and batch cap chosen here for each graph.")
    loaded_at: str
    manifest: dict[str, Any]


class ModelList(BaseModel):
    """All loaded models, those that are loaded when asked for, and the folders that failed verification with the
    reason."""

    models: list[ModelSummary]
    asleep: list[str]
    refused: dict[str, str]


class Health(BaseModel):
    """What `/livez` and `/readyz` say."""

    state: Literal["alive", "loading", "ready", "draining", "failed", "no-models"]
    models: list[str] | None = None
    refused: dict[str, str] | None = None
