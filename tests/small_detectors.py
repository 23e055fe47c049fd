"""Small detectors and pictures that tests share."""

import math

import torch
from torch import nn

from davit.models.config import DaViTConfig
from davit.models.detector import Detector
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.structures import Instances

TINY = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
KINDS = ("mask_rcnn", "retinanet")


def detector(kind: str, num_classes: int = 3, **head) -> Detector:
    config = DetectorHead(kind=kind, channels=16, hidden=24, **head)
    return Detector(DetectorConfig(backbone=TINY, head=config, num_classes=num_classes))


def talkative(kind: str, **head) -> Detector:
    """A small detector whose heads say something, as fresh ones do not."""
    model = detector(kind, **head).eval()
    for name, parameter in model.head.named_parameters():
        scale = 0.3 if "regress" in name or "offsets" in name else 1.4
        nn.init.normal_(parameter, std=scale / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1)
    return model


def sure(kind: str, **head) -> Detector:
    """A detector whose fresh head already finds something."""
    model = detector(kind, score_threshold=0.0, **head)
    for name, parameter in model.head.named_parameters():
        if parameter.ndim > 1:
            scale = 0.1 if "regress" in name or "offsets" in name else 1.0
            torch.nn.init.normal_(parameter, std=scale / math.sqrt(parameter[0].numel()))
    return model.eval()


def squares(height: int = 97, width: int = 131) -> tuple[torch.Tensor, tuple[Instances, ...]]:
    """Two dark pictures: one with two bright squares, one with none."""
    images = torch.randn(2, 3, height, width) * 0.1
    boxes = torch.tensor([[10.0, 12.0, 46.0, 48.0], [60.0, 40.0, 100.0, 80.0]])
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    for channel, (mask, (left, top, right, bottom)) in enumerate(zip(masks, boxes.int().tolist(), strict=True)):
        mask[top:bottom, left:right] = True
        images[0, channel, top:bottom, left:right] += 2
    nothing = Instances(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return images, (Instances(boxes=boxes, labels=torch.tensor([0, 1]), masks=masks), nothing)


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def random_boxes(count: int, height: float, width: float, least: float = 2.0) -> torch.Tensor:
    corner = torch.rand(count, 2) * torch.tensor([width - least, height - least])
    size = least + torch.rand(count, 2) * (torch.tensor([width - least, height - least]) - corner)
    return torch.cat((corner, corner + size), dim=1)
