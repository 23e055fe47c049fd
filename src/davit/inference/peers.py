"""Other architectures, built by timm with fresh weights."""

from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from davit.inference.counting import count_by_torch, count_parameters
from davit.naming import unknown_name

SHORT: dict[str, str] = {
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_large": "swin_large_patch4_window7_224",
    "swinv2_tiny": "swinv2_tiny_window8_256",
    "swinv2_small": "swinv2_small_window8_256",
    "swinv2_base": "swinv2_base_window8_256",
    "focalnet_tiny": "focalnet_tiny_lrf",
    "focalnet_small": "focalnet_small_lrf",
    "focalnet_base": "focalnet_base_lrf",
    "mixer_s16": "mixer_s16_224",
    "mixer_b16": "mixer_b16_224",
    "mixer_l16": "mixer_l16_224",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
}


def timm_name(name: str) -> str:
    """The architecture that timm knows by a name or a short one.

    Raises:
        ValueError: neither is known; the nearest are named.
    """
    full = SHORT.get(name, name)
    if timm.is_model(full):
        return full
    if name.lower().startswith("focal") and not name.lower().startswith("focalnet"):
        raise ValueError(f"timm has no Focal Transformer, so that {name} cannot be measured; focalnet_tiny is near it")
    raise unknown_name("model of timm", name, [*SHORT, *timm.list_models()])


def short_name(name: str) -> str:
    """The short name of an architecture of timm, where it has one."""
    return next((short for short, full in SHORT.items() if full == name), name)


def own_size(name: str) -> tuple[int, int]:
    """Height and width that timm's weights of an architecture were made for."""
    _, height, width = _facts(name).input_size
    return height, width


def size_is_fixed(name: str) -> bool:
    """Whether an architecture is built for one size of pictures."""
    return _facts(name).fixed_input_size


def build_peer(name: str, height: int, width: int) -> nn.Module:
    """Build an architecture with fresh weights, in evaluation mode; one of fixed size is built for this size.

    Raises:
        ValueError: it cannot be built for this size.
    """
    fixed = size_is_fixed(name) and (height, width) != own_size(name)
    settings: dict[str, Any] = {"img_size": (height, width)} if fixed else {}
    try:
        return timm.create_model(name, pretrained=False, num_classes=1000, **settings).eval()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # timm has no error of its own
        raise _unable(name, height, width, error) from error


def count_peer(name: str, height: int, width: int) -> tuple[int, int]:
    """Parameters, and multiply-adds of one image, by `count_by_torch`, without weights.

    Raises:
        ValueError: it cannot be built for this size, or does not compute it.
    """
    with torch.device("meta"):
        model = build_peer(name, height, width)
    try:
        macs = count_by_torch(model, 3, height, width)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _unable(name, height, width, error) from error
    return count_parameters(model), macs


def _facts(name: str) -> PretrainedCfg:
    facts = timm.get_pretrained_cfg(name)
    assert facts is not None
    return facts


def _unable(name: str, height: int, width: int, error: Exception) -> ValueError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ValueError(f"{name} does not compute {height}x{width}: {reason}")
