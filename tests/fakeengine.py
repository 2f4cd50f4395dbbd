"""An engine without sessions: the real interface, pictures that are a pure function of seed and label."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.engine.engine import Generated, ModelInfo, ModelStats, Timings
from service.engine.memory import MemoryStats
from service.engine.pipelines.painting import Painting
from service.engine.stats import BatcherStats
from service.errors import InvalidRequest, NotReady, TooLarge, UnknownModel
from service.manifest import (
    FileSpec,
    GenerateSpec,
    GraphSpec,
    Manifest,
    Provenance,
    Task,
    TensorSpec,
    TranslateSpec,
    UpscaleSpec,
)

LABELS = ("T-shirt/top", "Trouser", "Sneaker", "Čepice")


def manifest(name: str, *, version: int = 1, labels: tuple[str, ...] | None = None, channels: int = 3) -> Manifest:
    """A generator of 8x6 pictures with four latent numbers."""
    z = TensorSpec(name="z", kind="latent", dtype="float32", shape=("batch", 4))
    given = (z, TensorSpec(name="label", kind="label", dtype="int64", shape=("batch",))) if labels else (z,)
    image = TensorSpec(name="image", kind="image", dtype="uint8", shape=("batch", 8, 6, channels))
    graph = GraphSpec(file="generator.onnx", sha256="0" * 64, opset=20, inputs=given, outputs=(image,))
    return Manifest(
        name=name,
        version=version,
        family="fake",
        tasks=(Task.GENERATE,),
        graphs={"generator": graph},
        golden=FileSpec(file="golden.npz", sha256="0" * 64),
        generate=GenerateSpec(latent_dim=4, labels=labels),
        provenance=Provenance(recipe={}, dataset="none", images_seen=0, commit="0", seed=0),
        license="Apache-2.0",
        paper="none",
    )


def upscaler(name: str, *, scale: int = 2) -> Manifest:
    """A model that enlarges: each pixel is repeated."""
    fields = manifest(name).model_dump() | {"tasks": (Task.UPSCALE,), "generate": None}
    return Manifest(**fields | {"upscale": UpscaleSpec(scale=scale)})


def translator(name: str) -> Manifest:
    """A model that translates: to the negative."""
    fields = manifest(name).model_dump() | {"tasks": (Task.TRANSLATE,), "generate": None}
    return Manifest(**fields | {"translate": TranslateSpec()})


def idle() -> BatcherStats:
    """The stats of a model that has done nothing."""
    counts = {"runs_total": 0, "rows_total": 0, "run_s_total": 0.0, "failures_total": 0, "apart_total": 0}
    gauges = {"queue_rows": 0, "queue_age_s": 0.0, "lanes": 1, "lanes_busy": 0, "row_s": 0.001}
    return BatcherStats(**gauges, **counts, batch_rows={}, ended_total={"answered": 0}, rejected_total={})


class FakeEngine:
    """What the API sees of an engine.

    Set `gate` to an unset event to hold requests as a busy lane would, `error` to have every one fail with it.
    """

    def __init__(self, folder: Path, *manifests: Manifest) -> None:
        self.infos = {m.ref: ModelInfo(m, folder, 1.7e9, ("cpu",), (), {}, "serving") for m in manifests}
        self.stats_by_ref = {ref: idle() for ref in self.infos}
        self.memory_stats = MemoryStats(1 << 20)
        self.refused = {}
        self.asleep: list[str] = []
        self.ready = False
        self.draining = False
        self.opened = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        self.calls: list[dict] = []
        self.cancelled = 0
        self.tasks: set[asyncio.Task] = set()
        self.answers_as: str | None = None

    async def open(self) -> None:
        self.ready = True
        self.opened.set()

    async def drain(self, timeout_s: float) -> None:
        self.draining, self.ready = True, False

    async def close(self) -> None:
        self.ready = False

    def models(self) -> list[ModelInfo]:
        return list(self.infos.values())

    def model(self, ref: str) -> ModelInfo:
        for info in self.infos.values():
            if ref in (info.manifest.name, info.manifest.ref):
                return info
        names = sorted({info.manifest.name for info in self.infos.values()})
        raise UnknownModel(f"model: no model {ref!r}", field="model", allowed=names)

    def stats(self) -> dict[str, ModelStats]:
        return dict(self.stats_by_ref)

    def serving_stats(self) -> dict[str, ModelStats]:
        return self.stats()

    def memory(self) -> MemoryStats:
        return self.memory_stats

    async def load(self, name: str, version: int | None = None) -> ModelInfo:
        self.calls.append({"load": name, "version": version})
        return self.model(name)

    async def unload(self, name: str, version: int | None = None) -> None:
        self.calls.append({"unload": name, "version": version})
        del self.infos[self.model(name).manifest.ref]

    async def generate(
        self,
        model,
        *,
        seeds=None,
        count=None,
        latents=None,
        labels=None,
        truncation=1.0,
        steering=None,
        priority=5,
        timeout_s=None,
        lone=False,
    ) -> Generated:
        self.calls.append({"model": model, "seeds": seeds, "priority": priority, "timeout_s": timeout_s, "lone": lone})
        if self.draining:
            raise NotReady("draining", reason="draining")
        info = self.model(model)
        if self.error is not None:
            raise self.error
        rows = len(latents) if latents is not None else len(seeds) if seeds is not None else count or 1
        if rows > 64:
            raise TooLarge("too many", field="count", allowed=[64])
        if latents is not None and latents.shape[1] != 4:
            raise InvalidRequest("latents: must be rows of 4 numbers", field="latents")
        drawn = seeds if seeds is not None else [None] * rows if latents is not None else list(range(1000, 1000 + rows))
        names = self._labels(info.manifest.generate.labels, labels, rows)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        channels = info.manifest.graphs["generator"].outputs[0].shape[3]
        images = np.stack([self._picture(seed, name, channels) for seed, name in zip(drawn, names, strict=True)])
        stats = self.stats_by_ref[info.manifest.ref]
        counts = stats.batch_rows | {rows: stats.batch_rows.get(rows, 0) + 1}
        changes = {"runs_total": stats.runs_total + 1, "rows_total": stats.rows_total + rows, "batch_rows": counts}
        self.stats_by_ref[info.manifest.ref] = replace(stats, **changes)
        timings = Timings(0.001, 0.002, rows)
        ref = self.answers_as or info.manifest.ref
        return Generated(images, tuple(drawn), tuple(names), truncation, ref, timings)

    def start(self, model, done, **arguments):
        """As the real one: a task stands in for its queue."""

        async def draw() -> None:
            try:
                outcome = await self.generate(model, **arguments)
            except Exception as error:
                outcome = error
            done(outcome)

        task = asyncio.ensure_future(draw())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task.cancel

    async def translate(self, model, rgb, *, alpha=None, mask=None, priority=5, timeout_s=None) -> Painting:
        return self._painting(model, 255 - rgb)

    async def upscale(self, model, rgb, *, alpha=None, scale=None, priority=5, timeout_s=None) -> Painting:
        factor = self.model(model).manifest.upscale.scale
        return self._painting(model, rgb.repeat(factor, axis=0).repeat(factor, axis=1))

    def _painting(self, model, picture) -> Painting:
        if self.error is not None:
            raise self.error

        async def bands():
            for top in range(0, len(picture), 16):
                yield picture[top : top + 16]

        return Painting(self.model(model).manifest.ref, *picture.shape, 1, None, bands())

    @staticmethod
    def _labels(known, labels, rows) -> list:
        if labels is None:
            return [known[0] if known else None] * rows
        if known is None:
            raise InvalidRequest("label: the model is unconditional", field="label")
        found = []
        for label in labels if isinstance(labels, list) else [labels] * rows:
            if isinstance(label, int) and label < len(known):
                found.append(known[label])
            elif isinstance(label, str) and label.isdecimal() and int(label) < len(known):
                found.append(known[int(label)])
            elif isinstance(label, str) and label.casefold() in [name.casefold() for name in known]:
                found.append(next(name for name in known if name.casefold() == label.casefold()))
            else:
                raise InvalidRequest(f"label: {label!r} is not known", field="label", allowed=list(known))
        return found

    @staticmethod
    def _picture(seed, name, channels) -> np.ndarray:
        rng = np.random.RandomState((seed or 0) % 2**32)
        return rng.randint(0, 256, (8, 6, channels)).astype(np.uint8)
