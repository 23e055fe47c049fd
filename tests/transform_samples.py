"""Pictures that tell where each pixel came from, and augmentations that change one thing, for tests."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from davit.data.detection_transforms import DetectionAugmentation
from davit.data.photometric import PhotometricDistortion
from davit.preprocessing import Preprocessing
from davit.structures import Instances

PLAIN = Preprocessing(size=(1, 1), interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
STILL = DetectionAugmentation(flip=0.0, crop_probability=0.0, short_sides=(60,), longest=1333)
CUT = replace(STILL, crop_probability=1.0, crop_short_sides=(90,), crop_sides=(30, 70), resize_crops=False)
NO_COLOURS = PhotometricDistortion(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=0)
SIDES = st.integers(30, 200)


def mmcv_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """mmcv.imrescale's rule, written from its description."""
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def blocks(height: int, width: int, seed: int, count: int = 5) -> tuple[Image.Image, Instances]:
    """Rectangles with masks; the picture is bright in them, and dark elsewhere."""
    rng = np.random.default_rng(seed)
    boxes, masks = [], np.zeros((count, height, width), bool)
    for mask in masks:
        w, h = rng.integers(8, width // 2), rng.integers(8, height // 2)
        left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        mask[top : top + h, left : left + w] = True
        boxes.append([left, top, left + w, top + h])
    picture = np.where(masks.any(0), 255, 0).astype(np.uint8)
    instances = Instances(
        boxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.arange(count), masks=torch.from_numpy(masks)
    )
    return Image.fromarray(np.stack([picture] * 3, -1)), instances


def ruler(height: int, width: int) -> Image.Image:
    """Red tells the column of a pixel, green its row."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))
