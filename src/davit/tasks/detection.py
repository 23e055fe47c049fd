"""Object detection and instance segmentation: the detector's own losses, and COCO's average precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from davit.evaluation.coco import CocoMetric
from davit.evaluation.evaluate import Exchange
from davit.models.detections import to_detections
from davit.models.detector import DetectorOutput
from davit.structures import Batch, Picture


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """What is learnt and scored.

    Attributes:
        masks: a mask for each object, beside its box.
    """

    masks: bool = True


class DetectionTask:
    """The losses of a detector over images and their instances.

    Attributes:
        score: key of the metric that chooses the best model.
    """

    score = "box_ap"

    def __init__(
        self, config: DetectionConfig, classes: Sequence[str], ground_truth: dict[str, Any], category_ids: Sequence[int]
    ) -> None:
        """Score against annotations in COCO's format, in which class i has id `category_ids[i]`."""
        self.config, self.classes = config, tuple(classes)
        self.ground_truth, self.category_ids = ground_truth, tuple(category_ids)

    def losses(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss by name, each a mean over the batch."""
        return model(batch.images, batch.targets, batch.sizes or None)

    def metric(self) -> "DetectionMetric":
        """Return a fresh metric."""
        return DetectionMetric(self)


class DetectionMetric:
    """Average precision of boxes, and of masks where the task has them.

    Attributes:
        coco: the counts behind it.
    """

    def __init__(self, task: DetectionTask, *, allow_missing: bool = False) -> None:
        """Begin with no picture scored; with `allow_missing` not all of them need to come."""
        self.classes = task.classes
        masks = task.config.masks
        self.coco = CocoMetric(task.ground_truth, task.category_ids, masks=masks, allow_missing=allow_missing)

    def update(self, outputs: Sequence[DetectorOutput], pictures: Sequence[Picture]) -> None:
        """Take the objects found in a batch, in the pixels of its images."""
        found = [
            to_detections(output, picture.resized or picture.size, picture.size, self.classes)
            for output, picture in zip(outputs, pictures, strict=True)
        ]
        self.coco.update(found, tuple(pictures))

    def merge(self, exchange: Exchange) -> None:
        """Put together the pictures of all processes."""
        self.coco.merge(exchange)

    def compute(self) -> dict[str, float]:
        """Return `box_ap`, `mask_ap` and their parts as fractions, and `count`."""
        return self.coco.compute()

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Return `box_ap`, and `mask_ap` with masks, of each class by name; None for a class without objects."""
        return self.coco.per_class()
