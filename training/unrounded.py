"""An exported generator as torch code sees one: images as floats, before the graph rounds them to pixels.

So whatever judges a run, its samples, its bounds and its perceptual path length, judges what ships, also where the run
is gone or never was here. Path length is why the floats are wanted: over its small steps pixels do not change.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.manifest import GraphSpec, Manifest
from service.package import read_npz, read_package
from training.attributes import AttributesError, GraphSession, drawing_graphs
from training.checkpoint import CheckpointError


class ExportedGenerator(nn.Module):
    """z [N, latent_dim] (and labels [N] int64) to images [N, C, H, W] in [-1, 1], with the noise of seed 0.

    One with styles has `mapping`, `synthesis`, `style_layers` and `mean_w`, as `latentspace.LatentSpace` wants them.

    Args:
        folder: `models/<name>/<version>`.
        threads: of each run; 0: one for each core.

    Raises:
        PackageError: no package, or one that is not whole.
        CheckpointError: it does not draw from latents, or its pixels are not rounded within the graph.
    """

    mean_w: Tensor

    def __init__(self, folder: Path, threads: int = 0) -> None:
        super().__init__()
        self.manifest = read_package(folder)
        spec = self.manifest.generate
        try:
            draws, maps = drawing_graphs(self.manifest)
        except AttributesError as error:
            raise CheckpointError(str(error)) from error
        assert spec is not None  # it draws
        self._classes, latent_dim = len(spec.labels or ()), spec.latent_dim
        model, channels_first = _unrounded(folder, draws)
        self._draws = GraphSession(model.SerializeToString(), draws, latent_dim, threads)
        self._channels_first = channels_first
        self._maps = None
        if maps is not None:
            self._maps = GraphSession(folder / maps.file, maps, latent_dim, threads)
            self.style_layers = int(spec.style_layers or 0)
            self.register_buffer("mean_w", torch.from_numpy(_mean_w(folder, self.manifest)))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        if self._maps is None:
            return self._images(z, self._checked(labels))
        return self.synthesis(self.mapping(z, labels)[:, None].expand(-1, self.style_layers, -1))

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents z [N, D] to w [N, D]."""
        assert self._maps is not None
        return torch.from_numpy(self._maps(latent=_array(z), label=self._checked(labels)))

    def synthesis(self, w: Tensor) -> Tensor:
        """Styles [N, layers, D] to images."""
        return self._images(w, None)

    def _images(self, latents: Tensor, labels: NDArray[np.int64] | None) -> Tensor:
        levels = torch.from_numpy(self._draws(latent=_array(latents), label=labels))
        images = levels if self._channels_first else levels.permute(0, 3, 1, 2)
        return (images / 127.5 - 1).clamp(-1, 1)

    def _checked(self, labels: Tensor | None) -> NDArray[np.int64] | None:
        if labels is None and self._classes:
            raise CheckpointError(f"{self.manifest.ref} has {self._classes} classes: a class must be given")
        return None if labels is None else labels.numpy()


def _array(latents: Tensor) -> NDArray[np.float32]:
    return latents.float().contiguous().numpy()


def _mean_w(folder: Path, manifest: Manifest) -> NDArray[np.float32]:
    if manifest.arrays is None:
        raise CheckpointError(f"{manifest.ref}: a model with styles has its mean w in an arrays file; there is none")
    mean: NDArray[np.float32] = read_npz(folder / manifest.arrays.file, model=manifest.ref)["mean_w"].astype(np.float32)
    return mean


def _unrounded(folder: Path, graph: GraphSpec) -> tuple[onnx.ModelProto, bool]:
    """The graph with what is rounded to its pixels as the one output, and whether channels come before sides there.

    Raises:
        CheckpointError: nothing is rounded on the way to the pixels.
    """
    model = onnx.load(folder / graph.file)
    makers = {name: node for node in model.graph.node for name in node.output}
    tensor, turned = graph.outputs[0].name, False
    while (node := makers.get(tensor)) is not None and node.op_type in ("Transpose", "Cast", "Clip", "Round"):
        turned |= node.op_type == "Transpose"
        tensor = node.input[0]
        if node.op_type == "Round":
            del model.graph.output[:]
            model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
            return model, turned
    raise CheckpointError(f"{folder / graph.file}: its pixels are not rounded within the graph as our export writes it")
