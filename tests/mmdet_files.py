"""Files as mmdetection 2 and mmcv write them for the authors' models, spelled out by hand: names, shapes, wrappers."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import davit
from small_detectors import TINY

CHANNELS, HIDDEN = 16, 24
Shapes = dict[str, tuple[int, ...]]


def layers(prefix: str, weight: tuple[int, ...], bias: int | None = None) -> Shapes:
    return {f"{prefix}.weight": weight, f"{prefix}.bias": (weight[0] if bias is None else bias,)}


def backbone_shapes(config=TINY) -> Shapes:
    """What the authors' dense backbone calls its tensors; four norms."""
    shapes: Shapes = {}
    widths = (config.in_channels, *config.widths)
    for s, (width, before, depth) in enumerate(zip(config.widths, widths, config.depths, strict=False)):
        kernel = 7 if s == 0 else config.merge_kernel
        shapes |= layers(f"backbone.patch_embeds.{s}.proj", (width, before, kernel, kernel))
        shapes |= layers(f"backbone.patch_embeds.{s}.norm", (width if s == 0 else before,))
        shapes |= layers(f"backbone.norm{s}", (width,))
        for block in (f"backbone.main_blocks.{s}.{b}.{a}" for b in range(depth) for a in (0, 1)):
            shapes |= layers(f"{block}.cpe.0.proj", (width, 1, 3, 3)) | layers(f"{block}.cpe.1.proj", (width, 1, 3, 3))
            shapes |= layers(f"{block}.norm1", (width,)) | layers(f"{block}.norm2", (width,))
            shapes |= layers(f"{block}.attn.qkv", (3 * width, width)) | layers(f"{block}.attn.proj", (width, width))
            shapes |= layers(f"{block}.mlp.fc1", (4 * width, width)) | layers(f"{block}.mlp.fc2", (width, 4 * width))
    return shapes


def head_shapes(kind: str, classes: int, config=TINY, channels: int = CHANNELS, hidden: int = HIDDEN) -> Shapes:
    """What mmdetection 2 calls the tensors of neck and heads under the authors' configurations."""
    shapes: Shapes = {}
    square = (channels, channels, 3, 3)
    widths = config.widths if kind == "mask_rcnn" else config.widths[1:]
    for i, width in enumerate(widths):
        shapes |= layers(f"neck.lateral_convs.{i}.conv", (channels, width, 1, 1))
        shapes |= layers(f"neck.fpn_convs.{i}.conv", square)
    if kind == "retinanet":
        shapes |= layers("neck.fpn_convs.3.conv", (channels, widths[-1], 3, 3)) | layers(
            "neck.fpn_convs.4.conv", square
        )
        for i in range(4):
            shapes |= layers(f"bbox_head.cls_convs.{i}.conv", square) | layers(f"bbox_head.reg_convs.{i}.conv", square)
        shapes |= layers("bbox_head.retina_cls", (9 * classes, channels, 3, 3))
        return shapes | layers("bbox_head.retina_reg", (36, channels, 3, 3))
    shapes |= layers("rpn_head.rpn_conv", square)
    shapes |= layers("rpn_head.rpn_cls", (3, channels, 1, 1)) | layers("rpn_head.rpn_reg", (12, channels, 1, 1))
    box, mask = "roi_head.bbox_head", "roi_head.mask_head"
    shapes |= layers(f"{box}.shared_fcs.0", (hidden, 49 * channels)) | layers(f"{box}.shared_fcs.1", (hidden, hidden))
    shapes |= layers(f"{box}.fc_cls", (classes + 1, hidden)) | layers(f"{box}.fc_reg", (4 * classes, hidden))
    for i in range(4):
        shapes |= layers(f"{mask}.convs.{i}.conv", square)
    shapes |= layers(f"{mask}.upsample", (channels, channels, 2, 2), channels)
    return shapes | layers(f"{mask}.conv_logits", (classes, channels, 1, 1))


def random_tensors(shapes: Shapes) -> dict[str, Tensor]:
    """A file whose heads say something: offsets small, classes undecided, all else as large as keeps values."""
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            scale = 0.05 if "fc_cls" in name else 0.3 if "_reg" in name else 1.4
            state[name] = torch.randn(shape) * scale * torch.Size(shape[1:]).numel() ** -0.5
        else:
            state[name] = torch.randn(shape) * 0.1 + float("norm" in name and name.endswith("weight"))
    return state


def file_of(kind: str, classes: int = 3) -> dict[str, Tensor]:
    return random_tensors(backbone_shapes() | head_shapes(kind, classes))


def saved(state: Mapping[str, Tensor], path: Path, **meta: object) -> Path:
    """Written as mmcv writes a training's checkpoint."""
    about = {"mmdet_version": "2.11.0", "epoch": 12, "iter": 87960, "config": "model = dict(...)", "hook_msgs": {}}
    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"meta": about | meta, "state_dict": dict(state), "optimizer": optimizer}, path)
    return path


def refused(state: Mapping[str, Tensor], message: str, folder: Path) -> None:
    """See that such a file is refused with a message that names the tensor."""
    with pytest.raises(ValueError, match=r"wrong\.pth: .*" + message):
        davit.load(saved(state, folder / "wrong.pth"), window=7)
