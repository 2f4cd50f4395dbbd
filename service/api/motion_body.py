"""What `/interpolate` takes: key frames, and how to go through them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

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
from service.engine.blending import METHODS
from service.engine.steering import Layered, Mix, Push, Steering
from service.engine.wire import nearest
from service.errors import InvalidRequest
from service.imaging import FORMATS
from service.imaging.animation import ANIMATIONS

SHAPES = ("animation", "grid", "zip", "stream", "ndjson")
MOTION_FORMATS = (*dict.fromkeys((*ANIMATIONS, *FORMATS)),)
KEY_FIELDS = (
    "seed", "latent", "space", "mix", "label", "truncation", "truncation_cutoff", "styles", "directions",
)  # fmt: skip
FPS, FPS_MOST = 24, 60
FRAMES = 60


class Key(BaseModel):
    """A key frame that was read. What is None is taken from the request."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    mix: Mix
    label: int | str | None = None
    label_weights: fields.Weights | None = None
    truncation: float | None = None
    truncation_cutoff: int | None = None
    styles: tuple[Layered, ...] | None = None
    directions: tuple[Push, ...] | None = None


def read_keys(value: object, info: ValidationInfo) -> list[Key]:
    """`[{"seed": 1}, {"latent": ..., "space": "w"}, {"mix": [...], "directions": {...}}]`."""
    if not isinstance(value, list) or not value:
        raise ValueError('keys: must be an array of key frames such as [{"seed": 1}, {"seed": 2}]')
    fields.check_count("keys", len(value), fields.most_images(info))
    return [_key(one, f"keys[{place}]") for place, one in enumerate(value)]


def _key(value: object, where: str) -> Key:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where}: must be an object with {', '.join(KEY_FIELDS)}", field="keys")
    for name in value:
        if name not in KEY_FIELDS:
            detail = f"{where} has the unknown field {str(name)[:60]!r}; {nearest(str(name), KEY_FIELDS)}"
            raise InvalidRequest(detail, field="keys", allowed=list(KEY_FIELDS))
    given = {name: one for name, one in value.items() if one is not None}
    try:
        return _read(given, where)
    except InvalidRequest as error:  # the place stands in the detail
        detail = error.detail if error.detail.startswith(where) else f"{where}: {error.detail}"
        raise InvalidRequest(detail, field="keys", allowed=error.allowed) from None
    except ValueError as error:
        raise InvalidRequest(f"{where}: {error}", field="keys") from None


def _read(given: Mapping[str, Any], where: str) -> Key:
    if "mix" in given:
        if given.keys() & {"seed", "latent", "space"}:
            raise InvalidRequest(f"{where}: give seed, latent or mix", field="keys")
        mixes = steering.read_mixes(given["mix"])
        if len(mixes) != 1:
            raise InvalidRequest(f"{where}.mix: one mix for a key frame, not {len(mixes)}", field="keys")
        mix = mixes[0]
    else:
        point = {name: given[name] for name in ("seed", "latent", "space") if name in given}
        mix = ((steering.read_source(point, where, "keys"), 1.0),)
    label = given.get("label")
    weights = steering.read_label_weights(label) if isinstance(label, Mapping) else None
    return Key(
        mix=mix,
        label=None if label is None or weights is not None else fields.one_label(label, "label"),
        label_weights=weights,
        truncation=fields.read_truncation(given["truncation"]) if "truncation" in given else None,
        truncation_cutoff=steering.read_cutoff(given["truncation_cutoff"]) if "truncation_cutoff" in given else None,
        styles=steering.read_styles(given["styles"]) if "styles" in given else None,
        directions=steering.read_directions(given["directions"]) if "directions" in given else None,
    )


def _whole(name: str, low: int, high: int | None) -> PlainValidator:
    return PlainValidator(lambda value: fields.whole(value, name, low, high))


def _read_loop(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("loop: must be true or false")
    return value


_KEY_SCHEMA = fields.schema_of_source(
    mix=fields.MIX_SCHEMA,
    truncation={"type": "number", "minimum": 0, "maximum": 2},
    truncation_cutoff={"type": "integer", "minimum": 0},
    styles=fields.STYLES_SCHEMA,
    directions=fields.DIRECTIONS_SCHEMA,
)


class InterpolateRequest(BaseModel):
    """Frames on a way through key frames: either `keys` or `seeds`, at least 2."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Model
    keys: Annotated[
        list[Key] | None,
        PlainValidator(read_keys),
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 2,
                "items": _KEY_SCHEMA,
                "description": "Key frames; each may have its own label, truncation, styles and directions.",
            }
        ),
    ] = None
    seeds: Seeds = None
    frames: Annotated[
        int,
        _whole("frames", 2, None),
        WithJsonSchema({"type": "integer", "minimum": 2, "default": FRAMES, "description": "How many, ends included."}),
    ] = FRAMES
    method: Annotated[
        str | None,
        PlainValidator(fields.one_of("method", METHODS)),
        WithJsonSchema({"enum": list(METHODS), "description": "By default linear in w, spherical in z."}),
    ] = None
    space: Annotated[
        str | None,
        PlainValidator(fields.one_of("space", ("z", "w"))),
        WithJsonSchema({"enum": ["z", "w"], "description": "Where the way lies; by default w where there is one."}),
    ] = None
    loop: Annotated[
        bool,
        PlainValidator(_read_loop),
        WithJsonSchema({"type": "boolean", "default": False, "description": "Whether the way returns to its start."}),
    ] = False
    fps: Annotated[
        int,
        _whole("fps", 1, FPS_MOST),
        WithJsonSchema(
            {"type": "integer", "minimum": 1, "maximum": FPS_MOST, "default": FPS, "description": "Frames a second."}
        ),
    ] = FPS
    label: Label = None
    truncation: Truncation = 1.0
    truncation_cutoff: Cutoff = None
    styles: Styles = None
    directions: Directions = None
    noise: Noise = None
    noise_seed: NoiseSeed = None
    format: Annotated[
        str | None,
        PlainValidator(fields.one_of("format", MOTION_FORMATS)),
        WithJsonSchema({"enum": list(MOTION_FORMATS), "description": "Of the animation or of each frame."}),
    ] = None
    as_: Annotated[
        str | None,
        PlainValidator(fields.one_of("as", SHAPES)),
        WithJsonSchema({"enum": list(SHAPES), "description": "How the frames come; goes before `Accept`."}),
    ] = Field(None, alias="as")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.keys is None) == (self.seeds is None):
            raise InvalidRequest("keys: give key frames, either as keys or as seeds", field="keys")
        if len(self.keys or self.seeds or ()) < 2:
            name = "keys" if self.keys is not None else "seeds"
            raise InvalidRequest(f"{name}: one key frame; a way needs 2 at least", field=name)
        if isinstance(self.label, list):
            raise InvalidRequest("label: one for all frames; key frames may have their own in keys", field="label")
        return self

    def key_frames(self) -> list[tuple[Mix, int | str | None, float, Steering]]:
        """For each key frame its mix, label, truncation and steering, with what it takes from the request."""
        keys = self.keys or [Key(mix=((steering.Source(seed), 1.0),)) for seed in self.seeds or ()]
        own, weights = (None, self.label) if isinstance(self.label, tuple) else (self.label, None)
        assert not isinstance(own, list)  # `_fits` has looked
        found = []
        for key in keys:
            labelled = key.label is not None or key.label_weights is not None
            found.append(
                (
                    key.mix,
                    key.label if labelled else own,
                    self.truncation if key.truncation is None else key.truncation,
                    Steering(
                        truncation_cutoff=_or(key.truncation_cutoff, self.truncation_cutoff),
                        noise=self.noise or "constant",  # type: ignore[arg-type]  # checked by the field
                        noise_seed=self.noise_seed,
                        styles=_or(key.styles, self.styles) or (),
                        directions=_or(key.directions, self.directions) or (),
                        label_weights=key.label_weights if labelled else weights,
                    ),
                )
            )
        return found

    def recipe(self) -> dict[str, object]:
        """The request in its own words, in one form whichever way it was written; without model and form."""
        keys = []
        for mix, label, truncation, steered in self.key_frames():
            own = {name: value for name, value in steered.fields().items() if name not in ("noise", "noise_seed")}
            single = len(mix) == 1 and mix[0][0].label is None
            point: dict[str, object] = dict(mix[0][0].fields()) if single else {"mix": steering.mix_fields(mix)}
            labelled = {} if label is None else {"label": label}
            keys.append(point | labelled | ({} if truncation == 1.0 else {"truncation": truncation}) | own)
        told: dict[str, object] = {"keys": keys, "frames": self.frames, "loop": self.loop, "fps": self.fps}
        if self.noise is not None:
            told["noise"] = self.noise
        return told if self.noise_seed is None else told | {"noise_seed": self.noise_seed}


def _or(own: Any, common: Any) -> Any:
    return common if own is None else own


def parse_interpolate(given: Mapping[str, Any], *, max_images: int) -> InterpolateRequest:
    """Check a body. A null field is an absent one.

    Raises:
        InvalidRequest: names the first wrong field; `Invalid.errors` has them all.
    """
    return parse(InterpolateRequest, given, {"max_images": max_images})


QUERY_FIELDS = (
    "model", "seeds", "frames", "method", "space", "loop", "fps", "label", "truncation", "truncation_cutoff",
    "directions", "noise", "noise_seed", "format", "as",
)  # fmt: skip


def parse_interpolate_query(pairs: Sequence[tuple[str, str]], *, max_images: int) -> InterpolateRequest:
    """Check the query of `GET /interpolate`.

    Raises:
        InvalidRequest: names the first wrong parameter.
    """
    given = typed(query_of(pairs, QUERY_FIELDS))
    if "seeds" not in given:
        raise InvalidRequest("seeds is missing: at least 2, such as 1,2", field="seeds")
    given["loop"] = {"true": True, "false": False}.get(given.get("loop", "false"), given.get("loop"))
    return parse_interpolate(given, max_images=max_images)
