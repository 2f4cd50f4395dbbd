"""From the engine's arrays to the response: image, JSON, zip or grid, with the headers that make it repeatable."""

import asyncio
import base64
import hashlib
import io
import json
import platform
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import Response

from service.api.negotiation import Form
from service.api.parts import Parts
from service.api.record import Record
from service.api.schemas import GenerateRequest
from service.imaging import FORMATS, EncodeOptions, Provenance, compose_grid, encode, encoder_version
from service.manifest import Manifest

if TYPE_CHECKING:
    from service.engine.engine import Generated, ModelInfo

INLINE_BYTES = 16 * 1024
"""One picture of up to so many raw bytes encodes in some 50 microseconds: less than handing it to a thread costs."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Rendered:
    """A response's body and the headers that belong to it."""

    body: bytes
    media_type: str
    headers: dict[str, str]


async def image_response(
    parts: Parts, record: Record, drawn: "Generated", form: Form, headers: dict[str, str]
) -> Response:
    """Encode off the event loop and note the time on the record."""
    started = perf_counter()
    options, marked = parts.encode_options, parts.settings.provenance
    if len(drawn.images) == 1 and drawn.images.nbytes <= INLINE_BYTES:
        rendered = render(drawn, form, options, marked=marked)
    else:
        loop = asyncio.get_running_loop()
        rendered = await loop.run_in_executor(parts.encoders, lambda: render(drawn, form, options, marked=marked))
    record.stages["encode"] = perf_counter() - started
    record.images = len(drawn.images)
    return Response(rendered.body, 200, {**rendered.headers, **headers}, rendered.media_type)


def render(drawn: "Generated", form: Form, options: EncodeOptions, *, marked: bool) -> Rendered:
    """The pictures in the chosen form. Called from a worker thread; deterministic except JSON, which holds timings."""
    headers = {"x-model": drawn.model}
    if form.shape == "grid":
        recipe = {"model": drawn.model, "seeds": list(drawn.seeds), "labels": list(drawn.labels)}
        provenance = Provenance({**recipe, "truncation": drawn.truncation}) if marked else None
        body = encode(compose_grid(drawn.images), form.fmt, provenance, options)
        return Rendered(body, form.media_type, headers | {"x-seeds": _seed_list(drawn)})
    started = perf_counter()
    files = [encode(drawn.images[i], form.fmt, _mark(drawn, i) if marked else None, options) for i in _indices(drawn)]
    if form.shape == "image":
        seed, label = drawn.seeds[0], drawn.labels[0]
        headers |= {"x-seed": str(seed)} if seed is not None else {}
        headers |= {"x-label": header_text(label)} if label is not None else {}
        return Rendered(files[0], form.media_type, headers)
    if form.shape == "zip":
        return Rendered(_zip(drawn, files, form.fmt), form.media_type, headers | {"x-seeds": _seed_list(drawn)})
    return Rendered(_json(drawn, files, form.fmt, perf_counter() - started), form.media_type, headers)


def header_text(text: str) -> str:
    """Text for a header: printable ASCII as it is, everything else and `%` percent-encoded UTF-8."""
    return quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="replace")


def entity_tag(parts: Parts, model: "ModelInfo", request: GenerateRequest, form: Form) -> str | None:
    """A strong ETag that names everything the bytes depend on; None where they depend on chance or on timings."""
    if not request.reproducible or form.shape == "json":
        return None
    latents = request.latents
    names = [
        model.fingerprint,
        [request.seed] if request.seeds is None else request.seeds,
        None if latents is None else [list(latents.shape), hashlib.sha256(latents.tobytes()).hexdigest()],
        canonical_label(model.manifest, request.label),
        request.truncation,
        [form.shape, form.fmt, encoder_version(form.fmt, parts.encode_options), parts.settings.provenance],
        onnxruntime_version(),
        processor(),
    ]
    return f'"{hashlib.sha256(repr(names).encode()).hexdigest()[:32]}"'


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


def _indices(drawn: "Generated") -> range:
    return range(len(drawn.images))


def _mark(drawn: "Generated", index: int) -> Provenance:
    recipe: dict[str, object] = {"model": drawn.model, "seed": drawn.seeds[index]}
    if drawn.labels[index] is not None:
        recipe["label"] = drawn.labels[index]
    return Provenance(recipe | {"truncation": drawn.truncation})


def _seed_list(drawn: "Generated") -> str:
    return ",".join("" if seed is None else str(seed) for seed in drawn.seeds)


def _json(drawn: "Generated", files: list[bytes], fmt: str, encode_s: float) -> bytes:
    images = [
        {"seed": seed, "label": label, "media_type": FORMATS[fmt], "b64": base64.b64encode(file).decode("ascii")}
        for seed, label, file in zip(drawn.seeds, drawn.labels, files, strict=True)
    ]
    timings = {"queue_s": drawn.timings.queue_s, "run_s": drawn.timings.run_s, "encode_s": encode_s}
    timings["batch_rows"] = drawn.timings.batch_rows
    body = {"model": drawn.model, "truncation": drawn.truncation, "images": images, "timings": timings}
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def _zip(drawn: "Generated", files: list[bytes], fmt: str) -> bytes:
    """Stored, not deflated again; fixed times, so the same request gives the same bytes."""
    out = io.BytesIO()
    taken: dict[str, int] = {}
    index: list[dict[str, object]] = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for place, file in enumerate(files):
            seed, label = drawn.seeds[place], drawn.labels[place]
            stem = f"latent-{place}" if seed is None else f"seed-{seed}"
            taken[stem] = taken.get(stem, 0) + 1
            name = f"{stem}.{fmt}" if taken[stem] == 1 else f"{stem}-{taken[stem]}.{fmt}"
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), file)
            index.append({"file": name, "seed": seed, "label": label})
        summary = {"model": drawn.model, "truncation": drawn.truncation, "images": index}
        archive.writestr(zipfile.ZipInfo("images.json", _ZIP_TIME), json.dumps(summary, indent=1))
    return out.getvalue()
