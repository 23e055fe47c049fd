"""A detector as data; no torch here."""

from dataclasses import dataclass
from typing import Literal

from davit.models.config import DaViTConfig
from davit.naming import unknown_name

DetectorKind = Literal["mask_rcnn", "retinanet"]

ANCHOR_SCALES: dict[str, float] = {"mask_rcnn": 8.0, "retinanet": 4.0}


@dataclass(frozen=True, kw_only=True)
class DetectorHead:
    """What stands on the backbone's maps; the defaults are those of the paper's runs.

    Attributes:
        kind: Mask R-CNN (boxes and masks, two stages) or RetinaNet (boxes, one stage).
        channels: channels of the pyramid, of its heads' convolutions and of the mask head.
        hidden: width of the two linear layers that see a region; Mask R-CNN only.
        anchor_scale: side of the smallest square anchor of a level over the level's stride. None: 8 for Mask R-CNN,
            4 for RetinaNet, which has two more scales between it and its double.
        anchor_ratios: height over width of the anchors.
        anchor_samples: anchors of an image that the proposal losses see, at most half on objects; Mask R-CNN only.
        candidates: boxes of each level that are considered for proposals (Mask R-CNN) or as results (RetinaNet).
        training_candidates: the same for proposals while the losses are computed.
        proposals: regions of an image that the second stage sees; Mask R-CNN only.
        region_samples: regions of an image that its losses see, at most a quarter on objects; Mask R-CNN only.
        class_agnostic_boxes: one box for each region, whatever its class, in place of one for each class: every object
            then teaches the same few weights, which places boxes better after a short training; Mask R-CNN only.
        kept_variance: the convolutions of RetinaNet's head begin with values that keep the variance through ReLUs, not
            with mmdet's deviation of 0.01, which suits 256 channels over pre-trained weights: four layers of 64
            channels would let a thousandth pass, and fresh weights then learn slowly.
        score_threshold: less certain objects are left out.
        overlap_threshold: of objects of one class that overlap by more than this IoU, the most certain one is kept.
        detections: objects of an image at most.
        divisor: images get zeros at the right and bottom up to a multiple of this many pixels.
    """

    kind: DetectorKind = "mask_rcnn"
    channels: int = 256
    hidden: int = 1024
    anchor_scale: float | None = None
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_samples: int = 256
    candidates: int = 1000
    training_candidates: int = 2000
    proposals: int = 1000
    region_samples: int = 512
    class_agnostic_boxes: bool = False
    kept_variance: bool = False
    score_threshold: float = 0.05
    overlap_threshold: float = 0.5
    detections: int = 100
    divisor: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.kind not in ANCHOR_SCALES:
            raise unknown_name("detector", self.kind, ANCHOR_SCALES)
        counts = ("channels", "hidden", "anchor_samples", "candidates", "training_candidates", "proposals")
        for name in (*counts, "region_samples", "detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.base_scale <= 0 or not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise ValueError(f"anchors need positive scales and ratios, got {self.anchor_scale}, {self.anchor_ratios}")
        for name in ("score_threshold", "overlap_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.divisor < 32 or self.divisor % 32:  # otherwise a level's stride is no whole number of pixels
            raise ValueError(f"divisor must be a multiple of 32, the coarsest stride, got {self.divisor}")

    @property
    def base_scale(self) -> float:
        """The anchor scale in use."""
        return ANCHOR_SCALES[self.kind] if self.anchor_scale is None else self.anchor_scale

    @property
    def first_stage(self) -> int:
        """The first stage of the backbone that the pyramid stands on: RetinaNet has no use for stride 4."""
        return 0 if self.kind == "mask_rcnn" else 1


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A backbone, a head and the number of classes, background not counted."""

    backbone: DaViTConfig
    head: DetectorHead
    num_classes: int = 80

    def __post_init__(self) -> None:
        """Refuse a detector without classes."""
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
