"""Weights to a format of someone else's, or the reason why not."""

from torch import Tensor

from davit.models.detector_config import DetectorConfig
from davit.models.segmenter_config import SegmenterConfig
from davit.naming import unknown_name
from davit.weights.checkpoint import Header, ModelConfig
from davit.weights.convert import huggingface
from davit.weights.convert.florence2 import FLORENCE2, FLORENCE2_NATIVE
from davit.weights.convert.mmdet import MASK_RCNN, RETINANET
from davit.weights.convert.mmpretrain import MMPRETRAIN
from davit.weights.convert.mmseg import UPERNET
from davit.weights.convert.official import OFFICIAL, OFFICIAL_DENSE
from davit.weights.convert.rename import Format, StateDict
from davit.weights.convert.timm import TIMM, TIMM_NAMED

TARGETS = (
    "davit", "official", "official-dense", "timm", "florence2", "florence2-native", "mmpretrain", "mmdet", "mmseg",
    "hf",
)  # fmt: skip

_FORMATS = {f.name: f for f in (OFFICIAL, OFFICIAL_DENSE, FLORENCE2, FLORENCE2_NATIVE, MMPRETRAIN)}


def export(header: Header, tensors: StateDict, target: str) -> dict[str, Tensor]:
    """Rename our tensors to another format, to the bit.

    Args:
        header: what the tensors are.
        tensors: in our spelling.
        target: a name of `TARGETS`.

    Raises:
        ValueError: the format has no place for this model; it says why.
    """
    if target == "davit":
        return dict(tensors)
    if target not in TARGETS:
        raise unknown_name("format", target, TARGETS)
    if target == "hf":
        return huggingface.to_theirs(header, tensors)
    format = _format(header, target)
    reason = _obstacle(header, format)
    if reason:
        raise ValueError(f"cannot write this model as {target}: {reason}")
    return format.from_ours(tensors)


def note(header: Header, target: str) -> str:
    """What the reader of the exported file must know and its tensors do not say."""
    config = header.backbone
    merging = f"{config.merge_kernel}x{config.merge_kernel} merging"
    told = f"{target}: window {config.window}, {merging}, channel attention scaled by {config.channel_scale}"
    return f"{told}, {settings}" if (settings := head_settings(header.config)) else told


def head_settings(config: ModelConfig) -> str:
    """What tensors do not say of a head, in one phrase; nothing for a head that they tell."""
    if isinstance(config, DetectorConfig):
        ratios = ", ".join(f"{ratio:g}" for ratio in config.head.anchor_ratios)
        return f"anchors of scale {config.head.base_scale:g} and ratios {ratios}"
    if isinstance(config, SegmenterConfig):
        return f"pooling to grids of {', '.join(map(str, config.head.pool_sizes))}"
    return ""


def _format(header: Header, target: str) -> Format:
    match target:
        case "timm":
            return TIMM if header.backbone.channel_scale == "channels" else TIMM_NAMED
        case "mmdet":
            retinanet = isinstance(header.config, DetectorConfig) and header.config.head.kind == "retinanet"
            return RETINANET if retinanet else MASK_RCNN
        case "mmseg":
            return UPERNET
        case _:
            return _FORMATS[target]


def _obstacle(header: Header, format: Format) -> str | None:
    config = header.backbone
    if header.kind == "image_text":
        return "no other format holds a text tower, too; save its .backbone as a checkpoint and convert that"
    if header.kind not in format.kinds and {"detector", "segmenter"} & {header.kind, *format.kinds}:
        return _other_task(header, format)
    if config.channel_scale != format.scale:
        return (
            f"its channel attention scales by {config.channel_scale}, and code that reads {format.name} scales by "
            f"{format.scale}, so it would give other results without any error"
        )
    if header.kind not in format.kinds:
        return _wrong_kind(header, format)
    if config.attentions != ("window", "channel") or not config.conv_position or not config.mlp:
        return "the format knows only window then channel attention, each with position encoding and MLP"
    if config.head_width != 32:
        return f"the code that reads it has heads of 32 channels, this model has {config.head_width}"
    if format is MMPRETRAIN and config.merge_kernel == 3:
        return "mmpretrain's code has no overlapped (3x3) merging"
    return None


def _other_task(header: Header, format: Format) -> str:
    targets = {"detector": "mmdet", "segmenter": "mmseg"}
    if header.kind in targets:
        return f"the format holds no {header.kind}; use {targets[header.kind]}, or save its .backbone"
    start = "" if header.kind == "dense" else "; their training starts from the official format"
    return f"the format holds a whole {format.kinds[0]}, and this is a {header.kind}{start}"


def _wrong_kind(header: Header, format: Format) -> str:
    if header.kind == "classifier":
        dense = format is OFFICIAL_DENSE
        way_out = "the authors' dense code reads the official format" if dense else "save its .backbone"
        return f"the format holds no classifier head; {way_out}"
    if header.kind == "dense":
        return "the format has no place for the norms of the four maps; use official-dense, or save its .backbone"
    return "a bare backbone lacks the norms of the four maps; use official, which the authors' dense code reads too"
