"""What a step computes as far as it is known before any picture: the shape of its images, and its losses."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import sigmoid_focal_loss

from davit.data.detection_transforms import DetectionAugmentation
from davit.data.segmentation_transforms import SegmentationAugmentation
from davit.models.clip import ImageTextModel
from davit.models.clip_config import ImageTextConfig
from davit.models.complexity import count_macs
from davit.models.config import ClassifierConfig
from davit.models.create import WholeConfig, make_model
from davit.models.detect_mask_rcnn import BOX_SIDE, MASK_SIDE, POSITIVE_SHARE, MaskRCNN
from davit.models.detector import Detector
from davit.models.segmenter_config import SegmenterConfig
from davit.structures import Batch
from davit.tasks.classification import ClassificationConfig, ClassificationTask
from davit.tasks.contrastive import ContrastiveConfig, ContrastiveTask
from davit.tasks.segmentation import SegmentationConfig, SegmentationTask
from davit.train.recipe import Recipe

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A step's images and losses.

    Attributes:
        size: height and width of an image.
        padded: height and width of the batch; where images differ, the largest that they are padded to.
        loss: of a model and its images.
        notes: what is assumed, and what is left out.
    """

    size: Size
    padded: Size
    loss: Callable[[nn.Module, Tensor], Tensor]
    notes: tuple[str, ...] = ()


def plan_step(recipe: Recipe, config: WholeConfig) -> PlannedStep:
    """Plan a step of a recipe.

    Args:
        recipe: what would run.
        config: its model.
    """
    match recipe.task, recipe.data.augmentation:
        case ContrastiveConfig() as settings, _:
            assert isinstance(config, ImageTextConfig)
            side, contrastive = recipe.data.image_size, ContrastiveTask(settings)

            def contrast(model: nn.Module, images: Tensor) -> Tensor:
                count = len(images)
                tokens = _zeros(count, config.head.text.context)
                batch = Batch(images=images, texts=tokens, targets=torch.arange(count)[:, None].expand(-1, 2))
                return _total(contrastive.losses(model, batch))

            return PlannedStep(size=(side, side), padded=(side, side), loss=contrast)
        case ClassificationConfig() as settings, _:
            assert isinstance(config, ClassifierConfig)
            task = ClassificationTask(replace(settings, mix_probability=0.0), config.num_classes)
            side = recipe.data.image_size

            def classify(model: nn.Module, images: Tensor) -> Tensor:
                return _total(task.losses(model, Batch(images=images, targets=_zeros(len(images)))))

            return PlannedStep(size=(side, side), padded=(side, side), loss=classify)
        case SegmentationConfig() as settings, SegmentationAugmentation(crop=side):
            assert isinstance(config, SegmenterConfig)
            segmentation = SegmentationTask(settings, [""] * config.num_classes)

            def segment(model: nn.Module, images: Tensor) -> Tensor:
                targets = _zeros(len(images), side, side)
                return _total(segmentation.losses(model, Batch(images=images, targets=targets)))

            return PlannedStep(size=(side, side), padded=(side, side), loss=segment)
        case _, DetectionAugmentation(short_sides=sides, crop_short_sides=crops, longest=longest):
            short = min(max(*sides, *crops), longest)
            left_out = "objects themselves: matching them with anchors, and the images of their masks"
            notes = (
                f"images are as large as they get, {short}x{longest}, and padded to {longest}x{longest} beside upright "
                f"ones; most steps have smaller ones",
                f"memory leaves out {left_out}",
            )
            return PlannedStep(size=(short, longest), padded=(longest, longest), loss=_detect, notes=notes)
    raise AssertionError(recipe.task)


def count_flops(recipe: Recipe, config: WholeConfig, size: Size) -> int:
    """Floating-point operations of a step for each image: backward is worth two forwards.

    Checkpointing repeats the backbone's forward.
    """
    again = recipe.model.backbone.gradient_checkpointing
    if isinstance(config, ClassifierConfig):
        return 2 * count_macs(config.backbone, *size, config.num_classes) * (4 if again else 3)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = make_model(config).eval()
        images = torch.empty(1, config.backbone.in_channels, *size)
        if isinstance(model, Detector):
            _parts(model, images)
        elif isinstance(model, ImageTextModel):
            model(images, torch.zeros(1, model.config.head.text.context, dtype=torch.int64))
        else:
            model(images)
    return 3 * counter.get_total_flops() + (2 * count_macs(config.backbone, *size, None) if again else 0)


def _detect(model: nn.Module, images: Tensor) -> Tensor:
    """Sum what the heads say, as if every region that may be drawn were there."""
    assert isinstance(model, Detector)
    parts = _parts(model, images)
    if isinstance(model.head, MaskRCNN):
        return torch.stack([part.float().sum() for part in parts]).sum()
    logits, offsets = parts
    classes = [sigmoid_focal_loss(scores, torch.zeros_like(scores), reduction="sum") for scores in logits]
    return torch.stack([*classes, offsets.sum()]).sum()


def _parts(model: Detector, images: Tensor) -> list[Tensor]:
    """Everything that the heads compute, but for what depends on where objects are."""
    settings, head = model.config.head, model.head
    height, width = images.shape[-2:]
    maps = model.features(F.pad(images, (0, -width % settings.divisor, 0, -height % settings.divisor)))
    if not isinstance(head, MaskRCNN):
        return list(head.look(maps))
    offers = head.proposals(maps)
    regions = len(images) * settings.region_samples
    objects = int(regions * POSITIVE_SHARE)

    def pooled(count: int, side: int) -> Tensor:
        return maps[0].new_empty(count, settings.channels, side, side).requires_grad_(maps[0].requires_grad)

    scores = head.look(pooled(regions, BOX_SIDE))
    masks = head.masks(pooled(objects, MASK_SIDE), maps[0].new_zeros(objects, dtype=torch.int64))
    return [*offers.logits, *offers.offsets, *scores, masks]


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)
