"""Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928) through both attentions and all that lies between.

Rollout multiplies matrices of shares: row i of a layer's matrix says from which tokens below it token i is mixed. Each
row sums to one, so the rows of the product do. A DaViT has two kinds of tokens, so there are two rollouts.

Positions. From the last map down to the first, whose positions are the cells of 4 x 4 pixels:

- Window attention: (I + A) / 2. A is the mean over heads, block-diagonal by window; the identity is the residual
  branch. Attention to padded tokens is dropped, since they hold nothing of the picture, and the row is scaled to sum
  to one.
- Channel attention: I. It weighs channels by the whole map, but what it then mixes are channels of one position: no
  position takes anything from another by it. Where things are found it does not move.
- A 3x3 position convolution x + conv(x): I + K with rows scaled to one, K the mean over channels of the absolute weight
  of each offset. It is counted because inside a stage nothing else carries anything across the border of a window.
- Merging between stages: the mean absolute weight of each offset of its 2x2 or 3x3 kernel, rows scaled to one; offsets
  that fall on padding are dropped.
- Norms and MLPs work on each position by itself: I. The 7x7 patch embedding lies below the cells and is not followed:
  a cell is drawn as its 4 x 4 pixels, though it sees 7 x 7.

Channels. Inside a stage the D channels of a group are tokens: the product over its blocks of (I + A) / 2, A the
affinity of channel attention; window attention mixes no channels in this sense, I. It ends with the stage: merging
makes new channels of all old ones, so the tokens below are others.

As in the original, the linear maps of values and outputs, the MLPs and all signs are left out: this shows the roads,
not what travels on them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.explain.attention import backbone_of, record_attention, seen_whole
from davit.explain.attention_maps import AttentionRecord, BlockWindows
from davit.models.davit import DaViT, Downsample
from davit.models.windows import count_windows


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """From which cells of the picture positions of a map are mixed, and from which channels channels.

    Attributes:
        stage: index of the stage whose map the positions are of.
        side: H and W of that map.
        rows: the rows of the rollout that were asked for, (K, h, w) float64 on the first map; each sums to one.
        channels: for each stage (groups, D, D) float64, rows sum to one; empty without channel attention.
    """

    stage: int
    side: tuple[int, int]
    rows: Tensor
    channels: tuple[Tensor, ...]


def attention_rollout(
    model: nn.Module,
    image: Tensor,
    *,
    stage: int = 3,
    asking: Tensor | None = None,
    record: AttentionRecord | None = None,
) -> Rollout:
    """Follow positions of a map back to the cells of the picture.

    Args:
        model: a backbone or any model on one, in eval mode.
        image: (C, height, width), normalised.
        stage: whose map; by default the last.
        asking: (K, H, W), shares of the positions of that map, each summing to one: one-hot for single positions; by
            default one row, the mean over all.
        record: the attention of all blocks, if it is at hand.

    Raises:
        ValueError: as `record_attention`.
    """
    record = record or record_attention(model, image, "all")
    backbone = backbone_of(model)
    sides = _sides(backbone, seen_whole(model, image))
    if asking is None:
        H, W = sides[stage]
        asking = torch.full((1, H, W), 1.0 / (H * W))
    windows = {(each.stage, each.block): each for each in record.windows}
    rows = asking.double().cpu()
    for index in reversed(range(stage + 1)):
        rows = _through_stage(backbone, index, rows, windows)
        if index:
            rows = _through_merging(rows, backbone.stages[index].get_submodule("downsample"), sides[index - 1])
    return Rollout(stage=stage, side=sides[stage], rows=rows, channels=_channels(record))


def one_hot(side: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """`asking` for a lattice of positions: (len(rows) * len(columns), H, W), row by row."""
    H, W = side
    places = (rows[:, None] * W + columns).flatten()
    return F.one_hot(places, H * W).unflatten(1, (H, W)).double()


def through_windows(rows: Tensor, attention: BlockWindows) -> Tensor:
    """Multiply rows (K, H, W) by (I + A) / 2 of a block's window attention."""
    (H, W), P = attention.side, attention.window
    down, across = count_windows(H, P), count_windows(W, P)
    padding = (0, across * P - W, 0, down * P - H)

    def by_window(maps: Tensor) -> Tensor:  # (K, H, W) to (down, across, K, P * P)
        tiles = F.pad(maps, padding).unflatten(1, (down, P)).unflatten(3, (across, P))
        return tiles.permute(1, 3, 0, 2, 4).flatten(3)

    real = by_window(rows.new_ones(1, H, W))  # (down, across, 1, P * P)
    shares = attention.weights.mean(2).to(rows) * real
    shares = shares / shares.sum(-1, keepdim=True)
    mixed = by_window(rows) @ shares  # (down, across, K, P * P)
    maps = mixed.unflatten(3, (P, P)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return (rows + maps[:, :H, :W]) / 2


def _through_stage(backbone: DaViT, index: int, rows: Tensor, windows: dict[tuple[int, int], BlockWindows]) -> Tensor:
    """From the output of a stage's blocks back to their input."""
    stage = backbone.stages[index]
    for block in reversed(range(backbone.config.depths[index])):
        dual = stage.get_submodule(f"blocks.{block}")
        for kind in reversed(backbone.config.attentions):
            rows = _through_positions(rows, dual, f"{kind}.cpe_mlp")
            if kind == "window":
                rows = through_windows(rows, windows[index, block])
            rows = _through_positions(rows, dual, f"{kind}.cpe_attn")
    return rows


def _through_positions(rows: Tensor, dual: nn.Module, name: str) -> Tensor:
    """Multiply by I + K, rows scaled to one, of a position convolution, where the model has it."""
    convolution = dict(dual.named_modules()).get(f"{name}.dwconv")
    if not isinstance(convolution, nn.Conv2d):
        return rows
    kernel = _kernel(convolution).to(rows)
    ones = rows.new_ones(1, 1, *rows.shape[1:])
    rows = rows[:, None] / (1 + F.conv2d(ones, kernel, padding=1))
    return (rows + F.conv_transpose2d(rows, kernel, padding=1))[:, 0]


def _through_merging(rows: Tensor, merging: nn.Module, side: tuple[int, int]) -> Tensor:
    """From (K, H, W) to the map that was merged, (K, *side)."""
    assert isinstance(merging, Downsample)
    kernel = _kernel(merging.proj).to(rows)
    size, first = kernel.shape[-1], kernel.shape[-1] // 3  # a 3x3 kernel begins one before its position
    (H, W), (height, width) = rows.shape[1:], side
    reach = 2 * (H - 1) + size - first - height, 2 * (W - 1) + size - first - width
    ones = F.pad(rows.new_ones(1, 1, height, width), (first, max(0, reach[1]), first, max(0, reach[0])))
    spread = F.conv_transpose2d(rows[:, None] / F.conv2d(ones, kernel, stride=2)[..., :H, :W], kernel, stride=2)
    return spread[:, 0, first : first + height, first : first + width]


def _kernel(convolution: nn.Conv2d) -> Tensor:
    """The mean over channels of the absolute weight of each offset, (1, 1, side, side)."""
    return convolution.weight.detach().double().cpu().abs().mean((0, 1), keepdim=True)


def _channels(record: AttentionRecord) -> tuple[Tensor, ...]:
    products: dict[int, Tensor] = {}
    for each in record.channels:
        affinity = each.affinity.double()
        mixing = (torch.eye(affinity.shape[-1], dtype=affinity.dtype) + affinity) / 2
        products[each.stage] = mixing @ products[each.stage] if each.stage in products else mixing
    return tuple(products.values())


def _sides(backbone: DaViT, image: Tensor) -> list[tuple[int, int]]:
    """Height and width of each stage's map."""
    height, width = image.shape[-2:]
    return [(-(-height // stride), -(-width // stride)) for stride in backbone.strides]
