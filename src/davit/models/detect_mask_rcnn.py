"""Mask R-CNN (He et al. 2017, arXiv 1703.06870) on a pyramid: proposals, then class, box and mask of each region."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.detect_boxes import clip, decode, encode, select
from davit.models.detect_matching import BACKGROUND, ImageGenerators, draw, match
from davit.models.detect_proposals import Proposals
from davit.models.detect_regions import mask_targets, pool_regions
from davit.models.detections import DetectorOutput
from davit.models.detector_config import DetectorHead
from davit.models.layers import (
    OffsetLinear,
    RectifiedConv2d,
    RectifiedConvTranspose2d,
    SmallLinear,
    XavierLinear,
)
from davit.structures import Instances

STRIDES = (4, 8, 16, 32)
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
BOX_SIDE, MASK_SIDE = 7, 14
MASK_CONVS = 4
POSITIVE = 0.5
POSITIVE_SHARE = 0.25


class MaskRCNN(nn.Module):
    """The heads over a pyramid of five levels.

    Classes come before the background in the logits, and boxes and masks have none for it, as in mmdet. The losses
    differ from mmdet's in two points: each is a mean over an image's samples and then over the images, where mmdet
    takes one mean over the samples of a process; and proposals of no width or height are dropped.
    They differ from torchvision's in more: L1 in place of smooth L1, best boxes of an object claimed for it, mask
    targets of 0 or 1 only, 1,000 proposals in place of 2,000 while training, anchors in padding ignored.
    """

    def __init__(self, config: DetectorHead, num_classes: int) -> None:
        """Build with fresh weights."""
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.proposals = Proposals(config)
        channels = config.channels
        self.fc1 = XavierLinear(channels * BOX_SIDE**2, config.hidden)
        self.fc2 = XavierLinear(config.hidden, config.hidden)
        self.classify = SmallLinear(config.hidden, num_classes + 1)
        self.regress = OffsetLinear(config.hidden, 4 if config.class_agnostic_boxes else 4 * num_classes)
        self.mask_convs = nn.ModuleList(RectifiedConv2d(channels, channels, 3, padding=1) for _ in range(MASK_CONVS))
        self.mask_upsample = RectifiedConvTranspose2d(channels, channels, 2, stride=2)
        self.mask_classify = RectifiedConv2d(channels, num_classes, 1)
        self.generators = ImageGenerators()

    def detect(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[DetectorOutput]:
        """Return the objects of each image; `sizes` are the images' heights and widths."""
        proposals = self.proposals.propose(self.proposals(maps), sizes, self.config.candidates)
        logits, offsets = self.look(pool_regions(maps[: len(STRIDES)], STRIDES, proposals, BOX_SIDE))
        counts = [boxes.shape[0] for boxes in proposals]  # not len(): a trace would keep the number
        found = [
            self._choose(*parts)
            for parts in zip(proposals, logits.softmax(-1).split(counts), offsets.split(counts), sizes, strict=True)
        ]
        indices = torch.cat([index for _, _, index in found])
        pooled = pool_regions(maps[: len(STRIDES)], STRIDES, [boxes for boxes, _, _ in found], MASK_SIDE)
        masks = self.masks(pooled, indices).sigmoid()
        each = masks.split([boxes.shape[0] for boxes, _, _ in found])
        return [DetectorOutput(*parts, mask) for parts, mask in zip(found, each, strict=True)]

    def losses(
        self,
        maps: Sequence[Tensor],
        instances: Sequence[Instances],
        sizes: Sequence[tuple[int, int]],
        extents: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Return the losses `objectness`, `proposals`, `classes`, `boxes` and `masks`.

        Raises:
            ValueError: objects without masks.
        """
        if any(len(one.boxes) and one.masks is None for one in instances):
            raise ValueError("Mask R-CNN learns from masks, and these objects have boxes only: use kind='retinanet'")
        generators = self.generators(len(instances), maps[0].device)
        objects = [one.boxes.float() for one in instances]
        offers = self.proposals(maps)
        proposals = self.proposals.propose(offers, sizes, self.config.training_candidates)
        samples = [self._sample(*parts) for parts in zip(proposals, objects, sizes, generators, strict=True)]
        return {
            **self.proposals.losses(offers, objects, extents, generators),
            **self._box_losses(maps, samples, instances),
            "masks": self._mask_loss(maps, samples, instances),
        }

    def look(self, regions: Tensor) -> tuple[Tensor, Tensor]:  # (R, channels, BOX_SIDE, BOX_SIDE)
        """Return class logits (R, K + 1) and offsets (R, K, 4) of regions."""
        features = F.relu(self.fc2(F.relu(self.fc1(regions.flatten(1)))))
        own = 1 if self.config.class_agnostic_boxes else self.num_classes
        offsets = self.regress(features).view(-1, own, 4).float()
        return self.classify(features).float(), offsets.expand(-1, self.num_classes, -1)

    def masks(self, regions: Tensor, indices: Tensor) -> Tensor:  # (R, channels, MASK_SIDE, MASK_SIDE), (R,)
        """Return mask logits (R, 28, 28) of regions, each for its class."""
        x = regions
        for convolution in self.mask_convs:
            x = F.relu(convolution(x))
        logits = self.mask_classify(F.relu(self.mask_upsample(x)))
        return logits[torch.arange(indices.shape[0], device=indices.device), indices].float()

    def _choose(
        self, proposals: Tensor, scores: Tensor, offsets: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and class indices of one image: a proposal may become objects of several classes."""
        boxes = clip(decode(offsets, proposals[:, None], DEVIATIONS), size)
        rows, classes = (scores[:, :-1] > self.config.score_threshold).nonzero().unbind(1)
        threshold, count = self.config.overlap_threshold, self.config.detections
        return select(boxes[rows, classes], scores[rows, classes], classes, threshold, count)

    def _sample(
        self, proposals: Tensor, objects: Tensor, size: tuple[int, int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the regions of one image to learn from, those on objects first, and the object of each or -1."""
        proposals = torch.cat((clip(objects, size), proposals))
        matches = match(objects, proposals, POSITIVE, POSITIVE, POSITIVE)
        drawn = torch.cat(draw(matches, self.config.region_samples, POSITIVE_SHARE, generator))
        return proposals[drawn], matches[drawn]

    def _box_losses(
        self, maps: Sequence[Tensor], samples: Sequence[tuple[Tensor, Tensor]], instances: Sequence[Instances]
    ) -> dict[str, Tensor]:
        boxes_seen = [regions for regions, _ in samples]
        logits, offsets = self.look(pool_regions(maps[: len(STRIDES)], STRIDES, boxes_seen, BOX_SIDE))
        counts = [len(regions) for regions, _ in samples]
        classes: list[Tensor] = []
        boxes: list[Tensor] = []
        for (regions, owners), one, scores, shifts in zip(
            samples, instances, logits.split(counts), offsets.split(counts), strict=True
        ):
            truth = torch.full_like(owners, self.num_classes)  # background is the last class
            positive, count = (owners != BACKGROUND).nonzero().squeeze(1), max(len(owners), 1)
            truth[positive] = one.labels[owners[positive]]
            classes.append(F.cross_entropy(scores, truth, reduction="sum") / count)
            wanted = encode(one.boxes.float()[owners[positive]], regions[positive], DEVIATIONS)
            boxes.append(F.l1_loss(shifts[positive, truth[positive]], wanted, reduction="sum") / count)
        return {"classes": torch.stack(classes).mean(), "boxes": torch.stack(boxes).mean()}

    def _mask_loss(
        self, maps: Sequence[Tensor], samples: Sequence[tuple[Tensor, Tensor]], instances: Sequence[Instances]
    ) -> Tensor:
        regions = [regions[owners != BACKGROUND] for regions, owners in samples]
        owners = [owners[owners != BACKGROUND] for _, owners in samples]
        labels = torch.cat([one.labels[owner] for one, owner in zip(instances, owners, strict=True)])
        pooled = pool_regions(maps[: len(STRIDES)], STRIDES, regions, MASK_SIDE)
        logits = self.masks(pooled, labels).split([len(owner) for owner in owners])
        losses = []
        for one, region, owner, mask in zip(instances, regions, owners, logits, strict=True):
            truth = torch.zeros_like(mask)
            if one.masks is not None and len(owner):
                truth = mask_targets(one.masks, region, owner, mask.shape[-1])
            total = F.binary_cross_entropy_with_logits(mask, truth, reduction="sum")
            losses.append(total / max(truth.numel(), 1))
        return torch.stack(losses).mean()
