"""Semantic segmentation: cross-entropy of every pixel, with an auxiliary head, and mean intersection over union."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from davit.evaluation.evaluate import Exchange
from davit.evaluation.mean_iou import MeanIoU
from davit.models.class_map import class_map, pixel_logits
from davit.models.segmenter_config import IGNORED
from davit.models.upernet import SegmenterOutput
from davit.structures import Batch, Picture


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How the loss is made.

    Attributes:
        auxiliary: weight of the auxiliary head's loss (0.4 in the official configuration).
        class_weights: weight of each class in the loss; empty for equal ones (the official configuration).
        prior_samples: training masks whose pixels are counted, so that fresh classifiers begin by giving each class its
            share of them. 0 begins with equal shares (the official configuration): where one class has most of the
            pixels, a network without pre-trained weights then first learns that, and may go no further.
    """

    auxiliary: float = 0.4
    class_weights: tuple[float, ...] = ()
    prior_samples: int = 0

    def __post_init__(self) -> None:
        """Refuse a weight that would teach the opposite."""
        if self.auxiliary < 0:
            raise ValueError(f"auxiliary must not be negative, got {self.auxiliary}")
        if self.class_weights and min(self.class_weights) < 0:
            raise ValueError(f"class_weights must not be negative, got {self.class_weights}")
        if self.prior_samples < 0:
            raise ValueError(f"prior_samples must not be negative, got {self.prior_samples}")


class SegmentationTask:
    """The loss of a segmenter over images and the class of each pixel.

    Attributes:
        score: key of the metric that chooses the best model.
    """

    score = "miou"

    def __init__(self, config: SegmentationConfig, classes: Sequence[str]) -> None:
        """Build for a head of these classes.

        Raises:
            ValueError: not one weight for each class.
        """
        if config.class_weights and len(config.class_weights) != len(classes):
            raise ValueError(f"task.class_weights has {len(config.class_weights)} weights for {len(classes)} classes")
        self.config, self.classes = config, tuple(classes)

    def losses(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of both heads; ignored pixels add nothing, but count in the mean, as in mmsegmentation."""
        outputs: SegmenterOutput = model(batch.images)
        weights = self.config.class_weights
        losses = {"loss": pixel_loss(outputs.logits, batch.targets, weights)}
        if self.config.auxiliary:
            losses["auxiliary"] = self.config.auxiliary * pixel_loss(outputs.auxiliary, batch.targets, weights)
        return losses

    def metric(self) -> "SegmentationMetric":
        """Return a fresh metric."""
        return SegmentationMetric(self.classes)


def pixel_loss(logits: Tensor, classes: Tensor, weights: Sequence[float] = ()) -> Tensor:  # (B, K, h, w), (B, H, W)
    """Cross-entropy at the size of the labels, a mean over all pixels; logits are interpolated to it."""
    large = pixel_logits(logits.float().contiguous(), (classes.shape[-2], classes.shape[-1]))
    weight = large.new_tensor(weights) if weights else None
    return F.cross_entropy(large, classes, weight, ignore_index=IGNORED, reduction="sum") / classes.numel()


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
        """Return `iou`, `accuracy` and true `pixels` of each class by name; None where nothing was counted."""
        return self.counts.per_class()
