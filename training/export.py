"""A run's generator to `models/<name>/<version>/`: ONNX, parity, golden, manifest, card, samples.

Export proves itself: each graph's answers in onnxruntime are held against torch's at batches of 1, 3 and 8, a graph
with a Random* node or an operator of another domain is refused, and the folder is renamed into place last.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from pydantic import ValidationError
from torch import nn

from service.engine.latents import latents_from_seeds
from service.manifest import Evaluation, Provenance, TensorSpec, resolve_dimension
from service.package import GraphDraft, ManifestDraft, write_package
from training import card, checkpoint, projection
from training.families import FAMILIES
from training.family import ExportSpec, Family, GraphExport
from training.graphforms import lone_sums, reformed
from training.latentspace import LatentSpace
from training.pictures import card_png, samples_sheet
from training.recipe import Recipe
from training.runlog import grid
from training.trainer import generate, sheet

OPSET = 20
PARITY_BATCHES = (1, 3, 8)
PARITY_SEEDS = 3
GOLDEN_ROWS = 4
FLOAT_TOLERANCE = 1e-4
"""Largest difference of a float output between torch and onnxruntime, relative to the output's largest value."""
ROUNDED_SHARE = 5e-4
"""Share of an image's values that may be rounded to the neighbouring level. Deep nets, most of all those with norms,
are off by up to 1e-3 of a level where sums are taken in another order, and some values lie that near to an edge."""
FREE_SIDES = ((32, 48), (48, 32), (64, 64))
"""Heights and widths, px, that symbolic ones take in the parity check, in turn."""

Arrays = dict[str, np.ndarray]


class ExportError(Exception):
    """The graph cannot be exported, or does not answer as torch does."""


@dataclass(frozen=True)
class TrainedRun:
    """A run read back: its EMA generator in inference mode, and where it came from."""

    directory: Path
    family: Family
    recipe: Recipe
    nets: nn.ModuleDict
    facts: Mapping[str, Any]
    images_seen: int
    seconds: float
    commit: str
    digest: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order; () for an unconditional run."""
        return tuple(self.facts["data"]["classes"]) if self.recipe.classes else ()

    def sample(self, seeds: Sequence[int], labels: np.ndarray | None = None) -> np.ndarray:
        """Images [N, H, W, C] uint8 of the EMA generator at truncation 1."""
        return generate(self.nets["generator"], self.recipe, seeds, labels)


def read_run(directory: Path, which: str = "last") -> TrainedRun:
    """Read a run's `last` or `best` checkpoint, its generator being the moving average.

    Raises:
        checkpoint.CheckpointError: no run there, no such checkpoint, or an unknown family.
    """
    path, facts_path = directory / f"{which}.pt", directory / "recipe.json"
    if not facts_path.is_file():
        raise checkpoint.CheckpointError(f"{directory}: no run there (recipe.json is missing)")
    try:
        facts = json.loads(facts_path.read_text())
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{facts_path}: unreadable ({error})") from None
    state = checkpoint.load(path)
    if state["family"] not in FAMILIES:
        raise checkpoint.CheckpointError(f"{path}: family {state['family']!r} is none of {', '.join(FAMILIES)}")
    family, recipe = FAMILIES[state["family"]], Recipe.from_json(state["recipe"])
    nets = family.nets(recipe)
    nets.load_state_dict(state["nets"])
    nets["generator"].load_state_dict(state["ema"])
    # An autoencoder's decoder has met encoded images alone: random latents would give its norms other statistics.
    if family.pairing == "none" and recipe.objective != "elbo":
        recompute_statistics(nets["generator"], recipe)
    nets.eval().requires_grad_(False)
    before = facts.get("started_from") or {"images": 0, "seconds": 0.0}
    return TrainedRun(
        directory, family, recipe, nets, facts, state["sampler"]["shown"] + before["images"],
        state["seconds"] + before["seconds"], state["commit"],
        checkpoint.digest(path),
    )  # fmt: skip


@torch.no_grad()
def recompute_statistics(generator: nn.Module, recipe: Recipe, batches: int = 64, rows: int = 64) -> None:
    """Replace the batch norms' running statistics by those that averaged weights really produce, from fixed seeds."""
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return
    generator.eval()  # only the norms learn here; dropout, say, would draw from the global generator
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    for index in range(batches):
        seeds = range(2**31 + index * rows, 2**31 + (index + 1) * rows)
        z = torch.from_numpy(latents_from_seeds(list(seeds), recipe.latent_dim))
        generator(z, torch.arange(rows) % recipe.classes if recipe.classes else None)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def export_run(run: TrainedRun, root: Path, name: str, *, version: int | None = None) -> list[Path]:
    """Export every model that the run's family provides; returns the folders, each whole when it appears.

    Args:
        run: from `read_run`.
        root: the models' folder.
        name: of the model; a family with several appends each one's suffix.
        version: None takes the next free one.

    Raises:
        ExportError: a graph holds what it must not, or differs from torch.
    """
    evaluation = read_evaluation(run)
    folders = []
    for spec in map(partial(_with_encoder, run), run.family.exports(run.nets, run.recipe, run.classes)):
        model = f"{name}-{spec.suffix}" if spec.suffix else name
        folders.append(_export(run, spec, root, model, version, evaluation))
    return folders


def _with_encoder(run: TrainedRun, spec: ExportSpec) -> ExportSpec:
    """A model with styles gets the encoder that was learnt for these weights, if there is one."""
    layers = spec.generate.style_layers if spec.generate is not None else None
    if layers is None:
        return spec
    encoder = projection.read_encoder(run.directory, run.digest, run.recipe, layers)
    if encoder is None:
        return spec
    return replace(spec, graphs={**spec.graphs, "encoder": projection.encoder_graph(encoder, run.recipe)})


def read_evaluation(run: TrainedRun) -> Mapping[str, Any] | None:
    """`evaluation.json` of the run when it judged just these weights, else None."""
    path = run.directory / "evaluation.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found if found.get("checkpoint") == run.digest else None


def _export(
    run: TrainedRun, spec: ExportSpec, root: Path, name: str, version: int | None, evaluation: Mapping[str, Any] | None
) -> Path:
    text = card.render(
        name, run.facts, run.recipe, run.family.paper, run.images_seen, run.seconds, evaluation, task=spec.tasks[0]
    )
    provenance = Provenance(
        recipe=run.recipe.to_json(), dataset=run.facts["data"]["name"], images_seen=run.images_seen,
        commit=run.commit, seed=run.facts["seed"],
    )  # fmt: skip
    return write_export(
        root, name, run.family, spec, provenance, card_text=text, samples_png=samples_png(run), version=version,
        data_license=run.facts["data"]["license"],
        evaluation=tuple(Evaluation(**row) for row in (evaluation or {}).get("metrics", ())),
    )  # fmt: skip


def write_export(
    root: Path, name: str, family: Family, spec: ExportSpec, provenance: Provenance, *, card_text: str,
    samples_png: bytes, data_license: str, evaluation: tuple[Evaluation, ...] = (), version: int | None = None,
) -> Path:  # fmt: skip
    """Serialise a model's graphs, prove each against torch, and write the package; its folder.

    Args:
        root: the models' folder.
        spec: what `family.exports` gives.
        card_text: Markdown.
        samples_png: what the card shows.
        data_license: of the data, under whose terms the weights stand.
        version: the next free one unless given.

    Raises:
        ExportError: a graph cannot be served, or answers otherwise than torch.
    """
    graphs, golden, drafts = {}, {}, {}
    for graph_name, graph in spec.graphs.items():
        data = to_onnx(graph)
        inputs, outputs = prove(graph, data, spec)
        graphs[graph_name] = data
        golden.update({f"{graph_name}/{key}": value for key, value in {**inputs, **outputs}.items()})
        drafts[graph_name] = GraphDraft(opset=OPSET, inputs=graph.inputs, outputs=graph.outputs)
    try:
        draft = ManifestDraft(
            name=name, family=family.name, tasks=spec.tasks, graphs=drafts,
            generate=spec.generate, translate=spec.translate, upscale=spec.upscale,
            provenance=provenance, evaluation=evaluation, license=data_license, paper=family.paper,
        )  # fmt: skip
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in wrong["loc"])
        raise ExportError(f"{field} is {str(wrong['input'])[:80]!r}: {wrong['msg']}") from None
    return write_package(
        root, draft, graphs=graphs, golden=golden, arrays=dict(spec.arrays) or None, card=card_text,
        samples_png=samples_png, version=version,
    )  # fmt: skip


def to_onnx(graph: GraphExport) -> bytes:
    """Serialise a graph with dynamic dimensions where its specs name symbols."""
    module = graph.module.eval()
    example = _example(graph.inputs, rows=2, first_seed=0, classes=2)
    symbols = {s: torch.export.Dim.DYNAMIC for spec in graph.inputs for s in spec.shape if isinstance(s, str)}
    dynamic = tuple({axis: symbols[s] for axis, s in enumerate(t.shape) if isinstance(s, str)} for t in graph.inputs)
    arguments = tuple(torch.from_numpy(example[tensor.name]) for tensor in graph.inputs)
    with torch.no_grad(), _without_known_noise():
        program = torch.onnx.export(
            module, arguments, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[t.name for t in graph.inputs], output_names=[t.name for t in graph.outputs],
            dynamic_shapes=dynamic,
        )  # fmt: skip
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    return _cleaned(program.model_proto)


@contextlib.contextmanager
def _without_known_noise() -> Iterator[None]:
    """Keep back two notes of the exporter that nobody here can act on; everything else is shown."""

    def telling(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()

    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(telling)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registry.removeFilter(telling)


def _cleaned(model: onnx.ModelProto) -> bytes:
    """Check what the graph is made of, and put it into the forms that are served best; drop the exporter's notes, which
    hold source paths of the training machine."""
    check_operators(model)
    reformed(model)
    if sums := lone_sums(model):
        raise ExportError(
            f"node {sums[0]!r} adds in another order where a row runs alone: sum the last axes, or matmul"
        )
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()  # type: ignore[no-any-return]


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse randomness inside the graph and operators that a plain onnxruntime lacks.

    Raises:
        ExportError: naming the node.
    """
    for node in model.graph.node:
        if node.op_type.startswith(("Random", "Multinomial", "Bernoulli")):
            raise ExportError(f"node {node.name!r} is {node.op_type}: randomness must enter as an input")
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(f"node {node.name!r} is of domain {node.domain!r}: only standard operators are served")
    if model.functions:
        raise ExportError(f"the graph holds functions ({model.functions[0].name}): they must be inlined")


def prove(graph: GraphExport, data: bytes, spec: ExportSpec) -> tuple[Arrays, Arrays]:
    """Hold onnxruntime's answers against torch's at every parity batch and seed; returns the golden rows.

    Raises:
        ExportError: see `held_against`.
    """
    classes = len(spec.generate.labels) if spec.generate is not None and spec.generate.labels else 1

    def torchs(inputs: Arrays) -> list[np.ndarray]:
        with torch.no_grad():
            answer = graph.module(*(torch.from_numpy(inputs[t.name]) for t in graph.inputs))
        return [one.numpy() for one in ([answer] if isinstance(answer, torch.Tensor) else answer)]

    return held_against(torchs, "torch", data, graph.inputs, graph.outputs, classes)


def held_against(
    reference: Callable[[Arrays], Sequence[np.ndarray]], name: str, data: bytes, inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec], classes: int,
) -> tuple[Arrays, Arrays]:  # fmt: skip
    """Hold a serialised graph's answers against others at every parity batch and seed; its golden rows, in and out.

    Args:
        reference: its answers to inputs by name, in the order of `outputs`.
        name: of who gives them, for errors.
        classes: that labels may name; 1 where there are none.

    Raises:
        ExportError: an output's shape, type or values differ: images by more than one level, or on more than two values
            and ROUNDED_SHARE of all; floats by more than FLOAT_TOLERANCE.
    """
    session = one_threaded(data)
    names = [t.name for t in outputs]
    for rows in PARITY_BATCHES:
        for seed in range(PARITY_SEEDS):
            given = _example(inputs, rows, 100 * seed, classes)
            for spec, want, got in zip(outputs, reference(given), session.run(names, given), strict=True):
                _compare(spec, want, got, name, rows)
    golden = _example(inputs, GOLDEN_ROWS, 0, classes)
    return golden, dict(zip(names, session.run(names, golden), strict=True))


def one_threaded(data: bytes) -> onnxruntime.InferenceSession:
    """A session on the CPU, as every comparison uses it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _compare(spec: TensorSpec, want: np.ndarray, got: np.ndarray, name: str, rows: int) -> None:
    if got.shape != want.shape or got.dtype != want.dtype or str(got.dtype) != spec.dtype:
        raise ExportError(
            f"output {spec.name!r} at batch {rows}: onnxruntime answers {got.dtype} {got.shape}, "
            f"{name} {want.dtype} {want.shape}, the spec says {spec.dtype}"
        )
    apart = np.abs(got.astype(np.float64) - want.astype(np.float64))
    if spec.dtype == "uint8":
        if apart.max() > 1 or np.count_nonzero(apart) > 2 + ROUNDED_SHARE * apart.size:
            raise ExportError(f"output {spec.name!r} at batch {rows} differs from {name} by up to {apart.max():.0f}")
    elif apart.max() > FLOAT_TOLERANCE * max(float(np.abs(want).max()), 1.0):
        raise ExportError(f"output {spec.name!r} at batch {rows} differs from {name} by up to {apart.max():.2g}")


def _example(inputs: Sequence[TensorSpec], rows: int, first_seed: int, classes: int) -> Arrays:
    """Inputs that a server could send: latents of seeds, labels in turn, noise images."""
    random = np.random.RandomState(first_seed)
    height, width = FREE_SIDES[first_seed // 100 % len(FREE_SIDES)]
    values: Arrays = {}
    for spec in inputs:
        symbols = {d.split("*")[-1]: height for d in spec.shape if isinstance(d, str)} | {"width": width, "batch": rows}
        shape = tuple(resolve_dimension(dimension, symbols) for dimension in spec.shape)
        if spec.kind == "label" and spec.dtype == "float32":
            values[spec.name] = _class_weights(*shape)
        elif spec.kind == "label":
            values[spec.name] = np.arange(rows, dtype=np.int64) % classes
        elif spec.dtype == "uint8":
            values[spec.name] = random.randint(0, 256, shape).astype(np.uint8)
        elif spec.kind == "latent" and len(shape) == 2:
            values[spec.name] = latents_from_seeds(range(first_seed, first_seed + rows), shape[1])
        else:
            values[spec.name] = random.randn(*shape).astype(np.float32)
    return values


def _class_weights(rows: int, classes: int) -> np.ndarray:
    """Weights [rows, classes] float32: a class a row, in turn, but every fourth row a mix of its own and the next."""
    alone = np.eye(classes, dtype=np.float32)[np.arange(rows) % classes]
    alone[3::4] = (alone[3::4] + np.roll(alone[3::4], 1, axis=1)) / 2
    return alone


def read_examples(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """The held-out sources and targets that an image-to-image run keeps for its grids and its card.

    Raises:
        checkpoint.CheckpointError: the run's `examples.npz` is missing or unreadable.
    """
    path = directory / "examples.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            return kept["sources"], kept["targets"]
    except (OSError, ValueError, KeyError) as error:
        raise checkpoint.CheckpointError(f"{path}: unreadable ({error}); `train` writes it") from error


def samples_png(run: TrainedRun) -> bytes:
    """What the card shows: `samples_sheet` of a model that draws; held-out inputs, outputs and targets of others."""
    if run.family.pairing != "none":
        images, columns = sheet(run.family, run.nets["generator"], run.recipe, *read_examples(run.directory))
        return card_png(grid(images, columns))
    return card_png(samples_sheet(LatentSpace(run.nets["generator"], run.recipe.latent_dim), run.recipe.classes))
