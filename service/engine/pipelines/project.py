"""A picture to a latent that draws it: the model's encoder, once or in passes that each see what the last one drew.

Passes: Alaluf et al., "ReStyle: A Residual-Based StyleGAN Encoder via Iterative Refinement", 2021, arXiv:2104.02699.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.engine.loaded import LoadedModel
from service.engine.pipelines import generate
from service.engine.pipelines.generate import Drawn
from service.engine.pipelines.painting import Pixels, Schedule, Tally
from service.engine.pipelines.rows import Label, wiring_of
from service.engine.pipelines.translate import as_channels, check_picture
from service.engine.resample import on_white, resize
from service.engine.session import Array
from service.engine.steering import SpaceName, Steering
from service.engine.waiting import outcome_of
from service.errors import GraphMismatch, InvalidRequest
from service.manifest import GraphSpec, Manifest

Floats = npt.NDArray[np.float32]

PASSES, PASSES_MOST = 4, 16
"""By default, and at most: what the first passes leave is mostly what the generator cannot draw."""


@dataclass(frozen=True)
class Encoder:
    """A model's graph from pictures to latents.

    Args:
        picture: its input; `drawn` what the last pass drew and `before` its latent, where it takes passes.
        answer: its output, a latent in `space`.
        height, width, channels: of the picture.
    """

    graph: str
    picture: str
    drawn: str | None
    before: str | None
    answer: str
    space: SpaceName
    height: int
    width: int
    channels: int

    @property
    def passes_most(self) -> int:
        """How many may be asked for."""
        return 1 if self.drawn is None else PASSES_MOST


class Projected(NamedTuple):
    """A picture as the model sees it."""

    latents: Floats
    """What draws it: z [1, D], or w+ [1, layers, D] of a model with styles."""
    space: SpaceName
    image: Pixels
    """[H, W, C], drawn from it."""
    psnr_db: float
    """Of the drawn image to the picture, brought to its size."""
    passes: int
    label: str | None
    model: str
    tally: Tally


def encoder_of(manifest: Manifest) -> Encoder | None:
    """The encoder among a model's graphs, whatever its name; None where it has none.

    Raises:
        GraphMismatch: there are several.
    """
    if manifest.generate is None:
        return None
    found = [encoder for name, graph in manifest.graphs.items() if (encoder := _encodes(manifest, name, graph))]
    if len(found) > 1:
        detail = f"{len(found)} graphs take a picture and give a latent; projection needs one"
        raise GraphMismatch(detail, model=manifest.ref)
    return found[0] if found else None


def _encodes(manifest: Manifest, name: str, graph: GraphSpec) -> Encoder | None:
    pictures = [tensor for tensor in graph.inputs if tensor.kind == "image"]
    latents = [tensor for tensor in graph.inputs if tensor.kind == "latent"]
    if len(graph.outputs) != 1 or len(pictures) + len(latents) != len(graph.inputs):
        return None
    if (len(pictures), len(latents)) not in ((1, 0), (2, 1)):
        return None
    answer, spec = graph.outputs[0], manifest.generate
    assert spec is not None  # the caller has looked
    styled = spec.style_layers is not None
    spaces: dict[tuple[int | str | None, ...], SpaceName] = (
        {("batch", manifest.style_dim): "w", ("batch", spec.style_layers, manifest.style_dim): "w+"}
        if styled
        else {("batch", spec.latent_dim): "z"}
    )
    space = spaces.get(answer.shape) if answer.kind == "latent" else None
    sizes = [size for size in pictures[0].shape[1:] if isinstance(size, int)]
    passes = len(pictures) == 2
    fits = not passes or (pictures[1].shape == pictures[0].shape and latents[0].shape == answer.shape)
    if space is None or len(sizes) != 3 or sizes[2] not in (1, 3) or not fits:
        return None
    drawn, before = (pictures[1].name, latents[0].name) if passes else (None, None)
    return Encoder(name, pictures[0].name, drawn, before, answer.name, space, sizes[0], sizes[1], sizes[2])


@dataclass
class _Projection:
    """One picture on its way."""

    model: LoadedModel
    encoder: Encoder
    label: Label | None
    schedule: Schedule
    tally: Tally = field(default_factory=Tally)

    async def draw(self, latent: Floats) -> tuple[Drawn, str | None]:
        """What a latent [1, ...] of the encoder's space draws, and of which class."""
        steering = None if self.encoder.space == "z" else Steering(space=self.encoder.space)
        rows = generate.prepare(self.model, None, None, latent, self.label, 1.0, 1, steering)
        when = self.schedule

        def begin(done: Callable[[Drawn | Exception], None]) -> Callable[[], None]:
            return generate.draw(self.model, rows, done, when.priority, when.deadline_s, share=when.share)

        drawn = await outcome_of(begin)
        self.tally.count(drawn.answer, asyncio.get_running_loop().time())
        return drawn, rows.labels[0]

    async def encode(self, inputs: dict[str, Array]) -> Floats:
        """The encoder's answer, [1, ...]."""
        batcher = self.model.graphs[self.encoder.graph].batcher
        when = self.schedule
        answer = await batcher.submit(inputs, priority=when.priority, deadline_s=when.deadline_s, share=when.share)
        self.tally.count(answer, asyncio.get_running_loop().time())
        latent: Floats = answer.outputs[self.encoder.answer]
        return latent

    def mean(self) -> Floats:
        """Where passes begin: the mean w, or z 0."""
        styled, encoder = wiring_of(self.model).styled, self.encoder
        spec = self.model.manifest.generate
        assert spec is not None  # it generates
        if styled is None:
            return np.zeros((1, spec.latent_dim), np.float32)
        if encoder.space == "w":
            return styled.mean_w[None]
        return np.repeat(styled.mean_w[None, None], styled.space.layers, axis=1)


async def project(
    model: LoadedModel,
    encoder: Encoder,
    rgb: Pixels,
    alpha: Pixels | None,
    passes: int | None,
    label: Label | None,
    schedule: Schedule,
) -> Projected:
    """Find a latent that draws a picture.

    Args:
        rgb: uint8 [H, W, 3]; cropped about its centre to the model's shape, and resized.
        alpha: uint8 [H, W]: what is transparent is laid on white.
        passes: None takes the usual number.
        label: of a conditional model.

    Raises:
        InvalidRequest: names the argument that is wrong.
        Overloaded, NotReady, DeadlineExceeded, RunFailed: see `Batcher.submit`.
    """
    check_picture(rgb, alpha)
    count = min(PASSES, encoder.passes_most) if passes is None else passes
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= encoder.passes_most:
        detail = f"passes: {passes!r} given, {model.ref} takes 1 to {encoder.passes_most}"
        raise InvalidRequest(detail, field="passes", allowed=list(range(1, encoder.passes_most + 1)))
    shape = (encoder.height, encoder.width, encoder.channels)
    target = await asyncio.to_thread(fitted, rgb, alpha, *shape)
    work = _Projection(model, encoder, label, schedule)
    inputs: dict[str, Array] = {encoder.picture: target[None]}
    if encoder.drawn is None or encoder.before is None:
        drawn, name = await work.draw(await work.encode(inputs))
    else:
        latent = work.mean()
        drawn, name = await work.draw(latent)
        for _ in range(count):
            latent = await work.encode({**inputs, encoder.drawn: drawn.images, encoder.before: latent})
            drawn, name = await work.draw(latent)
    image = drawn.images[0]
    same = image.shape == target.shape
    wanted = target if same else await asyncio.to_thread(fitted, rgb, alpha, *image.shape)
    space: SpaceName = "z" if drawn.latents.ndim == 2 else "w+"
    return Projected(drawn.latents, space, image, psnr_db(image, wanted), count, name, model.ref, work.tally)


def fitted(rgb: Pixels, alpha: Pixels | None, height: int, width: int, channels: int) -> Pixels:
    """A picture as a model takes it: on white, cropped about its centre to the model's shape, resized; [H, W, C]."""
    flat = rgb if alpha is None else on_white(rgb, alpha)
    high, wide, _ = flat.shape
    inner_high, inner_wide = (
        min(high, max(1, round(wide * height / width))),
        min(wide, max(1, round(high * width / height))),
    )
    top, left = (high - inner_high) // 2, (wide - inner_wide) // 2
    part = flat[top : top + inner_high, left : left + inner_wide]
    sized = part if part.shape[:2] == (height, width) else resize(part, height, width)
    return np.ascontiguousarray(as_channels(sized, channels))


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal to noise ratio of two images of one size, in dB; at most 99, which stands for equal ones."""
    error = float(np.mean(np.square(one.astype(np.float64) - other.astype(np.float64))))
    return 99.0 if error == 0 else min(99.0, 10 * float(np.log10(255**2 / error)))
