"""Detection and instance segmentation (paper section 4.2): the backbone, a norm per map, a pyramid, and a head."""

from collections.abc import Sequence
from typing import overload

import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.davit import DaViT
from davit.models.dense import map_norms, normed
from davit.models.detect_mask_rcnn import MaskRCNN
from davit.models.detect_retinanet import RetinaNet
from davit.models.detections import DetectorOutput
from davit.models.detector_config import DetectorConfig
from davit.models.pyramid import Pyramid
from davit.preprocessing import Preprocessing
from davit.structures import Instances

Size = tuple[int, int]


class Detector(nn.Module):
    """A backbone under Mask R-CNN or RetinaNet, with the conventions of the official code (mmdet 2).

    Zeros that fill a batch up are seen by channel attention, so an image beside a larger one gets other boxes than
    alone. For answers, group pictures by size: then an image's are its own, whatever stands beside it.

    Attributes:
        config: the architecture.
        preprocessing: what images go through before the model.
        classes: a name for each class index, where known.
    """

    def __init__(self, config: DetectorConfig) -> None:
        """Build with fresh weights, initialised as mmdet does."""
        super().__init__()
        head, widths = config.head, config.backbone.widths[config.head.first_stage :]
        self.config = config
        self.backbone = DaViT(config.backbone)
        self.norms = map_norms(widths)
        two_stages = head.kind == "mask_rcnn"
        self.pyramid = Pyramid(widths, head.channels, convolved=0 if two_stages else 2)
        self.head = (MaskRCNN if two_stages else RetinaNet)(head, config.num_classes)
        self.preprocessing: Preprocessing | None = None
        self.classes: tuple[str, ...] = ()

    @overload
    def forward(
        self, images: Tensor, instances: None = None, sizes: Sequence[Size] | None = None
    ) -> list[DetectorOutput]: ...
    @overload
    def forward(
        self, images: Tensor, instances: Sequence[Instances], sizes: Sequence[Size] | None = None
    ) -> dict[str, Tensor]: ...
    def forward(
        self, images: Tensor, instances: Sequence[Instances] | None = None, sizes: Sequence[Size] | None = None
    ) -> list[DetectorOutput] | dict[str, Tensor]:
        """Find objects, or return the losses for known ones; in training mode and in evaluation mode alike.

        Args:
            images: (B, in_channels, height, width), normalised.
            instances: the objects of each image, boxes in its pixels.
            sizes: height and width of each image inside `images`, whose rest is zeros at the right and bottom; by
                default each fills it.

        Returns:
            Without `instances`, what was found in each image. With them, losses by name, each a mean over the images;
            their sum is to be minimised. Where an image's boxes or the weights are no numbers, the losses may be
            none either, or the boxes are left out; nothing raises.

        Raises:
            ValueError: another number of instances or sizes than images; objects without masks for Mask R-CNN.
        """
        count, _, height, width = images.shape
        sizes = sizes or [(height, width)] * count
        for name, given in (("instances", instances), ("sizes", sizes)):
            if given is not None and len(given) != count:
                raise ValueError(f"{count} images need as many {name}, got {len(given)}")
        divisor = self.config.head.divisor
        padded = F.pad(images, (0, -width % divisor, 0, -height % divisor))
        maps = self.features(padded)
        if instances is None:
            return self.head.detect(maps, sizes)
        extents = [(h + -h % divisor, w + -w % divisor) for h, w in sizes]
        return self.head.losses(maps, instances, sizes, extents)

    def features(self, images: Tensor) -> list[Tensor]:  # (B, in_channels, height, width), multiples of the divisor
        """Return the pyramid's maps, finest first, (B, channels, H, W) each."""
        return self.pyramid(normed(self.norms, self.backbone(images)[self.config.head.first_stage :]))
