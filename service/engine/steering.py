"""What a request asks of the latent space beyond a seed and a truncation: plain data, and how it is read.

    Steering.of(mix=[{"seed": 1, "weight": 0.7}, {"seed": 2, "weight": 0.3}], directions={"sefa_1": 2.0})

`of` takes the values that stand in the HTTP body; `fields` writes them again, in one canonical form. What a model can
do is another question: the pipelines hold a steering against it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from service.engine.latents import check_seed
from service.engine.wire import base64_of, latent_of, nearest
from service.errors import InvalidRequest

Floats = npt.NDArray[np.float32]

SpaceName = Literal["z", "w", "w+"]
SPACES: tuple[SpaceName, ...] = get_args(SpaceName)
Noise = Literal["constant", "random", "none"]
NOISES: tuple[Noise, ...] = get_args(Noise)

STRENGTH_MAX = 100.0
"""Of a direction, either way. Directions are about as long as a standard deviation: pictures fall apart far below."""
WEIGHT_MAX = 1000.0
PARTS_MOST = 64
"""Of one mix, sources of styles, and directions in one request."""
ALL_PARTS_MOST = 256
"""Of all mixes in one request: they are mixed on the event loop, at some 50 microseconds a part."""
LAYERS_END = 64
"""Layers are numbered below this; the largest StyleGANs have 18."""


@dataclass(frozen=True)
class Source:
    """One point: a seed, or a latent given outright.

    Args:
        seed: its z; None where `latent` is given.
        latent: [D] in z or w, [layers, D] (or as many numbers in a row) in w+.
        space: of `latent`.
        label: the class for this point alone; None takes the picture's.
    """

    seed: int | None = None
    latent: Floats | None = None
    space: SpaceName = "z"
    label: int | str | None = None

    def fields(self) -> dict[str, object]:
        """As the body writes it."""
        told: dict[str, object] = {"seed": self.seed} if self.latent is None else {"latent": base64_of(self.latent)}
        if self.latent is not None and self.space != "z":
            told["space"] = self.space
        return told if self.label is None else told | {"label": self.label}


Mix = tuple[tuple[Source, float], ...]
"""Sources and their weights."""


@dataclass(frozen=True)
class Layered:
    """Layers that get the styles of another source."""

    source: Source
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Push:
    """A step along a named direction, in all layers or in some."""

    name: str
    strength: float
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Steering:
    """See the module's docstring; what each part does stands in docs/api.md.

    Args:
        mixes: one for each picture, in place of seeds, count or latents.
        space: of the request's `latents`.
        truncation_cutoff: layers that are truncated, the first so many; None truncates all.
        noise: constant: that of seed 0; random: that of each picture's seed; none: zero.
        noise_seed: whose noise it is, where noise is random and no seed draws it.
        styles: layers that get other styles.
        directions: by name; those of strength 0 are left out.
    """

    mixes: tuple[Mix, ...] | None = None
    space: SpaceName = "z"
    truncation_cutoff: int | None = None
    noise: Noise = "constant"
    noise_seed: int | None = None
    styles: tuple[Layered, ...] = ()
    directions: tuple[Push, ...] = ()
    label_weights: tuple[tuple[int | str, float], ...] | None = field(default=None)
    """A mix of classes in place of a label."""

    @classmethod
    def of(
        cls, *, mix: object = None, space: object = None, truncation_cutoff: object = None, noise: object = None,
        noise_seed: object = None, styles: object = None, directions: object = None, label: object = None,
    ) -> Self:  # fmt: skip
        """Read the fields of a body.

        Args:
            label: a mapping from classes to weights; one class, or a list with one for each picture, is no steering.

        Raises:
            InvalidRequest: names the field, and in its detail the place.
        """
        return cls(
            None if mix is None else read_mixes(mix), "z" if space is None else read_space(space),
            None if truncation_cutoff is None else read_cutoff(truncation_cutoff),
            "constant" if noise is None else read_noise(noise),
            None if noise_seed is None else check_seed(noise_seed, field="noise_seed"),
            () if styles is None else read_styles(styles), () if directions is None else read_directions(directions),
            None if label is None else read_label_weights(label),
        )  # fmt: skip

    def fields(self) -> dict[str, object]:
        """What differs from a plain request, as the body writes it, but for `mix` and `space`: see `mix_fields`."""
        told: dict[str, object] = {}
        if self.label_weights is not None:
            told["label"] = {str(label): weight for label, weight in self.label_weights}
        if self.truncation_cutoff is not None:
            told["truncation_cutoff"] = self.truncation_cutoff
        if self.noise != "constant":
            told["noise"] = self.noise
        if self.noise_seed is not None:
            told["noise_seed"] = self.noise_seed
        if self.styles:
            told["styles"] = [one.source.fields() | {"layers": write_layers(one.layers)} for one in self.styles]
        if self.directions:
            told["directions"] = {
                one.name: one.strength
                if one.layers is None
                else {"strength": one.strength, "layers": write_layers(one.layers)}
                for one in self.directions
            }
        return told

    def __bool__(self) -> bool:
        """Whether anything is asked for that a plain request does not."""
        return self != Steering()


def mix_fields(mix: Mix) -> list[dict[str, object]]:
    """One mix as the body writes it."""
    return [source.fields() | {"weight": weight} for source, weight in mix]


def read_mixes(value: object) -> tuple[Mix, ...]:
    """One mix, or an array of them.

    Raises:
        InvalidRequest: field `mix`.
    """
    listed = _list(value, "mix", 'an array of parts such as {"seed": 1, "weight": 0.7}')
    if not isinstance(listed[0], (list, tuple)):
        return (_mix(listed, "mix"),)
    places = [f"mix[{place}]" for place in range(len(listed))]
    mixes = tuple(_mix(_list(one, at, "an array of parts"), at) for one, at in zip(listed, places, strict=True))
    if (parts := sum(map(len, mixes))) > ALL_PARTS_MOST:
        raise InvalidRequest(f"mix has {parts} parts in all, at most {ALL_PARTS_MOST} in one request", field="mix")
    return mixes


def _mix(parts: Sequence[object], where: str) -> Mix:
    if len(parts) > PARTS_MOST:
        raise InvalidRequest(f"{where} has {len(parts)} parts, at most {PARTS_MOST}", field="mix")
    mixed = []
    for place, part in enumerate(parts):
        here = f"{where}[{place}]"
        fields = _object(part, here, ("seed", "latent", "space", "label", "weight"), "mix")
        weight = _number(fields.get("weight", 1.0), f"{here}.weight", "mix", WEIGHT_MAX)
        mixed.append((read_source(fields, here, "mix"), weight))
    if math.fsum(weight for _, weight in mixed) < 1e-6:
        raise InvalidRequest(f"{where}: the weights' sum must be above 0", field="mix")
    return tuple(mixed)


def read_source(fields: Mapping[str, Any], where: str, top: str) -> Source:
    """A seed, or a latent with its space; and perhaps a label.

    Args:
        where: the place, for the detail.
        top: the body's field.

    Raises:
        InvalidRequest: field `top`.
    """
    seed, latent = fields.get("seed"), fields.get("latent")
    if (seed is None) == (latent is None):
        raise InvalidRequest(f"{where}: give either seed or latent", field=top)
    label = fields.get("label")
    if label is not None and (isinstance(label, bool) or not isinstance(label, (int, str))):
        raise InvalidRequest(f"{where}.label: must be a label's name or its index", field=top)
    if seed is not None:
        if fields.get("space") is not None:
            raise InvalidRequest(f"{where}.space: is that of a latent; a seed has none", field=top)
        try:
            return Source(check_seed(seed, field=f"{where}.seed"), label=label)
        except InvalidRequest as error:  # the place stands in the detail
            raise InvalidRequest(error.detail, field=top) from None
    space = _one_of(fields.get("space", "z"), f"{where}.space", SPACES, top)
    return Source(None, latent_of(latent, f"{where}.latent"), space, label)


def read_styles(value: object) -> tuple[Layered, ...]:
    """`[{"seed": 3, "layers": "0-3"}, ...]`, each layer at most once.

    Raises:
        InvalidRequest: field `styles`.
    """
    listed = _list(value, "styles", 'an array such as [{"seed": 3, "layers": "0-3"}]')
    if len(listed) > PARTS_MOST:
        raise InvalidRequest(f"styles has {len(listed)} entries, at most {PARTS_MOST}", field="styles")
    found: list[Layered] = []
    taken: dict[int, int] = {}
    for place, one in enumerate(listed):
        here = f"styles[{place}]"
        fields = _object(one, here, ("seed", "latent", "space", "label", "layers"), "styles")
        if fields.get("layers") is None:
            raise InvalidRequest(f'{here}.layers: is missing; such as "0-3"', field="styles")
        layers = read_layers(fields["layers"], f"{here}.layers", "styles")
        for layer in layers:
            if layer in taken:
                raise InvalidRequest(f"{here}.layers: layer {layer} is that of styles[{taken[layer]}]", field="styles")
            taken[layer] = place
        found.append(Layered(read_source(fields, here, "styles"), layers))
    return tuple(found)


def read_directions(value: object) -> tuple[Push, ...]:
    """`{"sefa_1": 2.0, "glasses": {"strength": 1, "layers": "0-3"}}`; sorted by name, without those of strength 0.

    Raises:
        InvalidRequest: field `directions`.
    """
    if not isinstance(value, Mapping):
        raise InvalidRequest('directions: must be an object such as {"sefa_1": 2.0}', field="directions")
    if len(value) > PARTS_MOST:
        raise InvalidRequest(f"directions has {len(value)} entries, at most {PARTS_MOST}", field="directions")
    found = []
    for name, asked in value.items():
        here, layers = f"directions.{str(name)[:60]}", None
        if isinstance(asked, Mapping):
            fields = _object(asked, here, ("strength", "layers"), "directions")
            asked = fields.get("strength")
            if fields.get("layers") is not None:
                layers = read_layers(fields["layers"], f"{here}.layers", "directions")
        strength = _number(asked, here, "directions", STRENGTH_MAX)
        found.append(Push(str(name), strength, layers))
    return tuple(sorted(found, key=lambda push: push.name))


def read_layers(value: object, where: str, top: str) -> tuple[int, ...]:
    """Layers as a number, an array of numbers, or a text such as `"0-3,6"`; in order, each once.

    Raises:
        InvalidRequest: field `top`.
    """
    wrong = InvalidRequest(f'{where}: must be layers such as "0-3,6", [0, 1] or 2, below {LAYERS_END}', field=top)
    found: list[int] = []
    if isinstance(value, str):
        for part in value.replace(" ", "").split(","):
            first, dash, last = part.partition("-")
            ends = (first, last) if dash else (first, first)
            if not all(end.isascii() and end.isdecimal() and len(end) <= 2 for end in ends):
                raise wrong
            if int(ends[0]) > int(ends[1]):
                raise InvalidRequest(f"{where}: has the range {part}, which runs backwards", field=top)
            found += range(int(ends[0]), int(ends[1]) + 1)
    else:
        listed: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in listed):
            raise wrong
        found += listed
    if not found or len(found) > LAYERS_END or min(found) < 0 or max(found) >= LAYERS_END:
        raise wrong
    return tuple(sorted(set(found)))


def write_layers(layers: Sequence[int]) -> str:
    """As `read_layers` reads them, the shortest way: `"0-3,6"`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_label_weights(value: object) -> tuple[tuple[int | str, float], ...]:
    """`{"Sneaker": 0.7, "Bag": 0.3}`: classes and their weights, none below 0.

    Raises:
        InvalidRequest: field `label`.
    """
    if not isinstance(value, Mapping) or not 1 <= len(value) <= PARTS_MOST:
        raise InvalidRequest(
            'label: must be a class, or a mix of them such as {"Bag": 0.7, "Coat": 0.3}', field="label"
        )
    found = [(one, _number(weight, f"label.{str(one)[:60]}", "label", WEIGHT_MAX)) for one, weight in value.items()]
    if min(weight for _, weight in found) < 0 or math.fsum(weight for _, weight in found) < 1e-6:
        raise InvalidRequest("label: weights must not be below 0, and their sum above it", field="label")
    return tuple(found)


def read_cutoff(value: object) -> int:
    """How many layers are truncated.

    Raises:
        InvalidRequest: field `truncation_cutoff`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LAYERS_END:
        detail = f"truncation_cutoff: must be a whole number of layers from 0 to {LAYERS_END}"
        raise InvalidRequest(detail, field="truncation_cutoff")
    return value


def read_space(value: object) -> SpaceName:
    """Of the request's latents.

    Raises:
        InvalidRequest: field `space`.
    """
    space: SpaceName = _one_of(value, "space", SPACES, "space")
    return space


def read_noise(value: object) -> Noise:
    """A noise mode.

    Raises:
        InvalidRequest: field `noise`.
    """
    noise: Noise = _one_of(value, "noise", NOISES, "noise")
    return noise


def _one_of(value: object, where: str, allowed: Sequence[Any], top: str) -> Any:
    if value not in allowed:
        raise InvalidRequest(f"{where}: must be one of {', '.join(allowed)}", field=top, allowed=list(allowed))
    return value


def _number(value: object, where: str, top: str, most: float) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not -most <= value <= most:  # type: ignore[operator]  # NaN compares false
        raise InvalidRequest(f"{where}: must be a finite number from {-most:g} to {most:g}", field=top)
    return float(value) + 0.0  # type: ignore[arg-type]  # -0.0 is the same request as 0


def _list(value: object, where: str, right: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidRequest(f"{where}: must be {right}", field=where.partition("[")[0])
    return value


def _object(value: object, where: str, known: Sequence[str], top: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where}: must be an object with {', '.join(known)}", field=top)
    for name in value:
        if name not in known:
            raise InvalidRequest(
                f"{where} has the unknown field {str(name)[:60]!r}; {nearest(str(name), known)}", field=top
            )
    return {name: given for name, given in value.items() if given is not None}  # null is absent, as everywhere
