"""What `/generate` takes: its body, its query, and latents as the body."""

import base64
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from service.api import fields
from service.api.bodies import (
    Cutoff,
    Directions,
    Label,
    Model,
    Noise,
    NoiseSeed,
    Seeds,
    Styles,
    Truncation,
    parse,
    query_of,
    typed,
)
from service.engine import steering
from service.engine.steering import Steering
from service.errors import InvalidRequest
from service.imaging import FORMATS

SHAPES = ("image", "json", "zip", "grid", "npy")
ENCODINGS = ("json", "base64", "npy")
"""How latents are written; see `service.engine.wire`."""


class GenerateRequest(BaseModel):
    """What to draw. At most one of `seed`, `seeds`, `count`, `latents`, `mix`; none of them draws one random seed."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Model
    seed: Annotated[
        int | None,
        PlainValidator(fields.read_seed),
        WithJsonSchema(fields.SEED_SCHEMA | {"description": "One image. The same seed is the same picture."}),
    ] = None
    seeds: Seeds = None
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
    label: Label = None
    truncation: Truncation = 1.0
    truncation_cutoff: Cutoff = None
    styles: Styles = None
    directions: Directions = None
    noise: Noise = None
    noise_seed: NoiseSeed = None
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
        if self.as_ == "npy" and self.format is not None:
            raise InvalidRequest("format: as is 'npy', which holds latents and no pictures", field="format")
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
    return parse(GenerateRequest, given, {"max_images": max_images})


QUERY_FIELDS = (
    "model", "seed", "label", "truncation", "truncation_cutoff", "directions", "noise", "noise_seed", "format",
)  # fmt: skip


def parse_query(pairs: Sequence[tuple[str, str]]) -> GenerateRequest:
    """Check the query of `GET /generate`: one seeded image.

    Args:
        pairs: decoded names and values.

    Raises:
        InvalidRequest: names the first wrong parameter.
    """
    given = query_of(pairs, QUERY_FIELDS)
    for name in ("model", "seed"):
        if name not in given:
            raise InvalidRequest(f"{name} is missing", field=name)
    return parse_generate(typed(given), max_images=1)


def parse_npy(data: bytes, pairs: Sequence[tuple[str, str]], *, max_images: int) -> GenerateRequest:
    """Check a body of latents as an npy file, with the other fields in the query.

    Raises:
        InvalidRequest: names the first wrong field.
    """
    text = base64.b64encode(data).decode("ascii")
    query = (*(name for name in QUERY_FIELDS if name != "seed"), "space", "as", "return_latents")
    return parse_generate({**typed(query_of(pairs, query)), "latents": text}, max_images=max_images)
