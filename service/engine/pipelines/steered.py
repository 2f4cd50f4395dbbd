"""Requests that steer (mixes, latents in w, styles by layer, directions, noise): held against a model, and to rows.

The order is fixed: points are mixed (in z for plain models, in w where there are styles), layers get other styles, then
comes the truncation, then the directions. Each row is computed from its own request alone, in double precision, and
rounded once; what is asked to change nothing (weight 1, strength 0) leaves the bits as they are.
"""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from service.engine.blending import mix_normal, mix_styles
from service.engine.latents import LATENT_MOST, check_latents, latents_from_seeds, noise_from_seeds, truncate
from service.engine.loaded import LoadedModel
from service.engine.pipelines import styles
from service.engine.pipelines.classes import Classes
from service.engine.pipelines.rows import (
    Labels,
    Rows,
    Wiring,
    check_alone,
    check_number,
    check_truncated,
    drawn_seeds,
    labels_as_fed,
)
from service.engine.session import Array
from service.engine.steering import Mix, Push, Source, Steering, mix_fields
from service.engine.wire import base64_of, nearest
from service.errors import InvalidRequest, TooLarge
from service.manifest import GenerateSpec

Floats = npt.NDArray[np.float32]

NOISE_MOST = 1 << 22
"""Numbers of random noise in one request: drawn on the event loop, at some 20 nanoseconds each."""


def directions_of(model: LoadedModel) -> dict[str, Floats]:
    """A model's directions by name: those of the manifest, else SeFa's as they were numbered before it named them."""
    rows, spec = model.arrays.get("directions"), model.manifest.generate
    if rows is None or spec is None:
        return {}
    names = spec.directions or [f"sefa_{number}" for number in range(1, len(rows) + 1)]
    return dict(zip(names, rows, strict=True))


def settle(model: LoadedModel, wiring: Wiring, steering: Steering) -> Steering:
    """A steering that the model can follow, brought to its shortest form; false where nothing is left of it.

    Raises:
        InvalidRequest: names the field that asks for what the model has not.
    """
    space = None if wiring.styled is None else wiring.styled.space
    _check_space(model.ref, space, steering)
    if steering.noise != "constant" and (space is None or space.noise is None):
        raise InvalidRequest(f"noise: {model.ref} takes no noise", field="noise", allowed=["constant"])
    if steering.noise_seed is not None and steering.noise != "random":
        raise InvalidRequest("noise_seed: is for noise 'random' alone", field="noise_seed")
    known = directions_of(model)
    for push in steering.directions:
        if push.name not in known:
            hint = nearest(push.name, list(known)) if known else f"{model.ref} has none"
            detail = f"directions: {push.name[:60]!r} is unknown; {hint}"
            raise InvalidRequest(detail, field="directions", allowed=list(known))
        _check_layers(model.ref, space, push.layers or (), f"directions.{push.name}.layers", "directions")
    spec = model.manifest.generate
    if steering.label_weights is not None:
        if spec is None or spec.labels is None:
            raise InvalidRequest("label: this model has no classes", field="label")
        if space is None and wiring.classes is None:
            detail = f"label: {model.ref} takes one whole class; classes mix where there are styles, or class weights"
            raise InvalidRequest(detail, field="label", allowed=spec.labels)
    kept = tuple(push for push in steering.directions if push.strength != 0.0)
    mixes = None if steering.mixes is None else tuple(map(merged, steering.mixes))
    return replace(steering, directions=kept, mixes=mixes)


def _check_space(ref: str, space: styles.Space | None, steering: Steering) -> None:
    """What only a model with styles can do."""
    sources = [source for mix in steering.mixes or () for source, _ in mix]
    if space is not None:
        cutoff = steering.truncation_cutoff
        if cutoff is not None and cutoff > space.layers:
            detail = f"truncation_cutoff: {cutoff} layers; {ref} has {space.layers}"
            raise InvalidRequest(detail, field="truncation_cutoff")
        for place, one in enumerate(steering.styles):
            _check_layers(ref, space, one.layers, f"styles[{place}].layers", "styles")
        return
    for name in ("truncation_cutoff", "styles"):
        if getattr(steering, name) not in (None, ()):
            raise InvalidRequest(f"{name}: {ref} has no layers of styles", field=name)
    if steering.space != "z":
        raise InvalidRequest(f"space: {ref} has only z", field="space", allowed=["z"])
    if any(source.space != "z" for source in sources):
        raise InvalidRequest(f"mix: {ref} has only the space z", field="mix", allowed=["z"])
    if any(source.label is not None for source in sources):
        raise InvalidRequest(f"mix: parts of {ref} have no class of their own; give label", field="mix")


def _check_layers(ref: str, space: styles.Space | None, layers: Sequence[int], where: str, top: str) -> None:
    if not layers:
        return
    if space is None:
        raise InvalidRequest(f"{where}: {ref} has no layers of styles", field=top)
    if max(layers) >= space.layers:
        detail = f"{where}: layer {max(layers)}; {ref} has 0 to {space.layers - 1}"
        raise InvalidRequest(detail, field=top)


def merged(mix: Mix) -> Mix:
    """Equal parts as one, and none of weight 0: a mix of one is that one."""
    found: dict[Hashable, tuple[Source, float]] = {}
    for source, weight in mix:
        known = found.get(_identity(source))
        found[_identity(source)] = (source, weight if known is None else known[1] + weight)
    return tuple((source, weight) for source, weight in found.values() if weight != 0.0)


def _identity(source: Source) -> Hashable:
    given = None if source.latent is None else (source.latent.tobytes(), source.latent.shape, source.space)
    return (source.seed, given, source.label)


def prepare_steered(
    model: LoadedModel,
    wiring: Wiring,
    seeds: Sequence[int] | None,
    count: int | None,
    latents: npt.ArrayLike | None,
    labels: Labels,
    truncation: float,
    max_images: int,
    steering: Steering,
) -> Rows:
    """As `generate.prepare`, for a steering that `settle` has passed."""
    spec = model.manifest.generate
    assert spec is not None  # the caller has looked at `tasks`
    check_alone(seeds=seeds, count=count, latents=latents, mix=steering.mixes)
    if latents is None and steering.space != "z":
        raise InvalidRequest(f"space: {steering.space} is that of latents, and there are none", field="space")
    if latents is not None:
        mixes = _given(latents, steering, spec, wiring, max_images)
    elif steering.mixes is not None:
        check_number(len(steering.mixes), max_images, "mix")
        mixes = list(steering.mixes)
    else:
        mixes = [((Source(seed), 1.0),) for seed in drawn_seeds(seeds, count, max_images)]
    truncation = check_truncated(model, truncation)
    own = tuple(mix[0][0].seed if len(mix) == 1 and mix[0][0].label is None else None for mix in mixes)
    classes = Classes(spec, labels, steering, mixes, wiring.styled is not None)
    recipes = tuple(_recipe(mix, steering) for mix in mixes)
    if wiring.styled is None:
        inputs = _plain(model, wiring, spec, mixes, classes, truncation, steering)
        way = None
    else:
        inputs, way = {}, _styled(model, wiring.styled, spec, mixes, classes, truncation, steering)
    told = tuple(classes.name(place) for place in range(len(mixes)))
    chance = seeds is None and steering.mixes is None
    asked = ("drawn", len(mixes)) if chance and latents is None else None
    key = None if chance else (own, told, truncation, json.dumps(recipes))
    return Rows(inputs, own, told, truncation, key, way, recipes, asked)


def _given(
    latents: npt.ArrayLike, steering: Steering, spec: GenerateSpec, wiring: Wiring, max_images: int
) -> list[Mix]:
    """Latents of the request, each a mix of one."""
    space, styled = steering.space, wiring.styled
    if space == "w+" and styled is not None:
        layers, wide = styled.space.layers, len(styled.mean_w)
        try:
            array = np.asarray(latents, np.float32)
        except (TypeError, ValueError):
            array = np.empty(0, np.float32)
        flat = array.ndim <= 2 or array.shape[-2] == 1
        fits = array.shape[-2:] == (layers, wide) or (flat and array.shape[-1:] == (layers * wide,))
        if not fits or not 1 <= array.ndim <= 3:
            shape = list(array.shape[-2:] if array.ndim == 3 else array.shape)
            detail = (
                f"latents: shape {shape} given; a latent in w+ is {layers} rows of {wide} numbers, or one of"
                f" {layers * wide}: [[...]] for each image"
            )
            raise InvalidRequest(detail, field="latents")
        rows = check_latents(array.reshape(-1, layers * wide), layers * wide).reshape(-1, layers, wide)
    else:
        rows = check_latents(latents, spec.latent_dim if styled is None or space == "z" else len(styled.mean_w))
    check_number(len(rows), max_images, "latents")
    return [((Source(None, row, space), 1.0),) for row in rows]


def _recipe(mix: Mix, steering: Steering) -> dict[str, object]:
    """What it takes to ask for one image again, beyond seed, label and truncation."""
    told: dict[str, object] = {}
    if len(mix) > 1 or mix[0][0].label is not None:
        told["mix"] = mix_fields(mix)
    elif mix[0][0].latent is not None:
        told["latents"] = base64_of(mix[0][0].latent)
        if mix[0][0].space != "z":
            told["space"] = mix[0][0].space
    return told | steering.fields()


def _plain(
    model: LoadedModel, wiring: Wiring, spec: GenerateSpec, mixes: Sequence[Mix], classes: Classes,
    truncation: float, steering: Steering,
) -> dict[str, Array]:  # fmt: skip
    """Of a model without styles: all happens in z. What cannot be mixed, the class, is that of the first part."""
    z = np.stack([mix_normal([z_of(one, spec) for one, _ in mix], [weight for _, weight in mix]) for mix in mixes])
    z = truncate(z, truncation)
    if steering.directions:
        known = directions_of(model)
        z = _pushed(z, [(push, known[push.name]) for push in steering.directions])
    check_reach(z, steering, truncation)
    inputs: dict[str, Array] = {wiring.latent: z}
    if wiring.label is None:
        return inputs
    if (weights := classes.weights()) is not None and wiring.classes is not None:
        row = np.zeros(wiring.classes)
        for index, weight in weights:
            row[index] += weight
        return inputs | {wiring.label: np.repeat(row[None].astype(np.float32), len(mixes), axis=0)}
    firsts = [classes.of_image(place) for place in range(len(mixes))]
    return inputs | {wiring.label: labels_as_fed(wiring, np.array(firsts, np.int64))}


def check_reach(drawn: Floats, steering: Steering, truncation: float) -> None:
    """Hold what is drawn against `LATENT_MOST`, as what is given is: it could not be sent back.

    Raises:
        InvalidRequest: the field that led so far.
    """
    if np.abs(drawn).max(initial=0.0) <= LATENT_MOST:
        return
    field = "mix" if steering.mixes is not None else "directions" if steering.directions else "truncation"
    told = {"mix": "weights that nearly cancel one another out", "truncation": f"{truncation:g}"}.get(field, "the way")
    detail = f"{field}: {told}: leads to numbers beyond {LATENT_MOST:g}, where there are no pictures"
    raise InvalidRequest(detail, field=field)


def z_of(source: Source, spec: GenerateSpec, top: str = "mix") -> Floats:
    """A point's z, [D].

    Args:
        top: the body's field that the point stands in.

    Raises:
        InvalidRequest: the latent is of another length; field `top`.
    """
    if source.latent is None:
        assert source.seed is not None
        return latents_from_seeds([source.seed], spec.latent_dim).reshape(-1)
    if source.latent.shape != (spec.latent_dim,):
        shape = list(source.latent.shape)
        raise InvalidRequest(f"{top}: a latent of shape {shape}, must have {spec.latent_dim} numbers", field=top)
    return source.latent


def _pushed(points: Floats, vectors: Sequence[tuple[Push, Floats]]) -> Floats:
    """Points moved along directions, whose lengths count; rounded once."""
    total = sum(push.strength * direction.astype(np.float64) for push, direction in vectors)
    return np.asarray(points + total, np.float32)


@dataclass
class _Points:
    """The points that have to be mapped, each once, and what the images take of them."""

    spec: GenerateSpec
    styled: styles.Styles
    z: list[Floats] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)
    classes: list[int | None] = field(default_factory=list)
    known: dict[Hashable, int] = field(default_factory=dict)

    def take(self, source: Source, label: int | None, top: str) -> "int | Floats":
        """A point's place among those to be mapped; or the point, [D] or [layers, D], where it lies in w."""
        if source.latent is not None and source.space != "z":
            layers, wide = self.styled.space.layers, len(self.styled.mean_w)
            right = (wide,) if source.space == "w" else (layers, wide)
            given = source.latent.reshape(right) if source.latent.size == np.prod(right) else source.latent
            if given.shape != right:
                detail = f"{top}: a latent of shape {list(given.shape)}; in {source.space} it has {list(right)}"
                raise InvalidRequest(detail, field=top)
            return given
        key = (_identity(replace(source, label=None)), label)
        if key not in self.known:
            self.known[key] = len(self.z)
            self.z.append(z_of(source, self.spec, top))
            self.seeds.append(source.seed)
            self.classes.append(label)
        return self.known[key]

    def inputs(self) -> dict[str, Array]:
        """What the mapping is fed."""
        space = self.styled.space
        z = np.stack(self.z) if self.z else np.empty((0, self.spec.latent_dim), np.float32)
        labels = {} if space.label is None else {space.label: np.array(self.classes, np.int64)}
        return {space.z: z, **labels}


@dataclass(frozen=True)
class _Image:
    """What one image is assembled from: points and weights, and those of single layers."""

    parts: tuple["int | Floats", ...]
    weights: tuple[float, ...]
    layered: tuple[tuple["int | Floats", tuple[int, ...]], ...]


def _styled(
    model: LoadedModel, styled: styles.Styles, spec: GenerateSpec, mixes: Sequence[Mix], classes: Classes,
    truncation: float, steering: Steering,
) -> styles.Way:  # fmt: skip
    """Of a model with styles: all happens in w, layer by layer."""
    points, images = _Points(spec, styled), []
    mixed_classes = classes.weights()
    for place, mix in enumerate(mixes):
        parts: list[int | Floats] = []
        weights: list[float] = []
        for source, weight in mix:
            in_w = source.latent is not None and source.space != "z"
            if mixed_classes is not None and source.label is None and not in_w:
                for label, share in mixed_classes:
                    parts.append(points.take(source, label, "mix"))
                    weights.append(weight * share)
            else:
                parts.append(points.take(source, None if in_w else classes.of(place, source), "mix"))
                weights.append(weight)
        layered = []
        for one in steering.styles:
            in_w = one.source.latent is not None and one.source.space != "z"
            if mixed_classes is not None and one.source.label is None and not in_w:
                detail = "styles: each needs a label of its own where the picture's classes are mixed"
                raise InvalidRequest(detail, field="styles", allowed=spec.labels)
            own = None if in_w else classes.of(place, _labelled(one.source, mix, classes), "styles")
            layered.append((points.take(one.source, own, "styles"), one.layers))
        images.append(_Image(tuple(parts), tuple(weights), tuple(layered)))
    vectors = [(push, directions_of(model)[push.name]) for push in steering.directions]
    cutoff = steering.truncation_cutoff

    def assemble(w: Floats) -> Floats:
        drawn = _assembled(images, w, styled, truncation, cutoff, vectors)
        check_reach(drawn, steering, truncation)
        return drawn

    return styles.Way(points.inputs(), points.seeds, assemble, _noise(styled, spec, mixes, steering))


def _labelled(source: Source, mix: Mix, classes: Classes) -> Source:
    """A source of styles is of the picture's class, where it has none of its own: that of the first part."""
    if source.label is not None or classes.spec.labels is None:
        return source
    first = mix[0][0]
    return replace(source, label=first.label) if first.label is not None else replace(source, seed=first.seed)


def _assembled(
    images: Sequence[_Image], w: Floats, styled: styles.Styles, truncation: float, cutoff: int | None,
    vectors: Sequence[tuple[Push, Floats]],
) -> Floats:  # fmt: skip
    """From w [S, D] to styles [N, layers, D]."""
    layers, wide = styled.space.layers, len(styled.mean_w)
    out = np.empty((len(images), layers, wide), np.float32)

    def whole(part: "int | Floats") -> Floats:
        point = w[part] if isinstance(part, int) else part
        return np.broadcast_to(point, (layers, wide))

    for row, image in enumerate(images):
        out[row] = mix_styles([whole(part) for part in image.parts], image.weights)
        for part, chosen in image.layered:
            out[row, list(chosen)] = whole(part)[list(chosen)]
    end = layers if cutoff is None else cutoff
    flat = out[:, :end].reshape(-1, wide)
    out[:, :end] = styles.truncate_styles(flat, styled.mean_w, truncation).reshape(len(images), end, wide)
    for layer in range(layers):
        here = [(push, row) for push, row in vectors if push.layers is None or layer in push.layers]
        if here:
            out[:, layer] = _pushed(out[:, layer], here)
    return out


def _noise(styled: styles.Styles, spec: GenerateSpec, mixes: Sequence[Mix], steering: Steering) -> Floats | None:
    """[N, K]; None for the constant noise."""
    space = styled.space
    if steering.noise == "constant" or space.noise is None:
        return None
    if steering.noise == "none":
        return np.zeros((len(mixes), space.noise_dim), np.float32)
    if len(mixes) * space.noise_dim > NOISE_MOST:
        most = max(1, NOISE_MOST // space.noise_dim)
        detail = f"noise: random for {len(mixes)} images of this size; at most {most} in one request"
        raise TooLarge(detail, field="noise", allowed=[most])
    seeds = [mix[0][0].seed if steering.noise_seed is None else steering.noise_seed for mix in mixes]
    if None in seeds:
        raise InvalidRequest("noise_seed: needed for random noise where latents are given", field="noise_seed")
    return noise_from_seeds([seed for seed in seeds if seed is not None], spec.latent_dim, space.noise_dim)
