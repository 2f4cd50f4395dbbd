"""From the engine's arrays to the response: image, JSON, zip or grid, with the headers that make it repeatable."""

import base64
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from service.api.negotiation import Form
from service.api.parts import Parts
from service.api.schemas import GenerateRequest
from service.engine.steering import mix_fields
from service.engine.wire import base64_of, npy_of
from service.imaging import (
    FORMATS,
    EncodeOptions,
    Provenance,
    compose_grid,
    encode,
    encode_pngs,
    encoder_version,
    plain_chunks,
)
from service.imaging.archive import stored_zip
from service.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from service.engine.engine import Generated, ModelInfo

SHAPES_WRITTEN = {"zip": "zip-3", "grid": "grid-2"}
"""Part of the ETag where a shape's bytes have changed for the same pictures."""

MARK_CHARACTERS = 32_000
"""Of a recipe in a file: EXIF in a JPEG ends at 64 kB. Longer ones, of the largest models' latents, are left out."""
HEADER_CHARACTERS = 4096
"""Of a recipe in a header: many clients and proxies take no more than 8 kB of all headers."""

INLINE_BYTES = 16 * 1024
"""One picture of up to so many raw bytes encodes in some 50 microseconds: less than handing it to a thread costs."""
INLINE_IMAGES = 8
"""So many that are as small together take a few hundred, for most of which they hold the interpreter in any thread."""


class Rendered(NamedTuple):
    """A response's body and the headers that belong to it."""

    body: bytes
    media_type: str
    headers: list[tuple[bytes, bytes]]


def is_small(drawn: "Generated") -> bool:
    """Whether the pictures are encoded where they are, on the event loop."""
    return len(drawn.images) <= INLINE_IMAGES and drawn.images.nbytes <= INLINE_BYTES


def render(
    drawn: "Generated", form: Form, options: EncodeOptions, *, marked: bool, latents: str | None = None
) -> Rendered:
    """The pictures in the chosen form. Called from a worker thread; deterministic except JSON, which holds timings.

    Args:
        marked: whether files say what they are and how to make them again.
        latents: how they are written in JSON and zip; None leaves them out.
    """
    headers = [(b"x-model", drawn.model.encode("ascii"))]
    if form.shape == "npy":
        body = npy_of(_latents(drawn))
        return Rendered(body, form.media_type, [*headers, *_seeds(drawn), (b"x-space", _space(drawn))])
    if form.shape == "grid":
        provenance = mark_of(asking_for(drawn) | {"as": "grid"}, drawn.model) if marked else None
        body = encode(compose_grid(drawn.images), form.fmt, provenance, options)
        return Rendered(body, form.media_type, [*headers, *_seeds(drawn)])
    started = perf_counter()
    files = _files(drawn, form.fmt, options, marked)
    if form.shape == "image":
        seed, label = drawn.seeds[0], drawn.labels[0]
        if seed is not None:
            headers.append((b"x-seed", b"%d" % seed))
        if label is not None:
            headers.append((b"x-label", header_text(label)))
        if drawn.recipes and drawn.recipes[0] and len(told := Provenance(_alone(drawn, 0)).text()) <= HEADER_CHARACTERS:
            headers.append((b"x-recipe", told.encode("ascii")))
        return Rendered(files[0], form.media_type, headers)
    if form.shape == "zip":
        body = _zip(drawn, files, form.fmt, latents)
        return Rendered(body, form.media_type, [*headers, *_seeds(drawn)])
    return Rendered(_json(drawn, files, form.fmt, perf_counter() - started, latents), form.media_type, headers)


@lru_cache(1024)
def header_text(text: str) -> bytes:
    """Text for a header: printable ASCII as it is, everything else and `%` percent-encoded UTF-8."""
    return quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="replace").encode("ascii")


def tag_base(parts: Parts, model: "ModelInfo", request: GenerateRequest, form: Form) -> str | None:
    """The hash of all but the seeds that a strong ETag names; None where the bytes depend on chance or timings."""
    if not request.reproducible or form.shape == "json":
        return None
    latents = request.latents
    names = [
        model.fingerprint,
        None if latents is None else [list(latents.shape), hashlib.sha256(latents.tobytes()).hexdigest()],
        canonical_label(model.manifest, request.label),
        request.truncation,
        [
            SHAPES_WRITTEN.get(form.shape, form.shape),
            form.fmt,
            encoder_version(form.fmt, parts.encode_options),
            parts.settings.provenance,
        ],
        onnxruntime_version(),
        processor(),
    ]
    if request.steering is not None:
        mixes = [mix_fields(mix) for mix in request.mix or ()]
        names.append(json.dumps([request.steering.fields(), mixes, request.space]))
    if request.return_latents is not None:
        names.append(request.return_latents)
    return hashlib.sha256(repr(names).encode()).hexdigest()[:32]


def entity_tag(base: str, seeds: Sequence[int] | None) -> str:
    """The ETag, which names everything that the bytes depend on: one seed outright, more by their hash.

    Args:
        base: from `tag_base`.
    """
    if seeds is not None and len(seeds) == 1:
        return f'"{base}-{seeds[0]:x}"'
    return f'"{hashlib.sha256(f"{base}{seeds}".encode()).hexdigest()[:32]}"'


def canonical_label(manifest: Manifest, label: object) -> object:
    """Labels by index where they are known, so that `Sneaker`, `sneaker`, `7` and 7 share one ETag."""
    if isinstance(label, list):
        return [canonical_label(manifest, one) for one in label]
    names = manifest.generate.labels if manifest.generate else None
    if isinstance(label, str) and names is not None:
        folded, text = [name.casefold() for name in names], label.strip().casefold()
        if text in folded:
            return folded.index(text)
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else label
    return label


@cache
def onnxruntime_version() -> str:
    """The installed ONNX Runtime, under whichever of its names."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return f"{name}-{version(name)}"
        except PackageNotFoundError:
            continue
    return "onnxruntime-unknown"


@cache
def processor() -> str:
    """The class of processor: the last bits of a float depend on its vector instructions."""
    flags: set[str] = set()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
            flags = next((set(line.split()) for line in info if line.startswith(("flags", "Features"))), set())
    except OSError:
        pass  # not Linux: the architecture alone
    vectors = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve") if name in flags]
    return "-".join([platform.machine(), *vectors])


def _files(drawn: "Generated", fmt: str, options: EncodeOptions, marked: bool) -> list[bytes]:
    """Each picture as a file."""
    if marked and fmt == "png" and drawn.recipes is None:
        model, truncation = drawn.model, drawn.truncation
        told = zip(drawn.seeds, drawn.labels, strict=True)
        return encode_pngs(drawn.images, [plain_chunks(model, seed, label, truncation) for seed, label in told])
    marks = [_mark(drawn, place) if marked else None for place in range(len(drawn.images))]
    return [encode(image, fmt, mark, options) for image, mark in zip(drawn.images, marks, strict=True)]


def _mark(drawn: "Generated", index: int) -> Provenance:
    return mark_of(_alone(drawn, index), drawn.model)


def _alone(drawn: "Generated", index: int) -> dict[str, object]:
    """What asks for one of the pictures again."""
    told: dict[str, object] = {"model": drawn.model, "seed": drawn.seeds[index]}
    if drawn.labels[index] is not None:
        told["label"] = drawn.labels[index]
    told["truncation"] = drawn.truncation
    return {**told, **drawn.recipes[index]} if drawn.recipes else told


def mark_of(recipe: dict[str, object], model: str) -> Provenance:
    """A recipe as a mark; one that is too long names the model alone, for less of it would ask for another picture."""
    mark = Provenance(recipe)
    return mark if len(mark.text()) <= MARK_CHARACTERS else Provenance({"model": model})


def asking_for(drawn: "Generated") -> dict[str, object]:
    """What asks for all of the pictures again, as one request.

    Pictures of seeds are asked for by `seeds`, those of latents by `latents`; where both are among them, or mixes, each
    is a mix, if only of one part.
    """
    told: dict[str, object] = {"model": drawn.model}
    own = drawn.recipes or tuple({} for _ in drawn.images)
    if any("mix" in recipe for recipe in own) or len({seed is None for seed in drawn.seeds}) > 1:
        told["mix"] = [_as_mix(seed, recipe) for seed, recipe in zip(drawn.seeds, own, strict=True)]
    elif "latents" in own[0]:
        told |= {"latents": [recipe["latents"] for recipe in own]} | _where(own[0])
    else:
        told["seeds"] = list(drawn.seeds)
    told |= {name: value for name, value in own[0].items() if name not in ("mix", "latents", "space")}
    if all(label is not None for label in drawn.labels):  # else they are those of the seeds and parts
        told["label"] = list(drawn.labels)
    return told | {"truncation": drawn.truncation}


def _as_mix(seed: int | None, recipe: Mapping[str, object]) -> object:
    if "mix" in recipe:
        return recipe["mix"]
    if seed is not None:
        return [{"seed": seed}]
    return [{"latent": recipe["latents"]} | _where(recipe)]


def _where(recipe: Mapping[str, object]) -> dict[str, object]:
    """The space that a recipe's latents lie in, where it says one."""
    return {"space": recipe["space"]} if "space" in recipe else {}


def _latents(drawn: "Generated") -> "npt.NDArray[np.float32]":
    assert drawn.latents is not None  # every engine tells what it drew
    return drawn.latents


def _space(drawn: "Generated") -> bytes:
    return b"z" if _latents(drawn).ndim == 2 else b"w+"


def written(latent: "npt.NDArray[np.float32]", how: str) -> object:
    """One latent, [D] or [layers, D], as a JSON value that `latents` accepts."""
    if how == "json":
        return latent.tolist()
    return base64_of(latent) if how == "base64" else base64.b64encode(npy_of(latent)).decode("ascii")


def _seeds(drawn: "Generated") -> list[tuple[bytes, bytes]]:
    """`X-Seeds`, where the pictures are of seeds."""
    if all(seed is None for seed in drawn.seeds):
        return []
    return [(b"x-seeds", ",".join("" if seed is None else str(seed) for seed in drawn.seeds).encode("ascii"))]


def _json(drawn: "Generated", files: list[bytes], fmt: str, encode_s: float, latents: str | None) -> bytes:
    images: list[dict[str, object]] = [
        {"seed": seed, "label": label, "media_type": FORMATS[fmt], "b64": base64.b64encode(file).decode("ascii")}
        for seed, label, file in zip(drawn.seeds, drawn.labels, files, strict=True)
    ]
    for image, recipe in zip(images, drawn.recipes or (), strict=False):
        image |= recipe
    for image, latent in zip(images, _latents(drawn) if latents else (), strict=False):
        image["latent"] = written(latent, latents or "")
    timings = {"queue_s": drawn.timings.queue_s, "run_s": drawn.timings.run_s, "encode_s": encode_s}
    timings["batch_rows"] = drawn.timings.batch_rows
    body: dict[str, object] = {"model": drawn.model, "truncation": drawn.truncation}
    body |= {"space": _space(drawn).decode("ascii")} if latents else {}
    body |= {"images": images, "timings": timings}
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def _zip(drawn: "Generated", files: list[bytes], fmt: str, latents: str | None) -> bytes:
    """The pictures under their seeds, `latents.npy` where it is asked for, and `images.json`, which lists them."""
    taken: dict[str, int] = {}
    named: list[tuple[str, bytes]] = []
    index: list[str] = []
    for place, file in enumerate(files):
        seed, label = drawn.seeds[place], drawn.labels[place]
        recipe = {} if drawn.recipes is None else drawn.recipes[place]
        stem = f"{'mix' if 'mix' in recipe else 'latent'}-{place}" if seed is None else f"seed-{seed}"
        taken[stem] = taken.get(stem, 0) + 1
        name = f"{stem}.{fmt}" if taken[stem] == 1 else f"{stem}-{taken[stem]}.{fmt}"
        named.append((name, file))
        index.append(_listed(name, seed, label, recipe))
    about = {"model": drawn.model, "truncation": drawn.truncation}
    about |= {} if latents is None else {"space": _space(drawn).decode("ascii")}
    summary = _one_line(about)
    listed = f'{summary[:-1]}, "images": [\n' + ",\n".join(index) + "\n]}\n"
    if latents is not None:
        named.append(("latents.npy", npy_of(_latents(drawn))))
    return stored_zip([*named, ("images.json", listed.encode("ascii"))])


def _listed(name: str, seed: int | None, label: str | None, recipe: Mapping[str, object]) -> str:
    """A picture's line in `images.json`. The encoder takes longer to begin than plain values take to write."""
    if recipe:
        return _one_line({"file": name, "seed": seed, "label": label, **recipe})
    numbered, named = "null" if seed is None else seed, "null" if label is None else _text(label)
    return f'{{"file": "{name}", "seed": {numbered}, "label": {named}}}'


_text = json.encoder.encode_basestring_ascii
_one_line = json.JSONEncoder().encode
