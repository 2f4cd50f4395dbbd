"""Classes of points and of images, where requests may mix them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from service.engine.latents import labels_from_seeds
from service.engine.pipelines.rows import Labels, class_of
from service.engine.steering import Mix, Source, Steering
from service.errors import InvalidRequest
from service.manifest import GenerateSpec

ROUNDED = 1e-6
"""A sum of weights so close to 1 is taken for 1: weights that were rounded to float32 stay what they are."""


@dataclass
class Classes:
    """Which class each point of each image has.

    Args:
        labels: of the request: one for all, or one for each image.
        mixes: the images' points.
        meet: whether points of several classes can be mixed, as they can in w; else the first point's is the image's.

    Raises:
        InvalidRequest: field `label`.
    """

    spec: GenerateSpec
    labels: Labels
    steering: Steering
    mixes: Sequence[Mix]
    meet: bool
    listed: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        known, labels = self.spec.labels, self.labels
        self.listed = [None] * len(self.mixes)
        if known is None:
            if labels is not None:
                raise InvalidRequest("label: this model has no classes", field="label")
            return
        if labels is None:
            return
        if self.steering.label_weights is not None:
            raise InvalidRequest("label: give a class or a mix of classes, not both", field="label")
        one_or_all = [labels] if isinstance(labels, (int, str, np.integer)) else list(labels)
        if len(one_or_all) not in (1, len(self.mixes)):
            detail = f"label: {len(one_or_all)} labels for {len(self.mixes)} images, give 1 or {len(self.mixes)}"
            raise InvalidRequest(detail, field="label")
        found = [class_of(known, label) for label in one_or_all]
        self.listed = list(found * (len(self.mixes) if len(found) == 1 else 1))

    def of(self, place: int, source: Source, top: str = "mix") -> int | None:
        """The class of a point; None for an unconditional model.

        Args:
            top: the body's field that the point stands in.
        """
        known = self.spec.labels
        if known is None:
            if source.label is not None:
                raise InvalidRequest(f"{top}: this model has no classes, a part of it cannot have a label", field=top)
            return None
        if source.label is not None:
            return class_of(known, source.label)
        listed = self.listed[place]
        if listed is not None:
            return listed
        if source.seed is None:
            raise InvalidRequest("label: needed where latents are given", field="label", allowed=known)
        return int(labels_from_seeds([source.seed], len(known))[0])

    def weights(self) -> list[tuple[int, float]] | None:
        """A mix of classes: indices, and weights whose sum is 1."""
        given = self.steering.label_weights
        if given is None or self.spec.labels is None:
            return None
        found = [(class_of(self.spec.labels, label), weight) for label, weight in given]
        total = sum(weight for _, weight in given)
        if abs(total - 1) <= ROUNDED:
            total = 1.0
        return [(index, weight / total) for index, weight in found if weight]

    def of_image(self, place: int) -> int | None:
        """The class of an image; None where there is no class, or none that is its alone."""
        if self.spec.labels is None or self.steering.label_weights is not None:
            return None
        points = [source for source, _ in self.mixes[place] if source.space == "z"]
        found = {self.of(place, source) for source in (points if self.meet else points[:1])}
        if not found:  # of points in w, where there are no classes any more
            return self.listed[place]
        return found.pop() if len(found) == 1 else None

    def name(self, place: int) -> str | None:
        """`of_image` as it is written."""
        index = self.of_image(place)
        return None if index is None or self.spec.labels is None else self.spec.labels[index]
