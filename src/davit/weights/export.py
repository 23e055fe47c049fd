"""Weights to a format of someone else's, or the reason why not."""

from torch import Tensor

from davit.models.config import DaViTConfig
from davit.naming import unknown_name
from davit.weights.checkpoint import Header
from davit.weights.convert.florence2 import FLORENCE2, FLORENCE2_NATIVE
from davit.weights.convert.mmpretrain import MMPRETRAIN
from davit.weights.convert.official import OFFICIAL, OFFICIAL_DENSE
from davit.weights.convert.rename import Format, StateDict
from davit.weights.convert.timm import TIMM, TIMM_NAMED

TARGETS = ("davit", "official", "official-dense", "timm", "florence2", "florence2-native", "mmpretrain")

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
    format = _timm(header.backbone) if target == "timm" else _FORMATS[target]
    reason = _obstacle(header, format)
    if reason:
        raise ValueError(f"cannot write this model as {target}: {reason}")
    return format.from_ours(tensors)


def note(header: Header, target: str) -> str:
    """What the reader of the exported file must know and its tensors do not say."""
    config = header.backbone
    merging = f"{config.merge_kernel}x{config.merge_kernel} merging"
    return f"{target}: window {config.window}, {merging}, channel attention scaled by {config.channel_scale}"


def _timm(config: DaViTConfig) -> Format:
    return TIMM if config.channel_scale == "channels" else TIMM_NAMED


def _obstacle(header: Header, format: Format) -> str | None:
    config = header.backbone
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


def _wrong_kind(header: Header, format: Format) -> str:
    if header.kind in ("detector", "segmenter"):
        return f"the format holds no {header.kind}; save its .backbone"
    if header.kind == "classifier":
        dense = format is OFFICIAL_DENSE
        way_out = "the authors' dense code reads the official format" if dense else "save its .backbone"
        return f"the format holds no classifier head; {way_out}"
    if header.kind == "dense":
        return "the format has no place for the norms of the four maps; use official-dense, or save its .backbone"
    return "a bare backbone lacks the norms of the four maps; use official, which the authors' dense code reads too"
