"""Variants by name, with fresh weights."""

from typing import Any

from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.models.clip_config import ImageTextConfig
from davit.models.config import ClassifierConfig
from davit.models.davit import DaViT
from davit.models.detector import Detector
from davit.models.detector_config import DetectorConfig
from davit.models.segmenter_config import SegmenterConfig
from davit.models.upernet import Segmenter
from davit.models.variants import IMAGE_SIZES, variant
from davit.preprocessing import Preprocessing

Model = Classifier | Detector | Segmenter | ImageTextModel
WholeConfig = ClassifierConfig | DetectorConfig | SegmenterConfig | ImageTextConfig


def make_model(config: WholeConfig) -> Model:
    """Build the model that a config describes, with fresh weights."""
    match config:
        case ClassifierConfig():
            return Classifier(config)
        case DetectorConfig():
            return Detector(config)
        case SegmenterConfig():
            return Segmenter(config)
        case ImageTextConfig():
            return ImageTextModel(config)


def create_model(name: str, num_classes: int = 1000, in_channels: int = 3, **fields: Any) -> Classifier:
    """Build a classifier with fresh weights: images (B, in_channels, H, W) to logits (B, num_classes).

    Args:
        name: a name of `list_models()`.
        num_classes: classes of the head.
        in_channels: channels of the images.
        **fields: any other field of `DaViTConfig`, such as `window=12` or `drop_path=0.1`.

    Raises:
        ValueError: unknown variant or field (the nearest names are given), or a value that cannot be built.
    """
    backbone = variant(name).override(in_channels=in_channels, **fields)
    model = Classifier(ClassifierConfig(backbone=backbone, num_classes=num_classes))
    model.preprocessing = Preprocessing.imagenet(IMAGE_SIZES[name], in_channels)
    return model


def create_backbone(name: str, in_channels: int = 3, **fields: Any) -> DaViT:
    """Build a backbone with fresh weights: images to four maps; it has `.channels` and `.strides`.

    Args:
        name: a name of `list_models()`.
        in_channels: channels of the images.
        **fields: any other field of `DaViTConfig`.

    Raises:
        ValueError: unknown variant or field, or a value that cannot be built.
    """
    model = DaViT(variant(name).override(in_channels=in_channels, **fields))
    model.preprocessing = Preprocessing.imagenet(IMAGE_SIZES[name], in_channels)
    return model
