"""What request bodies have in common: the fields that several endpoints take, and how a body or a query is checked."""

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, PlainValidator, ValidationError, WithJsonSchema

from service.api import fields
from service.api.faults import raise_all
from service.api.strict_json import shown
from service.engine import steering
from service.engine.latents import TRUNCATION_MAX
from service.errors import InvalidRequest

Body = TypeVar("Body", bound=BaseModel)

UNKNOWN_TOLD = 8
"""Unknown fields named in one answer: a body may hold tens of thousands, and each is compared with every known name."""

_WHOLE, _NUMBER = re.compile(r"[0-9]{1,20}"), re.compile(r"[0-9.eE+-]{1,32}")

Model = Annotated[
    str,
    PlainValidator(fields.read_model),
    WithJsonSchema({"type": "string", "description": "Name of a loaded model, or `name@version`."}),
]
Seeds = Annotated[
    list[int] | None,
    PlainValidator(fields.read_seeds),
    WithJsonSchema(
        {
            "anyOf": [{"type": "array", "items": fields.SEED_SCHEMA, "minItems": 1}, {"type": "string"}],
            "description": 'One image each: `[0, 1]`, or ranges `"0,1,4-6"`.',
        }
    ),
]
Label = Annotated[
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
]
Truncation = Annotated[
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
]
Cutoff = Annotated[
    int | None,
    PlainValidator(steering.read_cutoff),
    WithJsonSchema({"type": "integer", "minimum": 0, "description": "So many layers are truncated."}),
]
Styles = Annotated[
    tuple[steering.Layered, ...] | None,
    PlainValidator(steering.read_styles),
    WithJsonSchema(fields.STYLES_SCHEMA),
]
Directions = Annotated[
    tuple[steering.Push, ...] | None,
    PlainValidator(steering.read_directions),
    WithJsonSchema(fields.DIRECTIONS_SCHEMA),
]
Noise = Annotated[
    str | None,
    PlainValidator(steering.read_noise),
    WithJsonSchema({"enum": list(steering.NOISES), "default": "constant", "description": "If it takes noise."}),
]
NoiseSeed = Annotated[
    int | None,
    PlainValidator(fields.read_noise_seed),
    WithJsonSchema(fields.SEED_SCHEMA | {"description": "Whose noise it is, where `noise` is random."}),
]


def parse(kind: type[Body], given: Mapping[str, Any], context: Mapping[str, int]) -> Body:
    """Check a body. A null field is an absent one.

    Args:
        kind: what it must be.
        context: limits, for the fields' checks.

    Raises:
        InvalidRequest: names the first wrong field; `Invalid.errors` has them all.
    """
    names = names_of(kind)
    strangers = islice((name for name in given if name not in names), UNKNOWN_TOLD)
    wrong = [unknown(name, names) for name in strangers]
    present = {name: given[name] for name in names if given.get(name) is not None}
    request = None
    try:
        request = kind.model_validate(present, context=dict(context))
    except ValidationError as error:
        wrong += _wrong(error)
    raise_all(wrong)
    assert request is not None  # else there was an error
    return request


def query_of(pairs: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, Any]:
    """A query's texts by name.

    Raises:
        InvalidRequest: a name is unknown, or given twice.
    """
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            raise unknown(name, known)
        if name in given:
            raise InvalidRequest(f"{name} is given more than once", field=name)
        given[name] = value
    return given


def typed(given: dict[str, Any]) -> dict[str, Any]:
    """A query's texts as JSON has them; what is no number stays a text, which the schema refuses by name."""
    for name in ("seed", "noise_seed", "truncation_cutoff", "frames", "fps"):
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
        if name in found:
            raise InvalidRequest(f"directions: {shown(name)} is given more than once", field="directions")
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
def names_of(kind: type[BaseModel]) -> list[str]:
    """The fields, as a body writes them."""
    return [field.alias or name for name, field in kind.model_fields.items()]


def unknown(name: str, known: Sequence[str]) -> InvalidRequest:
    """The error of a field that is none."""
    near = difflib.get_close_matches(name[:60].lower(), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    return InvalidRequest(f"unknown field {shown(name)}; {hint}", field=name[:60], allowed=list(known))
