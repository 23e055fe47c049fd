"""Cutting regions out of a pyramid (Mask R-CNN section 3, FPN equation 1), aligned to pixel centres as mmdet 2 does.

torchvision's own pooler cannot be told the alignment, and guesses strides from the first image that it sees.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FINEST_SIDE = 56  # regions smaller than twice this side in pixels come from the finest level


def pool_regions(maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int) -> Tensor:
    """Sample each region on a grid, from the level that suits its size.

    Args:
        maps: (B, C, H_i, W_i), the finest first.
        strides: pixels between the positions of each map.
        boxes: the regions of each image, (N_i, 4) in pixels, finite.
        side: rows and columns of the result.

    Returns:
        (N_0 + N_1 + ..., C, side, side), image by image, in the maps' type; sampled in float32.
    """
    images = torch.cat([torch.full_like(box[:, :1], i) for i, box in enumerate(boxes)])
    return sample_regions(maps, strides, torch.cat((images, torch.cat(list(boxes))), dim=1), side)


def sample_regions(maps: Sequence[Tensor], strides: Sequence[int], regions: Tensor, side: int) -> Tensor:
    """The same for regions (N, 5): the index of the image, then the box."""
    from torchvision.ops import roi_align  # imports as much as torch itself; classifiers do without

    levels = region_levels(regions[:, 1:], len(maps))
    places = [(levels == level).nonzero().squeeze(1) for level in range(len(maps))]
    pooled = [
        roi_align(x.float(), regions[place], (side, side), 1 / stride, sampling_ratio=0, aligned=True)
        for x, stride, place in zip(maps, strides, places, strict=True)
    ]
    return torch.cat(pooled)[torch.cat(places).argsort()].to(maps[0].dtype)


def region_levels(boxes: Tensor, count: int) -> Tensor:
    """The level (N,) that suits each box (N, 4), 0 being the finest of `count`."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (side / FINEST_SIDE + 1e-6).log2().floor().clamp(0, count - 1).long()


def mask_targets(masks: Tensor, boxes: Tensor, owners: Tensor, side: int) -> Tensor:
    """What the mask head learns: the mask of each region's object inside the region, 0 or 1.

    Args:
        masks: (M, height, width) bool.
        boxes: (N, 4), regions in pixels, finite.
        owners: (N,) int64, the mask of each region.
        side: rows and columns of the result.

    Returns:
        (N, side, side) float32.
    """
    from torchvision.ops import roi_align  # imports as much as torch itself; classifiers do without

    regions = torch.cat((owners[:, None].to(boxes), boxes), dim=1)
    shares = roi_align(masks[:, None].float(), regions, (side, side), 1.0, sampling_ratio=0, aligned=True)
    return (shares[:, 0] >= 0.5).float()
