"""What stands above the backbone in a foreign file: its shapes, the names of its classes, and the pixels it wants."""

import dataclasses
from collections.abc import Sequence

from davit.class_names import ADE20K
from davit.models.clip_config import ImageTextConfig
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.detect_retinanet import OCTAVE
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import Kind, ModelConfig
from davit.weights.convert.infer import Shapes, need
from davit.weights.convert.rename import StateDict

COCO_CLASSES = 80
_RESIZED: dict[Kind, tuple[int, int]] = {"detector": (800, 1333), "segmenter": (512, 2048)}  # short and long side

# mmsegmentation's name of a class of ADE20K, by which the data set's own list does not call it.
_RESPELLED = {"television receiver": "television"}


def whole_config(shapes: Shapes, state: StateDict, backbone: DaViTConfig) -> ModelConfig:
    """The architecture of the whole model, from the tensors of its heads in our spelling.

    Raises:
        ValueError: a tensor is missing, or tells settings that are not the official ones.
    """
    match shapes.kind:
        case "detector":
            return _detector(state, backbone)
        case "segmenter":
            return _segmenter(state, backbone)
        case "classifier" if shapes.num_classes is not None:
            return ClassifierConfig(backbone=backbone, num_classes=shapes.num_classes)
        case _:
            return backbone


def head_classes(config: ModelConfig, said: Sequence[str]) -> tuple[str, ...]:
    """A name per class: those the file says if they fit, COCO's for 80 objects, ADE20K's for 150 regions, else none."""
    if isinstance(config, DaViTConfig | ImageTextConfig):
        return ()
    names = tuple(name.strip() for name in said)
    if isinstance(config, SegmenterConfig):
        names = tuple(_RESPELLED.get(name, name) for name in names)
    if len(names) == config.num_classes == len(set(names)):
        return names
    if not names and isinstance(config, DetectorConfig) and config.num_classes == COCO_CLASSES:
        return coco_classes()
    if not names and isinstance(config, SegmenterConfig) and config.num_classes == len(ADE20K):
        return ADE20K
    return ()


def coco_classes() -> tuple[str, ...]:
    """The 80 classes of COCO in the order of their ids."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


def official_preprocessing(kind: Kind, channels: int) -> Preprocessing:
    """What the authors' configurations test a detector or segmenter with."""
    usual = Preprocessing.imagenet(224, channels)
    return dataclasses.replace(usual, size=_RESIZED[kind], fit="within", crop=1.0, interpolation="bilinear")


def _detector(state: StateDict, backbone: DaViTConfig) -> DetectorConfig:
    channels = need(state, "pyramid.laterals.0.weight", 4).shape[0]
    if any(key.startswith("head.proposals.") for key in state):
        return _mask_rcnn(state, backbone, channels)
    head = DetectorHead(kind="retinanet", channels=channels)
    anchors = len(OCTAVE) * len(head.anchor_ratios)
    _check_anchors(need(state, "head.regress.weight", 4).shape[0] // 4, anchors)
    logits = need(state, "head.classify.weight", 4).shape[0]
    if logits % anchors:
        raise ValueError(f"tensor head.classify.weight (our name) has {logits} rows, no multiple of {anchors} anchors")
    return DetectorConfig(backbone=backbone, head=head, num_classes=logits // anchors)


def _mask_rcnn(state: StateDict, backbone: DaViTConfig, channels: int) -> DetectorConfig:
    classes = need(state, "head.classify.weight", 2).shape[0] - 1  # the last is the background
    offsets = need(state, "head.regress.weight", 2).shape[0]
    if offsets not in (4, 4 * classes):
        raise ValueError(
            f"tensor head.regress.weight (our name) has {offsets} rows, and {classes} classes need four each, or four "
            "together: files of mmdetection 1 are not supported"
        )
    head = DetectorHead(
        kind="mask_rcnn",
        channels=channels,
        hidden=need(state, "head.fc1.weight", 2).shape[0],
        class_agnostic_boxes=offsets < 4 * classes,
    )
    _check_anchors(need(state, "head.proposals.objectness.weight", 4).shape[0], len(head.anchor_ratios))
    return DetectorConfig(backbone=backbone, head=head, num_classes=classes)


def _check_anchors(found: int, official: int) -> None:
    if found != official:
        raise ValueError(
            f"the file has {found} anchors at each position, and tensors do not tell their shapes; only the "
            f"official {official} are known"
        )


def _segmenter(state: StateDict, backbone: DaViTConfig) -> SegmenterConfig:
    known = UPerNetHead.pool_sizes
    pools = {key.split(".")[3] for key in state if key.startswith("head.pooling.pooled.")}
    if len(pools) != len(known):
        raise ValueError(
            f"the file pools to {len(pools)} grids, and tensors do not tell their sides; only the official "
            f"{', '.join(map(str, known))} are known"
        )
    head = UPerNetHead(
        channels=need(state, "head.fusion.conv.weight", 4).shape[0],
        auxiliary_channels=need(state, "auxiliary.conv.conv.weight", 4).shape[0],
    )
    classes = need(state, "head.classifier.weight", 4).shape[0]
    return SegmenterConfig(backbone=backbone, head=head, num_classes=classes)
