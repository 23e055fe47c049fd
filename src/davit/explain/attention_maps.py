"""What attention of both kinds looks like in one block: for every query, and for every channel.

Shapes: H x W positions of a stage's map, P = window side, D = channels of a head or group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from davit.models.config import STRIDES


@dataclass(frozen=True, kw_only=True)
class WindowAttentionMap:
    """What one query position attends to, placed on its stage's map.

    Attributes:
        stage: index of the stage.
        block: index of its dual block.
        query: row and column of the query on the map.
        window: top, left, bottom and right of its window on the map, padding cropped.
        heads: attention of each head, (heads, H, W), zero outside the window.
        padding: share of each head's attention that went to padded tokens, (heads,); heads and padding sum to one.
    """

    stage: int
    block: int
    query: tuple[int, int]
    window: tuple[int, int, int, int]
    heads: Tensor
    padding: Tensor

    @property
    def mean(self) -> Tensor:
        """The average over heads, (H, W)."""
        return self.heads.mean(0)


@dataclass(frozen=True, kw_only=True)
class BlockWindows:
    """The window attention of one block, for every query.

    Attributes:
        stage: index of the stage.
        block: index of its dual block.
        side: H and W of its map.
        window: P.
        weights: (window rows, window columns, heads, P * P queries, P * P keys); rows sum to one, padding included.
    """

    stage: int
    block: int
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
            block=self.block,
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
class BlockChannels:
    """The channel attention of one block.

    Attributes:
        stage: index of the stage.
        block: index of its dual block.
        affinity: attention of each channel (row) to each channel of its group, (groups, D, D); rows sum to one.
        values: the map each channel token stands for, (groups, D, H, W).
        attended: what each channel becomes: the maps of its group, mixed by its row, (groups, D, H, W).
    """

    stage: int
    block: int
    affinity: Tensor
    values: Tensor
    attended: Tensor

    def energetic(self, group: int, count: int) -> list[int]:
        """The channels of a group whose attended maps have the largest mean square, largest first."""
        energy = self.attended[group].square().mean((1, 2))
        return energy.topk(min(count, len(energy))).indices.tolist()


@dataclass(frozen=True, kw_only=True)
class AttentionRecord:
    """The attention of chosen blocks, in order; an attention that the model lacks has no entries."""

    windows: tuple[BlockWindows, ...]
    channels: tuple[BlockChannels, ...]
