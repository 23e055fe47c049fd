"""Segmentation of pictures of any size: whole, through a sliding window, and averaged over sizes and flips.

The formulas are mmsegmentation's `whole_inference`, `slide_inference` and `aug_test`, but for the pixels that a logit
stands for (`pixel_logits`). A model is here any function from images (B, C, H, W) to logits (B, K, h, w) of any size.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch.nn.functional as F
from torch import Tensor

from davit.models.class_map import pixel_logits

Model = Callable[[Tensor], Tensor]

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # the official multi-scale test


def whole(model: Model, images: Tensor) -> Tensor:  # (B, C, height, width)
    """Return logits of each pixel, (B, K, height, width), in one pass."""
    return pixel_logits(model(images), (images.shape[-2], images.shape[-1]))


def sliding(model: Model, images: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return logits of each pixel, (B, K, height, width), averaged where windows overlap.

    The last windows of a row or column are shifted inwards to end with the image; an image smaller than a window is
    taken as it is.

    Args:
        model: gives the logits of a window.
        images: (B, C, height, width).
        crop: height and width of a window.
        stride: rows and columns from one window to the next.

    Raises:
        ValueError: windows that leave gaps.
    """
    if min(*crop, *stride) < 1 or stride[0] > crop[0] or stride[1] > crop[1]:
        raise ValueError(f"stride must lie in 1 to the side of a window, got stride={stride} and crop={crop}")
    rows, columns = (_windows(images.shape[axis - 2], crop[axis], stride[axis]) for axis in range(2))
    if len(rows) == len(columns) == 1:
        return whole(model, images)
    count = images.new_zeros(images.shape[-2:])
    total: Tensor | None = None
    for row, column in product(rows, columns):
        logits = whole(model, images[..., row, column])
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], *images.shape[-2:])
        total[..., row, column] += logits
        count[row, column] += 1
    assert total is not None
    return total.div_(count)


def multi_scale(
    model: Model, images: Tensor, scale: float = 1.0, ratios: Sequence[float] = RATIOS, *, flip: bool = True
) -> Tensor:
    """Return probabilities of each pixel, (B, K, height, width), averaged over sizes and mirror images.

    Every size is made from the pixels given, so give those of the picture itself. Reduction is antialiased, as for all
    our images; OpenCV's, behind mmsegmentation, is not.

    Args:
        model: gives the logits of an image, perhaps by `sliding`.
        images: pictures in their own size, normalised, (B, C, height, width).
        scale: size of an image at ratio 1 over that of its picture, such as 512 over the picture's short side.
        ratios: the sizes to average, relative to that.
        flip: also average the mirror images.

    Raises:
        ValueError: no ratios, or sizes that are not positive.
    """
    if not ratios or min(scale, *ratios) <= 0:
        raise ValueError(f"multi_scale needs ratios and a scale above 0, got {tuple(ratios)} and {scale}")
    height, width = images.shape[-2:]
    total: Tensor | None = None
    for ratio in ratios:
        size = (max(1, int(height * scale * ratio + 0.5)), max(1, int(width * scale * ratio + 0.5)))
        view = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        for mirrored in (False, True) if flip else (False,):
            logits = whole(model, view.flip(-1) if mirrored else view)
            shares = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False).softmax(1)
            shares = shares.flip(-1) if mirrored else shares
            total = shares if total is None else total.add_(shares)
    assert total is not None
    return total.div_(len(ratios) * (2 if flip else 1))


def _windows(side: int, crop: int, stride: int) -> list[slice]:
    """Where the windows along one side lie."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    ends = (min(index * stride + crop, side) for index in range(count))
    return [slice(max(end - crop, 0), end) for end in ends]
