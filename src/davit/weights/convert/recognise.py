"""Which format a state dict is in, and which of its tensors are ours to read."""

from dataclasses import dataclass

from torch import Tensor

from davit.weights.convert.florence2 import FLORENCE2, FLORENCE2_NATIVE, FLORENCE_INTERNAL
from davit.weights.convert.mmdet import MASK_RCNN, RETINANET
from davit.weights.convert.mmpretrain import MMPRETRAIN
from davit.weights.convert.mmseg import UPERNET
from davit.weights.convert.official import OFFICIAL, OFFICIAL_DENSE
from davit.weights.convert.rename import Format, StateDict, describe
from davit.weights.convert.timm import TIMM, TIMM_FEATURES, TIMM_NAMED, TIMM_NAMED_FEATURES

FORMATS = (OFFICIAL, FLORENCE_INTERNAL, FLORENCE2, FLORENCE2_NATIVE, TIMM, MMPRETRAIN)

# Whole models around the authors' backbone, by the beginning of a name that stands beside it.
_WHOLE = ((MASK_RCNN, "rpn_head."), (RETINANET, "bbox_head.retina_cls."), (UPERNET, "decode_head.psp_modules."))
_SWIN = "relative_position_bias_table"


@dataclass(frozen=True, kw_only=True)
class Located:
    """The part of a state dict that is a DaViT.

    Attributes:
        format: how it is spelled.
        prefix: what stood before its names.
        tensors: its tensors, without the prefix.
        left: names of all other tensors in the file.
    """

    format: Format
    prefix: str
    tensors: dict[str, Tensor]
    left: tuple[str, ...]


def locate(state: StateDict) -> Located:
    """Find the DaViT in a state dict, alone or inside a larger model; a whole model that we have, with its heads.

    Raises:
        ValueError: no known format, or several towers.
    """
    found = [(f, key.removesuffix(f.signature)) for f in FORMATS for key in state if _signed(key, f)]
    if not found or (found[0][0] is MMPRETRAIN and any(key.endswith(_SWIN) for key in state)):
        raise ValueError(_nothing_found(state))
    if len(found) > 1:
        prefixes = describe(f"{prefix}({format.name})" for format, prefix in found)
        raise ValueError(f"{len(found)} DaViT towers in one file, under {prefixes}: keep the tensors of one of them")
    format, prefix = found[0]
    whole = _whole(state, prefix) if format is OFFICIAL else None
    if whole is not None:
        format, prefix = whole, prefix.removesuffix(whole.inner)
        chosen = {key: key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    elif format.inner and prefix.endswith(format.inner):
        prefix = prefix.removesuffix(format.inner)
        head = f"{prefix}head.fc."
        chosen = {key: key.removeprefix(prefix) for key in state if key.startswith((f"{prefix}{format.inner}", head))}
    else:
        chosen = {key: format.inner + key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    tensors = {new: state[key] for key, new in chosen.items()}
    format = _refine(format, tensors)
    unused = set(format.left_out(tensors))
    left = [key for key in state if key not in chosen or chosen[key] in unused]
    return Located(
        format=format,
        prefix=prefix,
        tensors={key: tensor for key, tensor in tensors.items() if key not in unused},
        left=tuple(left),
    )


def _signed(key: str, format: Format) -> bool:
    return key == format.signature or key.endswith(f".{format.signature}")


def _whole(state: StateDict, prefix: str) -> Format | None:
    """The whole model whose backbone is under `prefix`, going by its heads."""
    for format, beginning in _WHOLE:
        if prefix.endswith(format.inner) and any(
            key.startswith(prefix.removesuffix(format.inner) + beginning) for key in state
        ):
            return format
    return None


def _refine(format: Format, tensors: StateDict) -> Format:
    """Tell apart the formats that share a signature."""
    if format is OFFICIAL:
        return OFFICIAL_DENSE if any(f"norm{i}.weight" in tensors for i in range(4)) else OFFICIAL
    if format is TIMM:
        named = any(".spatial_block." in key for key in tensors)
        flat = any(key.startswith("stages_0.") for key in tensors)
        if flat:
            return TIMM_NAMED_FEATURES if named else TIMM_FEATURES
        return TIMM_NAMED if named else TIMM
    return format


def _nothing_found(state: StateDict) -> str:
    if any(key.endswith("stages.0.downsample.proj.weight") for key in state):
        return (
            "these are tensors of ours without the header that tells window and scale: build the model with "
            "davit.create_model, load them with load_state_dict, and write it with davit.save"
        )
    swin = next((key for key in state if key.endswith(_SWIN)), None)
    if swin is not None:
        return f"this looks like a Swin, which is not supported: it has {swin}, and a DaViT has no such tensor"
    if any(key.startswith("body.stage1.") for key in state):
        return "this looks like a birder checkpoint, which is not supported"
    known = ", ".join(format.name for format in FORMATS)
    return (
        f"none of the {len(state)} tensors tells a DaViT format ({known}); the first are {describe(state)}. "
        "Was it trained with another architecture?"
    )
