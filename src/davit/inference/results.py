"""Outputs of a model to results that a person can use."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from davit.inference.backends.protocol import Kind
from davit.models.class_map import class_map
from davit.models.detections import to_detections
from davit.structures import Classification, Detections, Embedding, Segmentation

Picture = str | Path | bytes | Image
Result = Classification | Detections | Segmentation | Embedding


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture ready for a model.

    Attributes:
        pixels: (C, H, W), normalised.
        size: height and width of the picture before any resize.
        source: where it came from, if it came from a file.
    """

    pixels: Tensor
    size: tuple[int, int]
    source: str | None = None

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def read_outputs(
    kind: Kind, outputs: Any, images: Sequence[Prepared], classes: tuple[str, ...], top: int
) -> list[Result]:
    """Turn the outputs for images of one size into a result for each.

    Args:
        kind: what the outputs are.
        outputs: of a backend.
        images: what they were computed from.
        classes: names, empty where unknown.
        top: classes to name in a classification.

    Raises:
        ValueError: the outputs are NaN, or do not fit the classes.
    """
    if kind == "detection":
        found = zip(outputs, images, strict=True)
        return [
            replace(to_detections(output, image.resized, image.size, classes), source=image.source)
            for output, image in found
        ]
    _check(outputs, classes)
    if kind == "embedding":
        found = zip(F.normalize(outputs.float(), dim=-1), images, strict=True)
        return [Embedding(vector=vector, source=image.source) for vector, image in found]
    if kind == "segmentation":
        names = classes or tuple(map(str, range(outputs.shape[1])))
        return [
            Segmentation(classes=class_map(logits, image.resized, image.size), names=names, source=image.source)
            for logits, image in zip(outputs, images, strict=True)
        ]
    scores = outputs.float().softmax(-1)
    return [_classified(row, classes, image.source, top) for row, image in zip(scores, images, strict=True)]


def _check(logits: Tensor, classes: tuple[str, ...]) -> None:
    if classes and len(classes) != logits.shape[1]:
        raise ValueError(f"the model has {logits.shape[1]} logits but {len(classes)} class names")
    if logits.isnan().any():
        raise ValueError("the model computed NaN; its weights are damaged, or its numbers too small for this device")


def _classified(scores: Tensor, classes: tuple[str, ...], source: str | None, top: int) -> Classification:
    best = scores.topk(min(top, len(scores)))
    indices = tuple(best.indices.tolist())
    return Classification(
        labels=tuple(classes[index] if classes else str(index) for index in indices),
        indices=indices,
        scores=tuple(best.values.tolist()),
        source=source,
    )
