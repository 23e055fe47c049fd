"""Augmentation of segmentation: the classes of pixels move with the picture."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from davit.data.segmentation_transforms import SegmentationAugmentation, SegmentationTransform
from davit.preprocessing import Preprocessing
from transform_samples import NO_COLOURS, PLAIN, SIDES, mmcv_size


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.3, 2.5))
def test_segmentation_sizes_are_mmsegs_and_the_rest_is_padding(height: int, width: int, factor: float) -> None:
    augmentation = SegmentationAugmentation(
        scale=(factor, factor), short=24, longest=96, crop=256, flip=0.0, distortion=NO_COLOURS
    )
    mean = Preprocessing(size=(1, 1), interpolation="bilinear")
    picture = Image.fromarray(np.full((height, width, 3), 90, np.uint8))
    pixels, classes = SegmentationTransform(augmentation, mean)(picture, np.full((height, width), 7, np.uint8))
    short, long = int(24 * factor), int(96 * factor)
    rows, columns = (max(1, side) for side in mmcv_size(height, width, short, long))
    assert tuple(pixels.shape) == (3, 256, 256)
    assert (pixels.dtype, classes.dtype) == (torch.float32, torch.int64)
    expected = torch.full((256, 256), 255)
    expected[:rows, :columns] = 7
    assert torch.equal(classes, expected)
    assert (pixels[:, expected == 255] == 0).all()
    colour = (torch.full((3,), 90 / 255) - torch.tensor(mean.mean)) / torch.tensor(mean.std)
    assert torch.allclose(pixels[:, :rows, :columns], colour.view(3, 1, 1).expand(3, rows, columns), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 10_000))
def test_classes_move_with_the_picture_and_none_appears(height: int, width: int, seed: int) -> None:
    """Each class has its own grey, so the picture tells what the classes should be."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 5, (3, 3)).astype(np.uint8)
    classes = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
    classes[:2] = 255
    picture = Image.fromarray(np.stack([np.minimum(classes, 5) * 50] * 3, -1).astype(np.uint8))
    torch.manual_seed(seed)
    augmentation = SegmentationAugmentation(short=70, longest=200, crop=90, distortion=NO_COLOURS)
    pixels, found = SegmentationTransform(augmentation, PLAIN)(picture, classes)
    assert set(found.unique().tolist()) <= set(classes.ravel().tolist()) | {255}
    padding = (found == 255) & (pixels[0] == 0)
    values = torch.where(padding, 255, pixels[0] * 255 / 50)
    smooth = torch.nn.functional.max_pool2d(values[None], 5, 1, 2) == -torch.nn.functional.max_pool2d(
        -values[None], 5, 1, 2
    )
    told = torch.where(found == 255, torch.where(padding, 255, 5), found).float()
    assert (told == values.round())[smooth[0]].all()


def test_the_part_computed_is_the_part_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    transform = SegmentationTransform(SegmentationAugmentation(), PLAIN)
    for _ in range(40):
        height, width, rows, columns = rng.integers(20, 130, 4).tolist()
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        part = (int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1)))
        top, left = int(rng.integers(0, rows - part[0] + 1)), int(rng.integers(0, columns - part[1] + 1))
        whole = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR)).astype(int)
        ours = np.asarray(transform._part(picture, (rows, columns), (top, left), part)).astype(int)
        # On noise a shift by a tenth of a pixel would show as ten levels; Pillow's two passes each round.
        assert np.abs(ours - whole[top : top + part[0], left : left + part[1]]).max() <= 2


def test_crops_of_one_class_are_avoided_ten_times() -> None:
    """A quarter of the places has enough of the second class; pixels that do not count stay out of the shares."""
    classes = np.zeros((40, 80), np.uint8)
    classes[:, 50:] = 255
    classes[:20, :14] = 1
    picture = Image.new("RGB", (80, 40))
    plain = SegmentationAugmentation(scale=(1, 1), short=40, longest=80, crop=20, distortion=NO_COLOURS)

    def balanced(most: float) -> float:
        transform = SegmentationTransform(replace(plain, most_of_one_class=most), PLAIN)
        good = 0
        for _ in range(300):
            counts = transform(picture, classes)[1].flatten().bincount(minlength=256)[:255]
            good += int(counts.count_nonzero() > 1 and counts.max() < 0.75 * counts.sum())
        return good / 300

    torch.manual_seed(0)
    once = balanced(1.0)
    assert 0.03 < once < 0.4
    assert abs(balanced(0.75) - (1 - (1 - once) ** 11)) < 0.12  # ten tries and the last resort
