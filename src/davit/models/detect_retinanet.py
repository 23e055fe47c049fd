"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): class and box of every anchor, learnt with the focal loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.detect_boxes import Anchors, clip, decode, encode, inside, select
from davit.models.detect_matching import NEITHER, match
from davit.models.detections import DetectorOutput
from davit.models.detector_config import DetectorHead
from davit.models.layers import PriorConv2d, RectifiedConv2d, SmallConv2d
from davit.structures import Instances

STRIDES = (8, 16, 32, 64, 128)
CONVS = 4
OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
DEVIATIONS = (1.0, 1.0, 1.0, 1.0)
POSITIVE, NEGATIVE, LEAST = 0.5, 0.4, 0.0


class RetinaNet(nn.Module):
    """The heads over a pyramid of five levels.

    The losses differ from mmdet's in two points: each is divided by the anchors on objects of its image, with a mean
    over the images, where mmdet divides by those of all images of a process; and an object that no anchor touches is
    learnt by none, where mmdet gives it all the anchors that touch nothing. They differ from torchvision's in that an
    object claims the anchors that overlap it most even from another object, and in ignoring anchors in padding.
    Of results, a level gives its best pairs of anchor and class, as in torchvision and mmdet from 2.19.
    """

    def __init__(self, config: DetectorHead, num_classes: int) -> None:
        """Build with fresh weights."""
        super().__init__()
        self.config, self.num_classes = config, num_classes
        scales = tuple(config.base_scale * step for step in OCTAVE)
        self.anchors = Anchors(strides=STRIDES, scales=scales, ratios=config.anchor_ratios)
        channels, anchors = config.channels, self.anchors.per_position
        layer = RectifiedConv2d if config.kept_variance else SmallConv2d
        self.class_convs = nn.ModuleList(layer(channels, channels, 3, padding=1) for _ in range(CONVS))
        self.box_convs = nn.ModuleList(layer(channels, channels, 3, padding=1) for _ in range(CONVS))
        self.classify = PriorConv2d(channels, anchors * num_classes, 3, padding=1)
        self.regress = SmallConv2d(channels, anchors * 4, 3, padding=1)

    def detect(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[DetectorOutput]:
        """Return the objects of each image; `sizes` are the images' heights and widths."""
        anchors = self.anchors(maps)
        logits, offsets = self.look(maps)
        counts = [len(level) for level in anchors]
        return [
            self._of_image(anchors, scores.sigmoid().split(counts), shifts.split(counts), size)
            for scores, shifts, size in zip(logits, offsets, sizes, strict=True)
        ]

    def losses(
        self,
        maps: Sequence[Tensor],
        instances: Sequence[Instances],
        sizes: Sequence[tuple[int, int]],
        extents: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Return the losses `classes` and `boxes`."""
        from torchvision.ops import sigmoid_focal_loss  # imports as much as torch itself; classifiers do without

        anchors = torch.cat(self.anchors(maps))
        logits, offsets = self.look(maps)
        classes: list[Tensor] = []
        boxes: list[Tensor] = []
        for one, scores, shifts, extent in zip(instances, logits, offsets, extents, strict=True):
            objects = one.boxes.float()
            matches = match(objects, anchors, POSITIVE, NEGATIVE, LEAST)
            matches = torch.where(inside(anchors, extent), matches, NEITHER)
            positive, counted = (matches >= 0).nonzero().squeeze(1), matches != NEITHER
            truth = torch.zeros_like(scores)
            truth[positive, one.labels[matches[positive]]] = 1.0
            count = max(len(positive), 1)
            classes.append(sigmoid_focal_loss(scores[counted], truth[counted], reduction="sum") / count)
            wanted = encode(objects[matches[positive]], anchors[positive], DEVIATIONS)
            boxes.append(F.l1_loss(shifts[positive], wanted, reduction="sum") / count)
        return {"classes": torch.stack(classes).mean(), "boxes": torch.stack(boxes).mean()}

    def look(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits (B, N, K) and offsets (B, N, 4) of all anchors."""
        logits: list[Tensor] = []
        offsets: list[Tensor] = []
        for x in maps:
            classes = boxes = x
            for class_conv, box_conv in zip(self.class_convs, self.box_convs, strict=True):
                classes, boxes = F.relu(class_conv(classes)), F.relu(box_conv(boxes))
            logits.append(self.classify(classes).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.num_classes))
            offsets.append(self.regress(boxes).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return torch.cat(logits, 1).float(), torch.cat(offsets, 1).float()

    def _of_image(
        self, anchors: Sequence[Tensor], scores: Sequence[Tensor], offsets: Sequence[Tensor], size: tuple[int, int]
    ) -> DetectorOutput:
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for level, certain, shifts in zip(anchors, scores, offsets, strict=True):
            rows, classes = (certain > self.config.score_threshold).nonzero().unbind(1)
            best, order = certain[rows, classes].sort(descending=True, stable=True)
            order = order[: self.config.candidates]
            rows, classes = rows[order], classes[order]
            found.append((decode(shifts[rows], level[rows], DEVIATIONS), best[: self.config.candidates], classes))
        boxes, certain, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
        threshold, count = self.config.overlap_threshold, self.config.detections
        return DetectorOutput(*select(clip(boxes, size), certain, classes, threshold, count))
