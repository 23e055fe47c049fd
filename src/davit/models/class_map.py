"""Logits of a segmenter to the class of each pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def class_map(logits: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> Tensor:  # (K, h, w)
    """The most likely class of each pixel of a picture, (height, width) uint8, on the CPU.

    Logits are interpolated to the size of the image first and then to that of the picture, as mmsegmentation does it.

    Args:
        logits: of one image.
        resized: height and width of the image, as the model was given it.
        size: height and width of its picture.
    """
    large = F.interpolate(logits[None].float(), resized, mode="bilinear", align_corners=False)
    if resized != size:
        large = F.interpolate(large, size, mode="bilinear", align_corners=False)
    return large[0].argmax(0).to(torch.uint8).cpu()
