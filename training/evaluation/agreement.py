"""Do images drawn for a label look like that label? A small classifier, trained on real images only, is the judge.

It is no better a judge than its accuracy on held-out real images says, so that stands beside every figure. Agreement is
easily bought with sameness (one perfect shoe, drawn again and again): read it beside recall and coverage.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from training.runlog import write_atomically

Images = npt.NDArray[np.uint8]  # [N, H, W, C]
Labels = npt.NDArray[np.int64]  # [N]

VERSION = 1  # raise it with any change that changes the weights: it is part of the cached file's name
MIN_SIDE, MAX_SIDE = 8, 32  # px: larger images are shrunk, which keeps the training short and the classes apart
BATCH = 128
EPOCHS = 7
LEARNING_RATE = 2e-3  # the peak of one cycle


@dataclass(frozen=True)
class Agreement:
    """How often the classifier sees what was asked for.

    Attributes:
        overall: share of images with the asked label, 0..1.
        per_class: the same by class name, for the classes asked for.
        classifier_accuracy: the classifier's own accuracy on held-out real images, 0..1.
        samples: images judged.
    """

    overall: float
    per_class: dict[str, float]
    classifier_accuracy: float
    samples: int


class Classifier:
    """Labels of images. Made by `classifier`.

    Attributes:
        accuracy: share of held-out real images that it labels rightly, 0..1.
        classes: names by label.
    """

    def __init__(self, network: nn.Module, side: int, classes: Sequence[str], accuracy: float) -> None:
        self._network, self._side = network.eval(), side
        self.classes, self.accuracy = tuple(classes), accuracy

    def __call__(self, images: Images) -> Labels:
        """The likeliest label of each of uint8 images [N, H, W, C]: int64 [N]."""
        with torch.inference_mode():
            batches = [_prepare(images[i : i + BATCH], self._side) for i in range(0, len(images), BATCH)]
            answers = [self._network(batch).argmax(1) for batch in batches]
        return torch.cat(answers).numpy()


def agreement(judge: Classifier, images: Images, labels: Labels) -> Agreement:
    """Hold images [N, H, W, C] against the labels [N] that they were asked for.

    Raises:
        ValueError: not one label for every image, or a label that is no class.
    """
    _check_labels("labels", images, labels, judge.classes)
    right = judge(images) == labels
    per_class = {
        name: float(right[labels == label].mean())
        for label, name in enumerate(judge.classes)
        if (labels == label).any()
    }
    return Agreement(float(right.mean()), per_class, judge.accuracy, len(images))


def classifier(
    train: tuple[Images, Labels],
    test: tuple[Images, Labels],
    classes: Sequence[str],
    *,
    fingerprint: str,
    cache: Path | None = None,
    epochs: int = EPOCHS,
    say: Callable[[str], None] | None = None,
) -> Classifier:
    """The judge for one labelled set: from `cache` or trained now, on `train`; `test` only tells how good it is.

    Args:
        train, test: images uint8 [N, H, W, C] and labels int64 [N].
        classes: names by label.
        fingerprint: of the images and labels, as ImageSet has it; the cached classifier is valid for it alone.
        cache: folder to keep it in.
        epochs: passes over `train`.
        say: told of progress, one line each.

    Raises:
        ValueError: images and labels do not fit together.
    """
    for name, (images, labels) in (("train_labels", train), ("test_labels", test)):
        _check_labels(name, images, labels, classes)
    side = max(MIN_SIDE, min(MAX_SIDE, *train[0].shape[1:3]))
    key = hashlib.sha256(f"{VERSION} {fingerprint} {epochs} {side} {list(classes)}".encode()).hexdigest()[:32]
    path = cache / f"classifier-{key}.pt" if cache else None
    with torch.random.fork_rng(devices=[]):  # the same classifier every time, and nobody else's random numbers moved
        torch.manual_seed(0)
        network = _network(train[0].shape[3], len(classes), side)
        kept = _read(path)
        if kept is not None:
            network.load_state_dict(kept["network"])
            return Classifier(network, side, classes, float(kept["accuracy"]))
        _fit(network, train, side, epochs, say or (lambda _: None))
    judge = Classifier(network, side, classes, 0.0)
    judge.accuracy = float((judge(test[0]) == test[1]).mean())
    if path is not None:
        buffer = io.BytesIO()
        torch.save({"network": network.state_dict(), "accuracy": judge.accuracy}, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    return judge


def _read(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return kept


def _fit(network: nn.Module, train: tuple[Images, Labels], side: int, epochs: int, say: Callable[[str], None]) -> None:
    """Train in place, drawing from torch's random numbers."""
    images, labels = _prepare(train[0], side), torch.from_numpy(train[1])
    batch = min(BATCH, len(images))
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps, pct_start=0.2)
    # bfloat16 halves the time where the processor multiplies it in tiles, and is slower than float32 where it does not.
    fast = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    for epoch in range(epochs):
        network.train()
        for rows in torch.randperm(len(images))[: steps * batch].split(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                scores = network(images[rows])
            loss = cross_entropy(scores.float(), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        say(f"classifier: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}")


def _network(channels: int, classes: int, side: int) -> nn.Sequential:
    """Three convolutions; no pooling over all places, for a shoe's toe is not its heel."""
    cells = side // 2 // 2
    network = nn.Sequential(
        *_convolution(channels, 32, nn.MaxPool2d(2)),
        *_convolution(32, 64, nn.MaxPool2d(2)),
        *_convolution(64, 128, nn.Identity()),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(128 * cells**2, classes),
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _convolution(inputs: int, outputs: int, pool: nn.Module) -> tuple[nn.Module, ...]:
    """Pooled before it is normalised: a quarter of the work, and the convolution is the cheaper part of it."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, pool, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _prepare(images: Images, side: int) -> torch.Tensor:
    """Images [N, H, W, C] as float32 [N, C, side, side] in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    if x.shape[2:] != (side, side):
        x = interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


def _check_labels(name: str, images: Images, labels: Labels, classes: Sequence[str]) -> None:
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: want {len(images)} integers, one for every image, got {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"{name}: want labels from 0 to {len(classes) - 1}")
