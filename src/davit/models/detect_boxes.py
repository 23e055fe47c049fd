"""Boxes of detectors: anchors, their coding as offsets, and the choice among overlapping ones; mmdet 2's conventions.

A box is left, top, right, bottom in pixels. Pixel i covers the interval from i to i + 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE_LIMIT = math.log(1000 / 16)  # logarithm of how much larger or smaller than its anchor a box may get


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Boxes of fixed shapes at every position of every level, centred on the corner of the position's first pixel.

    Unlike torchvision's they are not rounded to whole pixels, and strides are given, not guessed from the maps.

    Attributes:
        strides: pixels between the positions of each level.
        scales: sides of square anchors over the stride.
        ratios: height over width.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def per_position(self) -> int:
        """Anchors at each position."""
        return len(self.scales) * len(self.ratios)

    def __call__(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return (H * W * per_position, 4) for each map: row by row, then ratio by ratio, then scale by scale."""
        return [
            self._level(x.shape[-2], x.shape[-1], stride, x.device)
            for x, stride in zip(maps, self.strides, strict=True)
        ]

    def _level(self, rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
        shapes = [(s * stride / math.sqrt(r), s * stride * math.sqrt(r)) for r in self.ratios for s in self.scales]
        cell = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes], device=device)
        y = torch.arange(rows, device=device) * stride
        x = torch.arange(columns, device=device) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)
        return (centres + cell).view(-1, 4)


def inside(anchors: Tensor, extent: tuple[int, int]) -> Tensor:
    """Which anchors (N, 4) are centred in an image of height and width `extent`, rather than in a larger neighbour."""
    height, width = extent
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
    return (x < width - 0.5) & (y < height - 0.5)


def encode(objects: Tensor, boxes: Tensor, deviations: tuple[float, ...]) -> Tensor:
    """Code each object (N, 4) relative to its box (N, 4): shift over size, and logarithm of the ratio of sizes."""
    size, target = boxes[:, 2:] - boxes[:, :2], objects[:, 2:] - objects[:, :2]
    shift = (objects[:, :2] + objects[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return torch.cat((shift / size, (target / size).log()), dim=1) / boxes.new_tensor(deviations)


def decode(offsets: Tensor, boxes: Tensor, deviations: tuple[float, ...]) -> Tensor:
    """Undo `encode`: offsets and boxes (..., 4) that broadcast against each other."""
    offsets = offsets * boxes.new_tensor(deviations)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + offsets[..., :2] * size
    half = offsets[..., 2:].clamp(-SIZE_LIMIT, SIZE_LIMIT).exp() * size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (..., 4) at the borders of an image of height and width `size`.

    What is no number becomes 0: a model that diverged must not send RoIAlign outside its memory.
    """
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1).nan_to_num(0.0)


def select(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the most certain of boxes (N, 4) that overlap in a group, and of those the `count` best, best first."""
    from torchvision.ops import batched_nms  # imports as much as torch itself; classifiers do without

    kept = batched_nms(boxes, scores, groups, threshold)[:count]
    return boxes[kept], scores[kept], groups[kept]
