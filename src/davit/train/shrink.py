"""Smaller images in the first steps of a run: progressive learning with two sizes (arXiv 2104.00298, section 4)."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from davit.structures import Batch, Instances


def shrunk(batch: Batch, scale: float) -> Batch:
    """Shrink the images of a batch on its device, with antialiasing, and the boxes and masks of objects with them.

    Classes of pixels stay as large as they are: the loss brings logits to the size of the labels.

    Args:
        batch: any task's.
        scale: new sides over old ones, in (0, 1]; sides are rounded to pixels.
    """
    if scale == 1:
        return batch
    height, width = batch.images.shape[-2:]
    size = (_side(height, scale), _side(width, scale))
    images = F.interpolate(batch.images, size, mode="bilinear", antialias=True)
    targets = batch.targets
    if isinstance(targets, tuple):
        targets = tuple(_smaller(target, size[0] / height, size[1] / width) for target in targets)
    sizes = tuple((_side(h, scale), _side(w, scale)) for h, w in batch.sizes)
    return replace(batch, images=images, targets=targets, sizes=sizes)


def _side(pixels: int, scale: float) -> int:
    return max(1, round(pixels * scale))


def _smaller(objects: Instances, down: float, across: float) -> Instances:
    factors = objects.boxes.new_tensor((across, down, across, down))
    return replace(objects, boxes=objects.boxes * factors, masks=_smaller_masks(objects.masks, down, across))


def _smaller_masks(masks: Tensor | None, down: float, across: float) -> Tensor | None:
    if masks is None or not len(masks):
        return masks
    size = (_side(masks.shape[1], down), _side(masks.shape[2], across))
    return F.interpolate(masks[None].float(), size, mode="bilinear", antialias=True)[0] >= 0.5
