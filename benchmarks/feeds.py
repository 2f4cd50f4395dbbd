"""What the graph that draws is fed for seeds, for bare loops beside the server."""

from pathlib import Path

import numpy as np
import onnxruntime

from service.engine.latents import labels_from_seeds, latents_from_seeds, noise_from_seeds
from service.engine.pipelines.styles import space_of, spread
from service.manifest import GraphSpec, Manifest

Feeds = dict[str, np.ndarray]


def drawing(folder: Path, manifest: Manifest, seeds: range) -> tuple[GraphSpec, Feeds]:
    """The graph that answers with images (its first output), and its inputs for seeds, truncation being 1.

    Of a model with styles it is the synthesis: w is worked out here, once, as the server works it out once per seed.
    """
    spec = manifest.generate
    assert spec is not None
    z = latents_from_seeds(seeds, spec.latent_dim)
    labels = labels_from_seeds(seeds, len(spec.labels)) if spec.labels else None
    if spec.style_layers is None:
        (graph,) = (
            graph
            for graph in manifest.graphs.values()
            if ("batch", spec.latent_dim) in [tensor.shape for tensor in graph.inputs]
            and any(tensor.kind == "image" for tensor in graph.outputs)
        )
        return graph, _by_kind(graph, {"latent": z, "label": labels})
    space = space_of(manifest)
    mapping, synthesis = manifest.graphs[space.mapping], manifest.graphs[space.synthesis]
    session = onnxruntime.InferenceSession(folder / mapping.file, providers=["CPUExecutionProvider"])
    (w,) = session.run([space.w], _by_kind(mapping, {"latent": z, "label": labels}))
    noise = np.repeat(noise_from_seeds([0], spec.latent_dim, space.noise_dim), len(w), axis=0)
    return synthesis, _by_kind(synthesis, {"latent": spread(w, space.layers), "noise": noise})


def _by_kind(graph: GraphSpec, values: dict[str, np.ndarray | None]) -> Feeds:
    feeds = {}
    for tensor in graph.inputs:
        value = values[tensor.kind]
        assert value is not None
        if tensor.kind == "label" and tensor.dtype == "float32":  # a weight for each class
            value = np.eye(int(tensor.shape[1]), dtype=np.float32)[value]
        feeds[tensor.name] = value
    return feeds
