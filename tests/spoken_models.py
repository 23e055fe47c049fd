"""Detectors and segmenters whose heads say something, and what exporting them is tested with."""

import math

import torch
from torch import nn

from davit.inference.parity import match
from davit.models.detections import DetectorOutput
from davit.models.detector import Detector
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from test_onnx import BARE

KINDS = ("mask_rcnn", "retinanet")
CLASSES = tuple("0123456789")
SHAPES = [(1, 64, 96), (2, 97, 130), (3, 33, 120), (1, 31, 5), (1, 200, 330)]


def spoken(model: nn.Module) -> nn.Module:
    """Give heads weights that say something, as fresh ones do not, and nothing for sure: scores of 1 would tie."""
    for name, parameter in model.named_parameters():
        if not name.startswith(("backbone", "norms")):
            quiet = 0.2 if "regress" in name or "offsets" in name else 1.0
            deviation = quiet / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            nn.init.normal_(parameter, std=deviation)
    model.preprocessing = Preprocessing(size=(96, 128), fit="within")
    model.classes = CLASSES
    return model.eval()


def detector(kind: str) -> Detector:
    head = DetectorHead(kind=kind, channels=16, hidden=24, candidates=120, proposals=80, anchor_scale=4.0)
    model = Detector(DetectorConfig(backbone=BARE, head=head, num_classes=10))
    spoken(model)
    return model


def segmenter() -> Segmenter:
    model = Segmenter(
        SegmenterConfig(backbone=BARE, head=UPerNetHead(channels=16, auxiliary_channels=8), num_classes=10)
    )
    spoken(model)
    return model


def model_of(kind: str) -> Detector | Segmenter:
    torch.manual_seed(3)
    return segmenter() if kind == "segmenter" else detector(kind)


def same(ours: list[DetectorOutput], theirs: list[DetectorOutput]) -> int:
    """Compare object by object, whatever the order among those of one score; return how many there were."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(b.scores, a.scores, atol=1e-4, rtol=0)
        first, second = match(a, b)
        last = float(a.scores.min()) + 1e-4 if len(a.scores) else 0.0  # of equals, either may have the last place
        for one, paired in ((a, first), (b, second)):
            assert all(one.scores[place] <= last for place in set(range(len(one.scores))) - set(paired))
        assert torch.equal(a.indices[first], b.indices[second])
        torch.testing.assert_close(b.boxes[second], a.boxes[first], atol=1e-2, rtol=0)
        assert (a.masks is None) == (b.masks is None)
        if a.masks is not None:
            assert b.masks.shape[1:] == (28, 28)
            torch.testing.assert_close(b.masks[second], a.masks[first], atol=1e-3, rtol=0)
    return sum(len(one.scores) for one in ours)


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.randn(batch, 3, height // 16 + 1, width // 16 + 1)
    return nn.functional.interpolate(coarse, (height, width)) + 0.2 * torch.randn(batch, 3, height, width)
