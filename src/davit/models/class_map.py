"""Logits of a segmenter to those of each pixel, and to its class."""

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (1, 2, 4, 8, 16, 32)  # pixels that a logit may stand for, along a side
_VALUES = 1 << 26  # interpolated at once: 150 classes of 24 megapixels would take 14 GB


def pixel_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:  # (B, K, h, w)
    """Interpolate the logits of images to each of their pixels, (B, K, height, width).

    A logit stands for a square of pixels. Where the image's sides are no multiples of that, the last squares reach
    beyond it, and so far they are cut off. (mmsegmentation squeezes them into the image, so that a map of 40 logits
    over 158 pixels lies two pixels off at its end.) Maps of other sizes are interpolated to the image's.

    Args:
        logits: of images of one size.
        size: their height and width.
    """
    height, width = size
    for stride in STRIDES:
        if (-(-height // stride), -(-width // stride)) == logits.shape[-2:]:
            reached = (stride * logits.shape[-2], stride * logits.shape[-1])
            return F.interpolate(logits, reached, mode="bilinear", align_corners=False)[..., :height, :width]
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def class_map(logits: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> Tensor:  # (K, h, w)
    """The most likely class of each pixel of a picture, (height, width) uint8, on the CPU.

    Logits are interpolated to the pixels of the image first and then to the size of the picture.

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
    large = pixel_logits(logits[None].float(), resized)
    if resized != size:
        large = F.interpolate(large, size, mode="bilinear", align_corners=False)
    values, places = large[0].max(0)
    return values, (places + first).to(torch.uint8)
