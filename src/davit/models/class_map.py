"""Logits of a segmenter to the class of each pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor

_VALUES = 1 << 26  # interpolated at once: 150 classes of 24 megapixels would take 14 GB


def class_map(logits: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> Tensor:  # (K, h, w)
    """The most likely class of each pixel of a picture, (height, width) uint8, on the CPU.

    Logits are interpolated to the size of the image first and then to that of the picture, as mmsegmentation does it.

    Args:
        logits: of one image.
        resized: height and width of the image, as the model was given it.
        size: height and width of its picture.
    """
    step = max(1, _VALUES // max(resized[0] * resized[1], size[0] * size[1]))
    highest, classes = _highest(logits[:step], resized, size, 0)
    for first in range(step, len(logits), step):
        values, places = _highest(logits[first : first + step], resized, size, first)
        higher = values > highest
        highest, classes = torch.where(higher, values, highest), torch.where(higher, places, classes)
    return classes.cpu()


def _highest(logits: Tensor, resized: tuple[int, int], size: tuple[int, int], first: int) -> tuple[Tensor, Tensor]:
    """The highest logit of each pixel, and its class, of classes from `first` on."""
    large = F.interpolate(logits[None].float(), resized, mode="bilinear", align_corners=False)
    if resized != size:
        large = F.interpolate(large, size, mode="bilinear", align_corners=False)
    values, places = large[0].max(0)
    return values, (places + first).to(torch.uint8)
