"""Attention weights of both kinds, recomputed from what a real forward fed to the attention modules.

Shapes: H x W positions of a stage's map, P = window side, D = channels of a head or group, C = channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from davit.models.attention import ChannelAttention, WindowAttention, channel_affinity
from davit.models.classifier import Classifier
from davit.models.config import STRIDES
from davit.models.davit import DaViT
from davit.models.windows import partition_windows

LAST_BLOCKS = (-1, -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class WindowAttentionMap:
    """What one query position attends to, placed on its stage's map.

    Attributes:
        stage: index of the stage.
        query: row and column of the query on the map.
        window: top, left, bottom and right of its window on the map, padding cropped.
        heads: attention of each head, (heads, H, W), zero outside the window.
        padding: share of each head's attention that went to padded tokens, (heads,); heads and padding sum to one.
    """

    stage: int
    query: tuple[int, int]
    window: tuple[int, int, int, int]
    heads: Tensor
    padding: Tensor

    @property
    def mean(self) -> Tensor:
        """The average over heads, (H, W)."""
        return self.heads.mean(0)


@dataclass(frozen=True, kw_only=True)
class StageWindows:
    """The window attention of one block, for every query.

    Attributes:
        stage: index of the stage.
        side: H and W of its map.
        window: P.
        weights: (window rows, window columns, heads, P * P queries, P * P keys); rows sum to one, padding included.
    """

    stage: int
    side: tuple[int, int]
    window: int
    weights: Tensor

    @property
    def stride(self) -> int:
        """Pixels a position covers."""
        return STRIDES[self.stage]

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.weights.shape[2]

    def tiles(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Attention of a grid of queries, padding included: (rows, columns, heads, P, P)."""
        P = self.window
        within = (rows % P)[:, None] * P + columns % P
        tiles = self.weights[(rows // P)[:, None], columns // P, :, within]  # (rows, columns, heads, P * P)
        return tiles.unflatten(-1, (P, P))

    def at(self, row: int, column: int) -> WindowAttentionMap:
        """The attention of the query at one position of the map."""
        (H, W), P = self.side, self.window
        tile = self.tiles(torch.tensor([row]), torch.tensor([column]))[0, 0]
        top, left = row // P * P, column // P * P
        bottom, right = min(top + P, H), min(left + P, W)
        heads = tile.new_zeros(self.num_heads, H, W)
        heads[:, top:bottom, left:right] = tile[:, : bottom - top, : right - left]
        tile[:, : bottom - top, : right - left] = 0.0  # what is left went to the padding
        return WindowAttentionMap(
            stage=self.stage,
            query=(row, column),
            window=(top, left, bottom, right),
            heads=heads,
            padding=tile.sum((1, 2)),
        )

    def at_pixel(self, y: float, x: float) -> WindowAttentionMap:
        """The attention of the query under a pixel of the image."""
        return self.at(int(y) // self.stride, int(x) // self.stride)

    def received(self) -> Tensor:
        """Mean attention each position gets, over heads and the real queries of its window: (H, W)."""
        (H, W), P = self.side, self.window
        rows, columns = self.weights.shape[:2]
        padded = torch.zeros(rows * P, columns * P)
        padded[:H, :W] = 1.0
        real = padded.view(rows, P, columns, P).transpose(1, 2).flatten(2)  # (rows, columns, P * P queries)
        total = (self.weights.mean(2) * real[..., None]).sum(2) / real.sum(2, keepdim=True)
        return total.unflatten(-1, (P, P)).transpose(1, 2).reshape(rows * P, columns * P)[:H, :W]


@dataclass(frozen=True, kw_only=True)
class StageChannels:
    """The channel attention of one block.

    Attributes:
        stage: index of the stage.
        affinity: attention of each channel (row) to each channel of its group, (groups, D, D); rows sum to one.
        values: the map each channel token stands for, (groups, D, H, W).
        attended: what each channel becomes: the maps of its group, mixed by its row, (groups, D, H, W).
    """

    stage: int
    affinity: Tensor
    values: Tensor
    attended: Tensor

    def energetic(self, group: int, count: int) -> list[int]:
        """The channels of a group whose attended maps have the largest mean square, largest first."""
        energy = self.attended[group].square().mean((1, 2))
        return energy.topk(min(count, len(energy))).indices.tolist()


@dataclass(frozen=True, kw_only=True)
class AttentionRecord:
    """The attention of one block per stage; an attention that the model lacks has no entries."""

    windows: tuple[StageWindows, ...]
    channels: tuple[StageChannels, ...]


def record_attention(model: Classifier | DaViT, image: Tensor, blocks: Sequence[int] = LAST_BLOCKS) -> AttentionRecord:
    """Run one forward and recompute the attention inside it.

    Args:
        model: in eval mode; it is left as it was.
        image: (C, H, W), normalised; any size.
        blocks: which dual block of each of the four stages.

    Returns:
        Weights and maps in float32 on the CPU.

    Raises:
        ValueError: a model in training mode, whose dropped paths would show in the maps, or a block that is not there.
    """
    if model.training:
        raise ValueError("attention is read from a model in eval mode: call model.eval() first")
    backbone = model if isinstance(model, DaViT) else model.backbone
    chosen = [_attentions(backbone, stage, block) for stage, block in enumerate(blocks)]
    like = next(backbone.parameters())
    with torch.no_grad(), _inputs(chosen) as inputs:
        backbone(image[None].to(like))
        found = [(stage, m, inputs[m]) for stage, modules in enumerate(chosen) for m in modules]
        windows = [_windows(stage, m, x) for stage, m, x in found if isinstance(m, WindowAttention)]
        channels = [_channels(stage, m, x) for stage, m, x in found if isinstance(m, ChannelAttention)]
    return AttentionRecord(windows=tuple(windows), channels=tuple(channels))


def window_attention_maps(
    model: Classifier | DaViT, image: Tensor, point: tuple[int, int], blocks: Sequence[int] = LAST_BLOCKS
) -> list[WindowAttentionMap]:
    """What the token under a pixel attends to, at each stage.

    Args:
        model: in eval mode.
        image: (C, H, W), normalised.
        point: y and x, in pixels.
        blocks: which dual block of each stage; by default the last.
    """
    (y, x), (height, width) = point, image.shape[-2:]
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"point {point} lies outside the image, which is {height} pixels high and {width} wide")
    return [stage.at_pixel(y, x) for stage in record_attention(model, image, blocks).windows]


def channel_attention_maps(
    model: Classifier | DaViT, image: Tensor, blocks: Sequence[int] = LAST_BLOCKS
) -> list[StageChannels]:
    """The affinity of the channels and the maps they stand for, at each stage (arguments of `record_attention`)."""
    return list(record_attention(model, image, blocks).channels)


def received_attention_maps(
    model: Classifier | DaViT, image: Tensor, blocks: Sequence[int] = LAST_BLOCKS
) -> list[Tensor]:
    """The attention each position gets from its window on average, (H, W) at each stage."""
    return [stage.received() for stage in record_attention(model, image, blocks).windows]


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


def _windows(stage: int, module: WindowAttention, x: Tensor) -> StageWindows:
    weights, _ = window_weights(module, x)
    H, W, P = x.shape[1], x.shape[2], module.window
    return StageWindows(
        stage=stage, side=(H, W), window=P, weights=weights.unflatten(0, (-(-H // P), -(-W // P))).cpu()
    )


def _channels(stage: int, module: ChannelAttention, x: Tensor) -> StageChannels:
    affinity, v = channel_weights(module, x)
    affinity, v = affinity[0].float().cpu(), v[0].float().cpu()
    side = tuple(x.shape[1:3])
    return StageChannels(
        stage=stage,
        affinity=affinity,
        values=v.mT.unflatten(-1, side),
        attended=(affinity @ v.mT).unflatten(-1, side),
    )


def _attentions(backbone: DaViT, stage: int, block: int) -> list[nn.Module]:
    """The attention modules of one dual block, in order."""
    depth = backbone.config.depths[stage]
    if not -depth <= block < depth:
        raise ValueError(f"stage {stage} has {depth} dual blocks, there is no block {block}")
    dual = backbone.get_submodule(f"stages.{stage}.blocks.{block % depth}")
    return [each.get_submodule("attn") for each in dual.children()]


@contextmanager
def _inputs(modules: Sequence[Sequence[nn.Module]]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect what the modules are given while the context lasts."""
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[module] = args[0]

    handles = [module.register_forward_pre_hook(keep) for stage in modules for module in stage]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
