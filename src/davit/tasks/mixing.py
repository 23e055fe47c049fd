"""Mixup and cutmix of neighbours in a batch.

timm mixes image i with image B - 1 - i; here 2i and 2i + 1 are mixed. Images come in random order, so that makes no
difference to what is learnt, but pairs stay together when a batch is dealt out to several processes.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Blend:
    """How the pairs of one batch are mixed.

    Attributes:
        share: how much of an image, and of its target, stays.
        box: rectangle (top, bottom, left, right) that comes from the neighbour; None to blend all pixels.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_blend(
    height: int, width: int, *, mixup: float, cutmix: float, probability: float, switch: float
) -> Blend | None:
    """Draw from NumPy's global generator as timm's `Mixup` does in batch mode; None leaves the batch alone."""
    rng = np.random  # seeded anew for every step
    if rng.rand() >= probability:
        return None
    cut = cutmix > 0 and (mixup == 0 or rng.rand() < switch)
    share = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    if not cut:
        return Blend(share)
    side = np.sqrt(1 - share)
    tall, wide = int(height * side), int(width * side)
    y, x = int(rng.randint(0, height)), int(rng.randint(0, width))
    top, bottom = np.clip((y - tall // 2, y + (tall + 1) // 2), 0, height).tolist()
    left, right = np.clip((x - wide // 2, x + (wide + 1) // 2), 0, width).tolist()
    return Blend(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix_images(images: Tensor, blend: Blend) -> Tensor:  # (B, C, H, W), B even
    """Mix each image with its neighbour."""
    partners = neighbours(images)
    if blend.box is None:
        return images * blend.share + partners * (1 - blend.share)
    top, bottom, left, right = blend.box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed


def mix_targets(targets: Tensor, classes: int, smoothing: float, blend: Blend) -> Tensor:  # (B,) int64
    """Return soft targets, (B, classes): smoothed as cross-entropy does it, mixed as the images are."""
    soft = F.one_hot(targets, classes) * (1 - smoothing) + smoothing / classes
    return soft * blend.share + neighbours(soft) * (1 - blend.share)


def neighbours(values: Tensor) -> Tensor:
    """Swap 2i and 2i + 1 of a batch; the last of an odd batch has no neighbour and stays."""
    order = torch.arange(len(values), device=values.device) ^ 1
    return values[order.clamp(max=len(values) - 1)]
