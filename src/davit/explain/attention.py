"""Attention weights of both kinds, recomputed from what a real forward fed to the attention modules."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.explain.attention_maps import AttentionRecord, BlockChannels, BlockWindows, WindowAttentionMap
from davit.explain.hooks import inputs_of
from davit.models.attention import ChannelAttention, WindowAttention, channel_affinity
from davit.models.davit import DaViT
from davit.models.detector import Detector
from davit.models.windows import partition_windows

Place = tuple[int, int]
Blocks = Literal["last", "all"] | Sequence[Place]  # places are (stage, dual block), counted from 0


def record_attention(model: nn.Module, image: Tensor, blocks: Blocks = "last") -> AttentionRecord:
    """Run one forward of the backbone and recompute the attention inside it.

    Args:
        model: a backbone or any model on one, in eval mode; it is left as it was. Other threads may use it meanwhile.
        image: (C, H, W), normalised; any size.
        blocks: which dual blocks: the last of each stage, all of them, or places.

    Returns:
        Weights and maps in float32 on the CPU, in the order of the blocks in the model.

    Raises:
        ValueError: a model in training mode, whose dropped paths would show in the maps, or a block that is not there.
    """
    if model.training:
        raise ValueError("attention is read from a model in eval mode: call model.eval() first")
    backbone = backbone_of(model)
    chosen = [
        (stage, block, each.get_submodule("attn"))
        for stage, block in places(backbone.config.depths, blocks)
        for each in backbone.get_submodule(f"stages.{stage}.blocks.{block}").children()
    ]
    with torch.no_grad(), inputs_of([module for _, _, module in chosen]) as inputs:
        backbone(seen_whole(model, image)[None])
        found = [(stage, block, module, inputs[module]) for stage, block, module in chosen]
        windows = [_windows((i, j), m, x) for i, j, m, x in found if isinstance(m, WindowAttention)]
        channels = [_channels((i, j), m, x) for i, j, m, x in found if isinstance(m, ChannelAttention)]
    return AttentionRecord(windows=tuple(windows), channels=tuple(channels))


def places(depths: Sequence[int], blocks: Blocks) -> list[Place]:
    """The chosen dual blocks, in the order in which they compute, each once.

    Raises:
        ValueError: a place that is not there.
    """
    if blocks == "last":
        return [(stage, depth - 1) for stage, depth in enumerate(depths)]
    every = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    if blocks == "all":
        return every
    for stage, block in blocks:
        if not 0 <= stage < len(depths):
            raise ValueError(f"there are stages 1 to {len(depths)}, and no stage {stage + 1}")
        if not 0 <= block < depths[stage]:
            has = f"dual blocks 1 to {depths[stage]}" if depths[stage] > 1 else "one dual block"
            raise ValueError(f"stage {stage + 1} has {has}, and no block {block + 1}")
    return [place for place in every if place in set(blocks)]


def backbone_of(model: nn.Module) -> DaViT:
    """The backbone of a model, or the model itself.

    Raises:
        ValueError: there is none.
    """
    backbone = model if isinstance(model, DaViT) else getattr(model, "backbone", None)
    if not isinstance(backbone, DaViT):
        raise ValueError(f"{type(model).__name__} has no DaViT backbone whose attention could be shown")
    return backbone


def seen_whole(model: nn.Module, image: Tensor) -> Tensor:
    """The image (C, H, W) as the backbone is given it: on its device, and padded as detectors do."""
    if isinstance(model, Detector):
        divisor = model.config.head.divisor
        image = F.pad(image, (0, -image.shape[2] % divisor, 0, -image.shape[1] % divisor))
    return image.to(next(model.parameters()))


def window_attention_maps(
    model: nn.Module, image: Tensor, point: tuple[int, int], blocks: Blocks = "last"
) -> list[WindowAttentionMap]:
    """What the token under a pixel attends to, in each block.

    Args:
        model: in eval mode.
        image: (C, H, W), normalised.
        point: y and x, in pixels.
        blocks: which dual blocks.

    Raises:
        ValueError: a point outside the image, or as `record_attention`.
    """
    check_point(point, image.shape[-2:])
    return [each.at_pixel(*point) for each in record_attention(model, image, blocks).windows]


def check_point(point: tuple[float, float], size: Sequence[int]) -> None:
    """Refuse a point (y, x) outside an image of height and width `size`."""
    (y, x), (height, width) = point, size
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"point {y},{x} lies outside the image, which is {height} pixels high and {width} wide")


def channel_attention_maps(model: nn.Module, image: Tensor, blocks: Blocks = "last") -> list[BlockChannels]:
    """The affinity of the channels and the maps they stand for, in each block (arguments of `record_attention`)."""
    return list(record_attention(model, image, blocks).channels)


def received_attention_maps(model: nn.Module, image: Tensor, blocks: Blocks = "last") -> list[Tensor]:
    """The attention each position gets from its window on average, (H, W) in each block."""
    return [each.received() for each in record_attention(model, image, blocks).windows]


def window_weights(module: WindowAttention, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, H, W, C)
    """The weights that the module's fused attention keeps to itself, and the values they mix.

    Returns:
        (B * windows, heads, P * P, P * P) in float32 and (B * windows, heads, P * P, D).
    """
    windows = partition_windows(x, module.window)
    q, k, v = _project(module.qkv, windows, module.head_width)
    return ((q * q.shape[-1] ** -0.5) @ k.mT).float().softmax(-1), v


def channel_weights(module: ChannelAttention, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, H, W, C)
    """The affinity of the module, (B, groups, D, D), and the values it mixes, (B, groups, N, D)."""
    q, k, v = _project(module.qkv, x.flatten(1, 2), module.group_width)
    tokens = module.group_width if module.scale == "channels" else q.shape[-2]
    return channel_affinity(q, k, tokens**-0.5), v


def _project(qkv: nn.Linear, tokens: Tensor, width: int) -> list[Tensor]:
    """Queries, keys and values: each (B, heads or groups, N, D)."""
    parts = qkv(tokens).unflatten(-1, (3, -1, width)).permute(2, 0, 3, 1, 4)
    return list(parts.unbind(0))


def _windows(place: Place, module: WindowAttention, x: Tensor) -> BlockWindows:
    weights, _ = window_weights(module, x)
    H, W, P = x.shape[1], x.shape[2], module.window
    weights = weights.unflatten(0, (-(-H // P), -(-W // P))).cpu()
    return BlockWindows(stage=place[0], block=place[1], side=(H, W), window=P, weights=weights)


def _channels(place: Place, module: ChannelAttention, x: Tensor) -> BlockChannels:
    affinity, v = channel_weights(module, x)
    affinity, v = affinity[0].float().cpu(), v[0].float().cpu()
    side = tuple(x.shape[1:3])
    return BlockChannels(
        stage=place[0],
        block=place[1],
        affinity=affinity,
        values=v.mT.unflatten(-1, side),
        attended=(affinity @ v.mT).unflatten(-1, side),
    )
