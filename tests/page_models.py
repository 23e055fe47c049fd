"""Small fresh models of all four kinds, as files, for tests of the page."""

from pathlib import Path

import torch
from torch import nn

from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from davit.weights.save import save
from small_detectors import TINY, sure

HOSTILE = '<img src=x onerror="window.hacked=1">'
NAMES = (HOSTILE, "grey heron", "bus", "a class whose name is so long that it has to break somewhere on a phone")
HEADED = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1), head_width=16, window=7)


def classifier() -> Classifier:
    model = Classifier(ClassifierConfig(backbone=HEADED, num_classes=len(NAMES)))
    nn.init.normal_(model.head.weight, std=0.3)
    with torch.no_grad():  # fresh queries attend everywhere alike
        for name, weight in model.named_parameters():
            if name.endswith("qkv.weight"):
                weight *= 8
    model.preprocessing = Preprocessing(size=(96, 128), fit="squash")
    return model


def detector() -> nn.Module:
    model = sure("mask_rcnn", num_classes=len(NAMES), detections=12)
    model.preprocessing = Preprocessing(size=(96, 160), fit="within")
    return model


def segmenter() -> Segmenter:
    head = UPerNetHead(channels=16, auxiliary_channels=8, dropout=0.0)
    model = Segmenter(SegmenterConfig(backbone=TINY, head=head, num_classes=len(NAMES)))
    with torch.no_grad():  # fresh weights would find one class everywhere
        logits = model.eval()(torch.randn(1, 3, 96, 160)).logits
        model.head.classifier.bias -= logits.mean((0, 2, 3))
    model.preprocessing = Preprocessing(size=(96, 160), fit="within")
    return model


def backbone() -> DaViT:
    model = DaViT(TINY)
    model.preprocessing = Preprocessing.imagenet(64)
    return model


KINDS = {"classify": classifier, "detect": detector, "segment": segmenter, "embed": backbone}


def write_models(folder: Path) -> dict[str, Path]:
    """A file of each kind by name."""
    files = {}
    for seed, (name, make) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        model = make().eval()
        if hasattr(model, "classes"):
            model.classes = NAMES
        files[name] = folder / f"{name}.safetensors"
        save(model, files[name])
    return files
