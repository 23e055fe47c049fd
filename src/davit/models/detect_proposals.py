"""The region proposal network (Ren et al. 2015, arXiv 1506.01497) on a pyramid."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.detect_boxes import Anchors, clip, decode, encode, inside, select
from davit.models.detect_matching import NEITHER, draw, match
from davit.models.detector_config import DetectorHead
from davit.models.layers import SmallConv2d

STRIDES = (4, 8, 16, 32, 64)
DEVIATIONS = (1.0, 1.0, 1.0, 1.0)
OVERLAP = 0.7  # proposals that overlap more are one
POSITIVE, NEGATIVE, LEAST = 0.7, 0.3, 0.3
POSITIVE_SHARE = 0.5


class Offers(NamedTuple):
    """What the network says of each anchor; a tensor per level.

    Attributes:
        anchors: (N_i, 4).
        logits: (B, N_i), whether there is an object.
        offsets: (B, N_i, 4), where it is relative to the anchor.
    """

    anchors: list[Tensor]
    logits: list[Tensor]
    offsets: list[Tensor]


class Proposals(nn.Module):
    """Scores anchors of all levels with one convolutional head, and shifts them onto objects of any class."""

    def __init__(self, config: DetectorHead) -> None:
        """Build with fresh weights."""
        super().__init__()
        self.config = config
        self.anchors = Anchors(strides=STRIDES, scales=(config.base_scale,), ratios=config.anchor_ratios)
        self.conv = SmallConv2d(config.channels, config.channels, 3, padding=1)
        self.objectness = SmallConv2d(config.channels, self.anchors.per_position, 1)
        self.offsets = SmallConv2d(config.channels, 4 * self.anchors.per_position, 1)

    def forward(self, maps: Sequence[Tensor]) -> Offers:  # (B, channels, H_i, W_i)
        """Look at every anchor."""
        features = [F.relu(self.conv(x)) for x in maps]
        logits = [self.objectness(x).permute(0, 2, 3, 1).flatten(1).float() for x in features]
        offsets = [self.offsets(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).float() for x in features]
        return Offers(self.anchors(maps), logits, offsets)

    @torch.no_grad()
    def propose(self, offers: Offers, sizes: Sequence[tuple[int, int]], candidates: int) -> list[Tensor]:
        """Return the best boxes of each image, (N, 4), of at most `candidates` of each level."""
        return [self._of_image(offers, image, size, candidates) for image, size in enumerate(sizes)]

    def _of_image(self, offers: Offers, image: int, size: tuple[int, int], candidates: int) -> Tensor:
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for level, (anchors, logits, offsets) in enumerate(zip(*offers, strict=True)):
            best, places = logits[image].topk(min(candidates, len(anchors)))
            boxes = clip(decode(offsets[image][places], anchors[places], DEVIATIONS), size)
            found.append((boxes, best.sigmoid(), torch.full_like(places, level)))
        boxes, scores, levels = (torch.cat(parts) for parts in zip(*found, strict=True))
        solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        return select(boxes[solid], scores[solid], levels[solid], OVERLAP, self.config.proposals)[0]

    def losses(
        self,
        offers: Offers,
        objects: Sequence[Tensor],
        extents: Sequence[tuple[int, int]],
        generators: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        """Return `objectness`, cross-entropy, and `proposals`, L1, over the anchors drawn; means over the images.

        Args:
            offers: of `forward`.
            objects: boxes (M, 4) of each image.
            extents: height and width of each image in the batch's; anchors beyond learn nothing.
            generators: one for each image.
        """
        anchors, logits, offsets = torch.cat(offers.anchors), torch.cat(offers.logits, 1), torch.cat(offers.offsets, 1)
        objectness: list[Tensor] = []
        shifts: list[Tensor] = []
        for image, boxes in enumerate(objects):
            matches = match(boxes, anchors, POSITIVE, NEGATIVE, LEAST)
            matches = torch.where(inside(anchors, extents[image]), matches, NEITHER)
            positive, negative = draw(matches, self.config.anchor_samples, POSITIVE_SHARE, generators[image])
            drawn = torch.cat((positive, negative))
            count = max(len(drawn), 1)
            truth = (matches[drawn] >= 0).float()
            cross_entropy = F.binary_cross_entropy_with_logits(logits[image][drawn], truth, reduction="sum")
            objectness.append(cross_entropy / count)
            wanted = encode(boxes[matches[positive]], anchors[positive], DEVIATIONS)
            shifts.append(F.l1_loss(offsets[image][positive], wanted, reduction="sum") / count)
        return {"objectness": torch.stack(objectness).mean(), "proposals": torch.stack(shifts).mean()}
