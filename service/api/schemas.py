"""Every request and response body, and what each field accepts."""

import base64
import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from itertools import islice
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from service.api import fields
from service.api.faults import Invalid, pointer
from service.api.strict_json import shown
from service.engine import steering
from service.engine.latents import TRUNCATION_MAX
from service.engine.steering import Steering
from service.errors import InvalidRequest
from service.imaging import FORMATS

UNKNOWN_TOLD = 8
"""Unknown fields named in one answer: a body may hold tens of thousands, and each is compared with every known name."""

SHAPES = ("image", "json", "zip", "grid", "npy")
ENCODINGS = ("json", "base64", "npy")
"""How latents are written; see `service.engine.wire`."""


class GenerateRequest(BaseModel):
    """What to draw. At most one of `seed`, `seeds`, `count`, `latents`, `mix`; none of them draws one random seed."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Annotated[
        str,
        PlainValidator(fields.read_model),
        WithJsonSchema({"type": "string", "description": "Name of a loaded model, or `name@version`."}),
    ]
    seed: Annotated[
        int | None,
        PlainValidator(fields.read_seed),
        WithJsonSchema(fields.SEED_SCHEMA | {"description": "One image. The same seed is the same picture."}),
    ] = None
    seeds: Annotated[
        list[int] | None,
        PlainValidator(fields.read_seeds),
        WithJsonSchema(
            {
                "anyOf": [{"type": "array", "items": fields.SEED_SCHEMA, "minItems": 1}, {"type": "string"}],
                "description": 'One image each: `[0, 1]`, or ranges `"0,1,4-6"`.',
            }
        ),
    ] = None
    count: Annotated[
        int | None,
        PlainValidator(fields.read_count),
        WithJsonSchema({"type": "integer", "minimum": 1, "description": "So many images with random seeds, returned."}),
    ] = None
    mix: Annotated[
        tuple[steering.Mix, ...] | None,
        PlainValidator(steering.read_mixes),
        WithJsonSchema(fields.MIX_SCHEMA),
    ] = None
    space: Annotated[
        str | None,
        PlainValidator(steering.read_space),
        WithJsonSchema({"enum": list(steering.SPACES), "default": "z", "description": "Of `latents`."}),
    ] = None
    latents: Annotated[
        npt.NDArray[np.float32] | None,
        PlainValidator(fields.read_latents),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "array"}]}},
                    {"type": "string"},
                ],
                "description": "Latents outright: one array of `latent_dim` numbers, or one for each image; or base64 "
                "of little-endian float32 or npy.",
            }
        ),
    ] = None
    label: Annotated[
        int | str | list[int | str] | fields.Weights | None,
        PlainValidator(fields.read_label),
        WithJsonSchema(
            {
                "anyOf": [
                    *fields.LABEL_SCHEMA["anyOf"],
                    {"type": "array", "items": fields.LABEL_SCHEMA},
                    {"type": "object", "additionalProperties": {"type": "number"}},
                ],
                "description": "Class by name or index; an array gives one for each image, an object mixes by weight. "
                "Left out of a conditional model: a class drawn from each seed.",
            }
        ),
    ] = None
    truncation: Annotated[
        float,
        PlainValidator(fields.read_truncation),
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
    truncation_cutoff: Annotated[
        int | None,
        PlainValidator(steering.read_cutoff),
        WithJsonSchema({"type": "integer", "minimum": 0, "description": "So many layers are truncated."}),
    ] = None
    styles: Annotated[
        tuple[steering.Layered, ...] | None,
        PlainValidator(steering.read_styles),
        WithJsonSchema(fields.STYLES_SCHEMA),
    ] = None
    directions: Annotated[
        tuple[steering.Push, ...] | None,
        PlainValidator(steering.read_directions),
        WithJsonSchema(fields.DIRECTIONS_SCHEMA),
    ] = None
    noise: Annotated[
        str | None,
        PlainValidator(steering.read_noise),
        WithJsonSchema({"enum": list(steering.NOISES), "default": "constant", "description": "If it takes noise."}),
    ] = None
    noise_seed: Annotated[
        int | None,
        PlainValidator(fields.read_noise_seed),
        WithJsonSchema(fields.SEED_SCHEMA | {"description": "Whose noise it is, where `noise` is random."}),
    ] = None
    return_latents: Annotated[
        str | None,
        PlainValidator(fields.one_of("return_latents", ENCODINGS)),
        WithJsonSchema({"enum": list(ENCODINGS), "description": "Answer with the latents, too: as JSON or in a zip."}),
    ] = None
    format: Annotated[
        str | None,
        PlainValidator(fields.one_of("format", tuple(FORMATS))),
        WithJsonSchema({"enum": list(FORMATS), "description": "The pictures' format; goes before `Accept`."}),
    ] = None
    as_: Annotated[
        str | None,
        PlainValidator(fields.one_of("as", SHAPES)),
        WithJsonSchema({"enum": list(SHAPES), "description": "How the pictures come; goes before `Accept`."}),
    ] = Field(None, alias="as")

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        given = [name for name in ("seed", "seeds", "count", "latents", "mix") if getattr(self, name) is not None]
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
        if self.return_latents is not None and self.as_ in ("image", "grid"):
            detail = f"return_latents: as is '{self.as_}', which has no room for them"
            raise InvalidRequest(f"{detail}; use json, zip or npy", field="as", allowed=["json", "zip", "npy"])
        return self

    @property
    def images(self) -> int:
        """How many images are asked for."""
        if self.latents is not None:
            return len(self.latents)
        if self.mix is not None:
            return len(self.mix)
        return len(self.seeds) if self.seeds is not None else self.count or 1

    @property
    def reproducible(self) -> bool:
        """Whether the same request draws the same pictures again."""
        return any(given is not None for given in (self.seed, self.seeds, self.latents, self.mix))

    @property
    def shape(self) -> str | None:
        """`as`, or JSON where latents shall come along."""
        return "json" if self.as_ is None and self.return_latents is not None else self.as_

    @cached_property
    def steering(self) -> Steering | None:
        """All that goes beyond seed, label and truncation; None where nothing does."""
        asked = {
            "mixes": self.mix,
            "space": self.space,
            "truncation_cutoff": self.truncation_cutoff,
            "noise": self.noise,
            "noise_seed": self.noise_seed,
            "styles": self.styles,
            "directions": self.directions,
            "label_weights": self.label if isinstance(self.label, tuple) else None,
        }
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return Steering(**given) if given else None


def parse_generate(given: Mapping[str, Any], *, max_images: int) -> GenerateRequest:
    """Check a body. A null field is an absent one.

    Raises:
        InvalidRequest: names the first wrong field; `Invalid.errors` has them all.
    """
    names = _names()
    strangers = islice((name for name in given if name not in names), UNKNOWN_TOLD)
    wrong = [_unknown(name, names) for name in strangers]
    present = {name: given[name] for name in names if given.get(name) is not None}
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


QUERY_FIELDS = (
    "model", "seed", "label", "truncation", "truncation_cutoff", "directions", "noise", "noise_seed", "format",
)  # fmt: skip
_WHOLE, _NUMBER = re.compile(r"[0-9]{1,20}"), re.compile(r"[0-9.eE+-]{1,32}")


def parse_query(pairs: Sequence[tuple[str, str]]) -> GenerateRequest:
    """Check the query of `GET /generate`: one seeded image.

    Args:
        pairs: decoded names and values.

    Raises:
        InvalidRequest: names the first wrong parameter.
    """
    given = _query(pairs, QUERY_FIELDS)
    for name in ("model", "seed"):
        if name not in given:
            raise InvalidRequest(f"{name} is missing", field=name)
    return parse_generate(_typed(given), max_images=1)


def parse_npy(data: bytes, pairs: Sequence[tuple[str, str]], *, max_images: int) -> GenerateRequest:
    """Check a body of latents as an npy file, with the other fields in the query.

    Raises:
        InvalidRequest: names the first wrong field.
    """
    text = base64.b64encode(data).decode("ascii")
    query = (*(name for name in QUERY_FIELDS if name != "seed"), "space", "as", "return_latents")
    return parse_generate({**_typed(_query(pairs, query)), "latents": text}, max_images=max_images)


def _query(pairs: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            raise _unknown(name, known)
        if name in given:
            raise InvalidRequest(f"{name} is given more than once", field=name)
        given[name] = value
    return given


def _typed(given: dict[str, Any]) -> dict[str, Any]:
    """A query's texts as JSON has them; what is no number stays a text, which the schema refuses by name."""
    for name in ("seed", "noise_seed", "truncation_cutoff"):
        if _WHOLE.fullmatch(given.get(name, "")):
            given[name] = int(given[name])
    if _NUMBER.fullmatch(given.get("truncation", "")):
        with suppress(ValueError):
            given["truncation"] = float(given["truncation"])
    if "directions" in given:
        given["directions"] = _named_numbers(given["directions"])
    return given


def _named_numbers(text: str) -> dict[str, Any]:
    """`sefa_1:2,glasses:-0.5`."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        found[name] = number
        if _NUMBER.fullmatch(number):
            with suppress(ValueError):
                found[name] = float(number)
    return found


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
