"""Semantic segmentation: cross-entropy of every pixel, with an auxiliary head, and mean intersection over union."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from davit.evaluation.evaluate import Exchange
from davit.evaluation.mean_iou import MeanIoU
from davit.models.class_map import class_map
from davit.models.segmenter_config import IGNORED
from davit.models.upernet import SegmenterOutput
from davit.structures import Batch, Picture


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How the loss is made.

    Attributes:
        auxiliary: weight of the auxiliary head's loss (0.4 in the official configuration).
    """

    auxiliary: float = 0.4

    def __post_init__(self) -> None:
        """Refuse a weight that would teach the opposite."""
        if self.auxiliary < 0:
            raise ValueError(f"auxiliary must not be negative, got {self.auxiliary}")


class SegmentationTask:
    """The loss of a segmenter over images and the class of each pixel.

    Attributes:
        score: key of the metric that chooses the best model.
    """

    score = "miou"

    def __init__(self, config: SegmentationConfig, classes: Sequence[str]) -> None:
        """Build for a head of these classes."""
        self.config, self.classes = config, tuple(classes)

    def losses(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of both heads; ignored pixels add nothing, but count in the mean, as in mmsegmentation."""
        outputs: SegmenterOutput = model(batch.images)
        losses = {"loss": pixel_loss(outputs.logits, batch.targets)}
        if self.config.auxiliary:
            losses["auxiliary"] = self.config.auxiliary * pixel_loss(outputs.auxiliary, batch.targets)
        return losses

    def metric(self) -> "SegmentationMetric":
        """Return a fresh metric."""
        return SegmentationMetric(self.classes)


def pixel_loss(logits: Tensor, classes: Tensor) -> Tensor:  # (B, K, h, w), (B, H, W)
    """Cross-entropy at the size of the labels; logits are interpolated to it."""
    large = F.interpolate(logits.float(), classes.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(large, classes, ignore_index=IGNORED, reduction="sum") / classes.numel()


class SegmentationMetric:
    """Mean intersection over union, counted in the pixels of the pictures.

    Attributes:
        counts: the confusion counts behind it.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        """Begin at zero."""
        self.counts = MeanIoU(len(classes), tuple(classes))

    def update(self, outputs: SegmenterOutput | Tensor, pictures: Sequence[Picture]) -> None:
        """Count a batch: of a segmenter, or the logits alone, as backends give them."""
        for logits, picture in zip(outputs if isinstance(outputs, Tensor) else outputs.logits, pictures, strict=True):
            self.counts.update([class_map(logits, picture.resized or picture.size, picture.size)], (picture,))

    def merge(self, exchange: Exchange) -> None:
        """Add up the counts of all processes."""
        self.counts.merge(exchange)

    def compute(self) -> dict[str, float]:
        """Return `miou`, `aacc`, `macc` as fractions, and `count`."""
        return self.counts.compute()

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Return `iou` and `accuracy` of each class by name; None where nothing was counted."""
        return self.counts.per_class()
