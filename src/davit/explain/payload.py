"""What a browser needs to draw an explained picture, as JSON values.

It only copies tiles from sprites (few-colour PNGs), so the page needs no colour code and little data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from davit.explain import drawing
from davit.explain.attention_maps import BlockChannels, BlockWindows
from davit.explain.explained import Cam, Explained, PictureRollout
from davit.models.config import STRIDES

LEVELS = 16
CAM_LEVELS = 64
SOURCES = 4  # of each channel that are named


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How much of an attention goes along; the defaults suit a report with several pictures.

    Attributes:
        queries: positions that may ask, per side; a larger map offers every second one, or third.
        heads: of each block, besides their mean.
        groups: of channels, of each block.
        channels: of each group, the most energetic ones.
        map_side: pixels of a channel's map, at most.
    """

    queries: int = 28
    heads: int = 8
    groups: int = 8
    channels: int = 8
    map_side: int = 56


EVERYTHING = Detail(queries=56, heads=96, groups=96, channels=32)


def sample_data(sample: Explained, detail: Detail | None = None) -> dict[str, Any]:
    """All that a browser needs to draw a picture."""
    detail = detail or Detail()
    return {
        "name": sample.name,
        "right": sample.right,
        "image": drawing.data_uri(sample.image),
        "width": sample.image.width,
        "height": sample.image.height,
        "windows": [window_data(block, detail) for block in sample.record.windows],
        "channels": [channel_data(block, detail) for block in sample.record.channels],
        "answer": [[label, round(share, 6)] for label, share in sample.answer],
        "cams": [cam_data(cam) for cam in sample.cams],
        "rollout": rollout_data(sample.rollout, detail) if sample.rollout else None,
    }


def window_data(block: BlockWindows, detail: Detail) -> dict[str, Any]:
    """The tiles of a lattice of queries: the mean over heads, then single heads below it."""
    (H, W), P = block.side, block.window
    step = -(-max(H, W) // detail.queries)
    rows, columns = lattice(H, step), lattice(W, step)
    tiles = block.tiles(rows, columns)  # (rows, columns, heads, P, P)
    inside = [(i[:, None] // P * P + torch.arange(P)) < side for i, side in ((rows, H), (columns, W))]
    real = tiles * (inside[0][:, None, None, :, None] & inside[1][None, :, None, None, :])
    mean = real.mean(2, keepdim=True)
    shown = torch.cat([mean, real[:, :, : detail.heads]], 2)
    shown = shown / shown.amax((3, 4), keepdim=True).clamp_min(1e-12)
    sheet = shown.permute(2, 0, 3, 1, 4).reshape(-1, len(columns) * P)
    padding = 1.0 - mean.sum((2, 3, 4))
    return {
        "stage": block.stage,
        "block": block.block,
        "side": [H, W],
        "stride": block.stride,
        "window": P,
        "step": step,
        "rows": rows.tolist(),
        "columns": columns.tolist(),
        "heads": block.num_heads,
        "shown": shown.shape[2] - 1,
        "sprite": drawing.data_uri(drawing.sprite(sheet, LEVELS, see_through=True)),
        "peak": percents(mean.amax((2, 3, 4))),
        "padding": percents(padding) if bool((padding > 1e-4).any()) else None,
        "received": _heat(drawing.unit(block.received())),
    }


def channel_data(block: BlockChannels, detail: Detail) -> dict[str, Any]:
    """The affinity of each group side by side, and the maps of its most energetic channels."""
    shown = min(detail.groups, len(block.affinity))
    affinity = block.affinity[:shown]
    affinity = affinity / affinity.amax((1, 2), keepdim=True)
    chosen = [block.energetic(group, detail.channels) for group in range(shown)]
    maps = torch.stack([channel_maps(block, group, chosen[group], detail.map_side) for group in range(shown)])
    h, w = maps.shape[-2:]  # of (groups, 2, n, h, w)
    return {
        "stage": block.stage,
        "block": block.block,
        "groups": len(block.affinity),
        "shown": shown,
        "channels": affinity.shape[-1],
        "side": [h, w],
        "chosen": chosen,
        "affinity": drawing.data_uri(drawing.sprite(affinity.transpose(0, 1).flatten(1), 64)),
        "peak": [round(100 * float(group.max()), 1) for group in block.affinity[:shown]],
        "top": [_sources(block.affinity[group], chosen[group]) for group in range(shown)],
        "maps": drawing.data_uri(drawing.sprite(maps.permute(0, 1, 3, 2, 4).flatten(3).flatten(0, 2), LEVELS)),
    }


def channel_maps(block: BlockChannels, group: int, chosen: Sequence[int], most: int = 56) -> Tensor:
    """Magnitudes of channels before and after the attention, each over its own largest: (2, chosen, h, w)."""
    maps = torch.stack([block.values[group, chosen], block.attended[group, chosen]]).abs()
    maps = _within(maps, most)
    return maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-12)


def _sources(affinity: Tensor, channels: Sequence[int]) -> list[list[list[float]]]:
    """For each channel the channels that it takes most from, and how many percent."""
    best = affinity[list(channels)].topk(min(SOURCES, affinity.shape[-1]))
    rows = zip(best.indices.tolist(), (100 * best.values).tolist(), strict=True)
    return [[[index, round(share, 1)] for index, share in zip(*row, strict=True)] for row in rows]


def cam_data(cam: Cam) -> dict[str, Any]:
    """Grad-CAM of one number of the answer at each map, and its occlusion."""
    maps = [
        {"stage": stage, "stride": STRIDES[stage], "side": list(x.shape), "empty": not x.any()}
        | {"image": _heat(drawing.unit(x), CAM_LEVELS)}
        for stage, x in enumerate(cam.maps)
    ]
    covered = None
    if cam.occlusion is not None:
        image = _heat(drawing.unit(cam.occlusion.clamp_min(0)), CAM_LEVELS)
        covered = {"stride": cam.cell, "side": list(cam.occlusion.shape), "image": image}
        covered |= {"most": round(float(cam.occlusion.max()), 4)}
    target = cam.target
    return {
        "class": target.index,
        "label": target.label,
        "score": round(target.score, 6),
        "stage": target.stage,
        "box": [round(edge, 1) for edge in target.box] if target.box else None,
        "image": maps[target.stage]["image"],
        "maps": maps,
        "occlusion": covered,
    }


def rollout_data(rollout: PictureRollout, detail: Detail) -> dict[str, Any]:
    """The mean, and a tile for each position of a lattice on the last map; ranges are in even shares of the cells."""
    tiles = _within(rollout.tiles, detail.map_side)
    h, w = tiles.shape[-2:]
    sheet = torch.stack([drawing.stretched(tile) for tile in tiles.flatten(0, 1)]).view_as(tiles)
    even = rollout.mean.numel()
    return {
        "image": _heat(drawing.stretched(rollout.mean), CAM_LEVELS),
        "range": [round(even * float(edge), 2) for edge in (rollout.mean.min(), rollout.mean.max())],
        "cells": list(rollout.mean.shape),
        "stride": STRIDES[0],
        "side": list(rollout.side),
        "step": rollout.step,
        "rows": rollout.rows.tolist(),
        "columns": rollout.columns.tolist(),
        "tile": [h, w],
        "tiles": _heat(sheet.transpose(1, 2).reshape(-1, len(rollout.columns) * w)),
        "ranges": [
            [[round(even * float(edge), 2) for edge in tile.aminmax()] for tile in row] for row in rollout.tiles
        ],
    }


def lattice(side: int, step: int) -> Tensor:
    """The middle of every run of `step` positions."""
    return (torch.arange(0, side, step) + step // 2).clamp_max(side - 1)


def percents(shares: Tensor) -> list[list[float]]:
    """Shares as percent, rounded for the page."""
    return [[round(100 * share, 1) for share in row] for row in shares.tolist()]


def _heat(values: Tensor, levels: int = LEVELS) -> str:
    """Values in 0-1 as a picture to lie over another."""
    return drawing.data_uri(drawing.sprite(values, levels, see_through=True))


def _within(maps: Tensor, most: int) -> Tensor:
    """Average maps (..., H, W) down to at most `most` pixels a side."""
    H, W = maps.shape[-2:]
    if max(H, W) <= most:
        return maps
    scale = most / max(H, W)
    return F.interpolate(maps, (max(1, int(H * scale)), max(1, int(W * scale))), mode="area")
