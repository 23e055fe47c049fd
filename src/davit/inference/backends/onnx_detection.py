"""Detectors as one graph without loops, for any number of images at once.

The models choose among boxes image by image, with results whose number depends on the data. A graph of free batch
cannot loop over the images, so here all images go together, in places of fixed number: a place that holds nothing has
the score `NOTHING`. Regions are cut out, and masks computed, only for the places that hold something.

Where the models call torchvision's `batched_nms`, which moves groups apart before it compares their boxes, ONNX
compares inside groups of its own; so its rounding does not grow with the number of classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from davit.models import detect_mask_rcnn, detect_proposals, detect_retinanet
from davit.models.detect_boxes import clip, decode
from davit.models.detect_mask_rcnn import BOX_SIDE, MASK_SIDE, MaskRCNN
from davit.models.detect_proposals import OVERLAP, Offers
from davit.models.detect_regions import sample_regions
from davit.models.detect_retinanet import RetinaNet
from davit.models.detector import Detector
from davit.models.windows import count_windows

NOTHING = -1.0


class Places(NamedTuple):
    """Boxes of each image, best first, then places that hold nothing.

    Attributes:
        boxes: (B, P, 4).
        scores: (B, P), `NOTHING` where there is no box.
        origins: (B, P) int64, where each came from among those that it was chosen from.
    """

    boxes: Tensor
    scores: Tensor
    origins: Tensor

    def filled(self) -> tuple[Tensor, Tensor]:
        """Return the image and the place of each box, both (N,), image by image."""
        image, place = (self.scores > NOTHING).nonzero().unbind(1)
        return image, place


class DetectionGraph(nn.Module):
    """Images (B, C, height, width) to boxes (N, 4), scores (N,), indices (N,), counts (B,), and masks (N, 28, 28).

    The objects of all images follow each other, best first in each; `counts` says how many are whose.
    """

    def __init__(self, model: Detector) -> None:
        """Take over the weights of a detector."""
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Find objects."""
        divisor, (height, width) = self.model.config.head.divisor, images.shape[-2:]
        down, across = (count_windows(side, divisor) * divisor - side for side in (height, width))
        maps = self.model.features(F.pad(images, (0, across, 0, down)))
        head = self.model.head
        if isinstance(head, RetinaNet):
            found, classes = _retinanet(head, maps, (height, width))
        else:
            assert isinstance(head, MaskRCNN)
            found, classes = _mask_rcnn(head, maps, (height, width))
        image, place = found.filled()
        boxes, indices = found.boxes[image, place], classes[image, place]
        counts = (found.scores > NOTHING).sum(1)
        results = (boxes, found.scores[image, place], indices, counts)
        if isinstance(head, RetinaNet):
            return results
        return (*results, head.masks(_regions(maps, image, boxes, MASK_SIDE), indices).sigmoid())


def _retinanet(head: RetinaNet, maps: list[Tensor], size: tuple[int, int]) -> tuple[Places, Tensor]:
    """Return the objects and their classes (B, P)."""
    count, classes = head.config.candidates, head.num_classes
    logits, offsets = head.look(maps)
    anchors = head.anchors(maps)
    counts = [level.shape[0] for level in anchors]
    boxes: list[Tensor] = []
    scores: list[Tensor] = []
    indices: list[Tensor] = []
    levels = zip(anchors, logits.sigmoid().split(counts, 1), offsets.split(counts, 1), strict=True)
    for level, certain, shifts in levels:
        certain = certain.flatten(1).where(certain.flatten(1) > head.config.score_threshold, NOTHING)
        best, pairs = F.pad(certain, (0, count), value=NOTHING).topk(count)
        rows, spare = pairs // classes, (0, 0, 0, count)
        decoded = decode(_take(F.pad(shifts, spare), rows), F.pad(level, spare)[rows], detect_retinanet.DEVIATIONS)
        boxes.append(clip(decoded, size))
        scores.append(best)
        indices.append(pairs % classes)
    chosen, of = torch.cat(scores, 1), torch.cat(indices, 1)
    groups = of.unsqueeze(1) == torch.arange(classes, device=of.device).unsqueeze(1)  # (B, K, P)
    each = chosen.unsqueeze(1).where(groups, NOTHING)
    kept = keep_apart(torch.cat(boxes, 1), each, head.config.overlap_threshold).any(1)
    found = _best(torch.cat(boxes, 1), chosen.where(kept, NOTHING), head.config.detections)
    return found, of.gather(1, found.origins)


def _mask_rcnn(head: MaskRCNN, maps: list[Tensor], size: tuple[int, int]) -> tuple[Places, Tensor]:
    """Return the objects and their classes (B, P)."""
    config, classes = head.config, head.num_classes
    proposals = _propose(head.proposals(maps), size, config.candidates, config.proposals)
    image, place = proposals.filled()
    regions = proposals.boxes[image, place]
    logits, offsets = head.look(_regions(maps, image, regions, BOX_SIDE))
    certain = logits.softmax(-1)[:, :-1]
    certain = certain.where(certain > config.score_threshold, NOTHING)
    decoded = clip(decode(offsets, regions.unsqueeze(1), detect_mask_rcnn.DEVIATIONS), size)
    shape = proposals.scores.shape
    scores = certain.new_full((*shape, classes), NOTHING).index_put((image, place), certain)
    boxes = decoded.new_zeros((*shape, classes, 4)).index_put((image, place), decoded)
    by_class = boxes.transpose(1, 2).flatten(0, 1), scores.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    kept = keep_apart(*by_class, config.overlap_threshold)  # (B K, 1, P)
    kept = kept.squeeze(1).unflatten(0, (-1, classes)).transpose(1, 2)
    found = _best(boxes.flatten(1, 2), scores.where(kept, NOTHING).flatten(1), config.detections)
    return found, found.origins % classes


def _propose(offers: Offers, size: tuple[int, int], candidates: int, count: int) -> Places:
    boxes: list[Tensor] = []
    scores: list[Tensor] = []
    spare = (0, 0, 0, candidates)
    for anchors, logits, offsets in zip(*offers, strict=True):
        best, places = F.pad(logits, (0, candidates), value=-torch.inf).topk(candidates)
        # Anchors of no size stand in where a level has fewer, and are dropped with the boxes of no size.
        shifts, stands = _take(F.pad(offsets, spare), places), F.pad(anchors, spare)[places]
        decoded = clip(decode(shifts, stands, detect_proposals.DEVIATIONS), size)
        solid = ((decoded[..., 2:] - decoded[..., :2]) > 0).all(-1)
        boxes.append(decoded)
        scores.append(best.sigmoid().where(solid, NOTHING))
    levels = len(boxes)
    kept = keep_apart(torch.stack(boxes, 1).flatten(0, 1), torch.stack(scores, 1).flatten(0, 1).unsqueeze(1), OVERLAP)
    kept = kept.squeeze(1).unflatten(0, (-1, levels)).flatten(1)
    return _best(torch.cat(boxes, 1), torch.cat(scores, 1).where(kept, NOTHING), count)


def _best(boxes: Tensor, scores: Tensor, count: int) -> Places:  # (B, N, 4), (B, N)
    best, origins = scores.topk(min(count, scores.shape[1]))
    return Places(_take(boxes, origins), best, origins)


def _take(boxes: Tensor, places: Tensor) -> Tensor:  # (B, N, 4), (B, P) to (B, P, 4)
    return boxes.gather(1, places.unsqueeze(-1).expand(-1, -1, 4))


def _regions(maps: list[Tensor], image: Tensor, boxes: Tensor, side: int) -> Tensor:
    strides = detect_mask_rcnn.STRIDES
    regions = torch.cat((image.to(boxes).unsqueeze(1), boxes), dim=1)
    return sample_regions(maps[: len(strides)], strides, regions, side)


@torch.library.custom_op("davit::keep_apart", mutates_args=())
def keep_apart(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Say which of boxes (G, N, 4) with scores (G, K, N) stay when those that overlap a better one are left out.

    A score counts for itself, so that a box may be `NOTHING` among some of K classes and stay in others.

    Returns:
        (G, K, N) bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in range(scores.shape[0]):
        for row in range(scores.shape[1]):
            there = (scores[group, row] > NOTHING).nonzero().squeeze(1)
            kept[group, row, there[nms(boxes[group, there], scores[group, row, there], threshold)]] = True
    return kept


@keep_apart.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
