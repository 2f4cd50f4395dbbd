"""What the engine answers with: pictures and what it takes to draw them again, timings, what is told of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from service.engine.entries import Answer
from service.engine.loaded import LoadedModel
from service.engine.pipelines.project import Encoder, encoder_of
from service.engine.pipelines.steered import directions_of
from service.engine.profile import Plan
from service.engine.stats import BatcherStats
from service.manifest import Manifest

ModelStats = BatcherStats
"""Gauges and totals of one loaded version, over all of its graphs."""


class Timings(NamedTuple):
    """Where one request's time in the engine went, in seconds.

    `queue_s`: from arrival to its first run; `run_s`: from there to its last run's end. `batch_rows`: the largest batch
    that any of its rows rode in. `runs`: how many it was split into.
    """

    queue_s: float
    run_s: float
    batch_rows: int
    runs: int = 1


class Generated(NamedTuple):
    """Images, and what it takes to draw them again."""

    images: npt.NDArray[np.uint8]
    """[N, H, W, C], C in {1, 3, 4}."""
    seeds: tuple[int | None, ...]
    """One per image; None where latents were given outright."""
    labels: tuple[str | None, ...]
    """One per image; None for an unconditional model."""
    truncation: float
    model: str
    """`name@version`."""
    timings: Timings
    coalesced: bool = False
    """Whether an equal request that was under way drew them."""
    latents: npt.NDArray[np.float32] | None = None
    """What was drawn, truncated and steered: z [N, latent_dim], or w+ [N, layers, D] of a model with styles. Given back
    as latents with truncation 1 and the same noise it is the same images."""
    recipes: tuple[Mapping[str, object], ...] | None = None
    """What it takes beyond seed, label and truncation to ask for each image again, in the words of the HTTP body; None
    where nothing was steered."""


@dataclass(frozen=True)
class ModelInfo:
    """One loaded version. `loaded_at` in seconds since 1970. `providers` as obtained, one for each graph's session."""

    manifest: Manifest
    folder: Path
    loaded_at: float
    providers: tuple[str, ...]
    provider_notes: tuple[str, ...]
    """Why no better provider was obtained, what is run otherwise than usual, what was done for lack of memory."""
    plans: Mapping[str, Plan]
    """How each graph is run."""
    state: Literal["serving", "draining"]
    directions: tuple[str, ...] = ()
    """Names of the directions that its latents can be moved along."""
    encoder: Encoder | None = None
    """By which pictures are projected."""

    @property
    def ref(self) -> str:
        """`name@version`."""
        return self.manifest.ref

    @cached_property
    def fingerprint(self) -> str:
        """What its pictures depend on besides the request: the weights, and where they run."""
        weights = sorted(graph.sha256 for graph in self.manifest.graphs.values())
        weights += [self.manifest.arrays.sha256] if self.manifest.arrays is not None else []
        searches = sorted({plan.search for plan in self.plans.values() if plan.search})
        return "|".join([self.manifest.ref, *weights, *self.providers, *searches])

    @property
    def plan(self) -> Plan:
        """The plan of the last graph, the one that answers with the image."""
        return list(self.plans.values())[-1]


def timings_of(answer: Answer, shared_s: float | None) -> Timings:
    """The answer's own times, or one's share of them who came later and waited `shared_s` for it."""
    if shared_s is None:
        return Timings(answer.queue_s, answer.run_s, answer.batch_rows, answer.runs)
    run_s = min(answer.run_s, shared_s)
    return Timings(shared_s - run_s, run_s, answer.batch_rows, answer.runs)


def info_of(model: LoadedModel) -> ModelInfo:
    """What is told of a model, made anew when its state, its providers or its notes have changed."""
    now: list[object] = [model.state]
    for graph in model.graphs.values():
        for session in graph.sessions:
            now += (session.provider, session.notes)
    if model.told is None or model.told[0] != now:
        model.told = (now, _new_info(model))
    info: ModelInfo = model.told[1]
    return info


def _new_info(model: LoadedModel) -> ModelInfo:
    graphs = model.graphs.values()
    return ModelInfo(
        manifest=model.manifest,
        folder=model.folder,
        loaded_at=model.loaded_at,
        providers=tuple(dict.fromkeys(provider for graph in graphs for provider in graph.providers)),
        provider_notes=tuple(dict.fromkeys(note for graph in graphs for note in graph.notes)),
        plans={name: graph.plan for name, graph in model.graphs.items()},
        state=model.state,
        directions=tuple(directions_of(model)),
        encoder=encoder_of(model.manifest),
    )
