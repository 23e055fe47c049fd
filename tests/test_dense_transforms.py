"""Augmentation of detection, and what it has in common with that of segmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import masks_to_boxes

from davit.data.detection_transforms import DetectionAugmentation, DetectionTransform
from davit.data.photometric import PhotometricDistortion
from davit.data.scenes import Scenes
from davit.data.segmentation_transforms import SegmentationAugmentation, SegmentationTransform
from davit.preprocessing import Preprocessing
from davit.records import from_json, to_json
from davit.seeding import seed_everything
from davit.structures import Instances
from transform_samples import CUT, NO_COLOURS, PLAIN, SIDES, STILL, blocks, mmcv_size, ruler


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 90), st.integers(0, 60))
def test_sizes_are_mmcvs(height: int, width: int, short: int, more: int) -> None:
    augmentation = replace(STILL, short_sides=(short,), crop_short_sides=(short,), longest=short + more)
    nothing = Instances(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    pixels, found = DetectionTransform(augmentation, PLAIN)(Image.new("RGB", (width, height)), nothing)
    expected = mmcv_size(height, width, short, short + more)
    assert tuple(pixels.shape) == (3, max(1, expected[0]), max(1, expected[1]))
    assert found.boxes.shape == (0, 4)
    assert found.masks is None


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 10_000), st.sampled_from(["resize", "crop", "crop and resize"]), st.booleans())
@example(height=81, width=118, seed=10_000, way="resize", flip=False)  # a column between two objects
def test_picture_boxes_and_masks_move_together(height: int, width: int, seed: int, way: str, flip: bool) -> None:
    picture, instances = blocks(height, width, seed)
    torch.manual_seed(seed)
    augmentation = {
        "resize": replace(STILL, short_sides=(20, 60, 150)),
        "crop": replace(CUT, crop_short_sides=(90, 120)),
        "crop and resize": replace(CUT, short_sides=(50, 110), resize_crops=True),
    }[way]
    pixels, found = DetectionTransform(replace(augmentation, flip=float(flip)), PLAIN)(picture, instances)
    size = tuple(pixels.shape[1:])
    assert len(found.boxes) == len(found.labels) == len(found.masks)
    assert tuple(found.masks.shape[1:]) == size
    assert found.masks.dtype == torch.bool
    assert ((found.boxes >= 0) & (found.boxes <= torch.tensor([size[1], size[0]] * 2))).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    slack = 1.0 + 1e-3
    if way == "crop and resize":  # a mask is rounded to pixels twice, the first time before it grows
        slack += 110 / 30
    seen = found.masks.flatten(1).any(1)
    shown = masks_to_boxes(found.masks[seen]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert (shown - found.boxes[seen]).abs().max().item() <= slack if seen.any() else True
    for box in found.boxes[~seen]:  # only a sliver can fall between pixels
        assert min(box[2] - box[0], box[3] - box[1]) <= slack
    bright, union = pixels[0] > 0.5, found.masks.any(0)
    # Of each object: a dark line between two of them may be narrower than a pixel, and the masks meet over it.
    sides = torch.stack([found.masks, ~found.masks], 1).float()
    edge = (torch.nn.functional.max_pool2d(sides, 11, 1, 5).prod(1) > 0).any(0)
    edge[:2], edge[-2:], edge[:, :2], edge[:, -2:] = True, True, True, True  # what lies just outside shines in
    assert (bright == union)[~edge].all()


@settings(max_examples=40, deadline=None)
@given(st.integers(90, 200), st.integers(90, 200), st.integers(0, 10_000))
def test_a_crop_keeps_what_has_area_in_it_and_nothing_else(height: int, width: int, seed: int) -> None:
    _, instances = blocks(height, width, seed)
    torch.manual_seed(seed)
    short = min(height, width)
    pixels, found = DetectionTransform(replace(CUT, crop_short_sides=(short,)), PLAIN)(ruler(height, width), instances)
    left, top = (round(255 * float(pixels[channel, 0, 0])) for channel in (0, 1))
    right, bottom = left + pixels.shape[2], top + pixels.shape[1]
    assert 30 <= pixels.shape[1] <= 70
    assert 30 <= pixels.shape[2] <= 70
    expected = []
    for box, label in zip(instances.boxes.tolist(), instances.labels.tolist(), strict=True):
        edges = [max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)]
        if edges[2] > edges[0] and edges[3] > edges[1]:
            expected.append([label, edges[0] - left, edges[1] - top, edges[2] - left, edges[3] - top])
    assert [[label, *box] for label, box in zip(found.labels.tolist(), found.boxes.tolist(), strict=True)] == expected
    kept = instances.masks[found.labels]
    assert torch.equal(found.masks, kept[:, top:bottom, left:right])


def test_a_flip_mirrors_everything() -> None:
    picture, instances = blocks(60, 80, 3)
    pixels, found = DetectionTransform(replace(STILL, flip=1.0), PLAIN)(picture, instances)
    assert torch.equal(pixels, PLAIN.tensor(picture).flip(2))
    assert torch.equal(found.masks, instances.masks.flip(2))
    expected = instances.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor([80.0, 0, 80, 0])
    assert torch.equal(found.boxes, expected)


def test_annotated_boxes_beyond_the_picture_are_clipped_or_dropped() -> None:
    boxes = torch.tensor([[-5.0, -5, 20, 30], [70, 50, 99, 99], [90, 10, 99, 20], [10, 10, 10, 20]])
    instances = Instances(boxes=boxes, labels=torch.arange(4))
    _, found = DetectionTransform(STILL, PLAIN)(Image.new("RGB", (80, 60)), instances)
    assert found.boxes.tolist() == [[0, 0, 20, 30], [70, 50, 80, 60]]
    assert found.labels.tolist() == [0, 1]


def test_the_default_is_the_official_recipe() -> None:
    """Both branches as often, short sides 480 to 800 by 32, crops between 384 and 600 of a picture of 400 to 600."""
    official = DetectionAugmentation()
    assert official.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    picture, nothing = ruler(30, 40), Instances(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    picture = picture.resize((40, 30))
    small = replace(
        official,
        short_sides=tuple(side // 16 for side in official.short_sides),
        crop_short_sides=(25, 31, 37),
        crop_sides=(24, 37),
        longest=1333 // 16,
    )
    torch.manual_seed(0)
    sizes = [tuple(DetectionTransform(small, PLAIN)(picture, nothing)[0].shape[1:]) for _ in range(800)]
    whole = {mmcv_size(30, 40, side, small.longest) for side in small.short_sides}
    assert {min(size) for size in sizes} == set(small.short_sides)
    crops = sum(size not in whole for size in sizes)
    assert 0.38 < crops / 800 < 0.52  # a few crops happen to have the whole picture's shape
    counts = np.bincount([min(size) for size in sizes])[list(small.short_sides)]
    assert counts.min() > 800 / 11 / 2


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flips_come_as_often_as_asked(share: float) -> None:
    picture, nothing = ruler(10, 12), Instances(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    detection = DetectionTransform(replace(STILL, flip=share, short_sides=(10,)), PLAIN)
    plain = SegmentationAugmentation(scale=(1, 1), short=10, longest=12, crop=12, flip=share, distortion=NO_COLOURS)
    segmentation = SegmentationTransform(plain, PLAIN)
    classes = np.zeros((10, 12), np.uint8)
    torch.manual_seed(1)
    for flipped in (
        [bool(detection(picture, nothing)[0][0, 0, 0] > 0) for _ in range(600)],
        [bool(segmentation(picture, classes)[0][0, 0, 0] > 0) for _ in range(600)],
    ):
        assert abs(np.mean(flipped) - share) <= 5 * np.sqrt(share * (1 - share) / 600)


def test_the_seed_of_a_sample_decides_everything() -> None:
    scene, found = Scenes("train", 1, "detection")[0]
    _, classes = Scenes("train", 1, "segmentation")[0]
    detection = DetectionTransform(
        DetectionAugmentation(short_sides=(100, 128, 150), crop_short_sides=(110, 140), crop_sides=(70, 100)), PLAIN
    )
    segmentation = SegmentationTransform(SegmentationAugmentation(short=128, longest=200, crop=100), PLAIN)

    def once(*keys: int) -> list[torch.Tensor]:
        seed_everything(*keys)
        pixels, moved = detection(scene, found)
        return [pixels, moved.boxes, moved.labels, moved.masks, *segmentation(scene, classes)]

    assert all(torch.equal(a, b) for a, b in zip(once(1, 2, 3), once(1, 2, 3), strict=True))
    assert len({tuple(once(1, 2, index)[4].flatten()[::7].tolist()) for index in range(5)}) == 5


def test_digits_keep_their_size_range_and_grey_models_see_grey() -> None:
    """The form for digit scenes: another scale, cut back to 128 pixels."""
    scenes = Scenes("train", 30, "detection")
    augmentation = replace(
        CUT, crop_short_sides=tuple(range(104, 161, 8)), crop_sides=(128, 128), short_sides=(128,), longest=160
    )
    grey = Preprocessing(size=(128, 128), interpolation="bilinear", mean=(0.5,), std=(0.25,))
    transform = DetectionTransform(augmentation, grey)
    heights = set()
    for index in range(len(scenes)):
        pixels, found = transform(*scenes[index])
        heights.add(pixels.shape[1])
        assert pixels.shape[0] == 1
        assert pixels.abs().max() <= 2
        assert type(found.boxes) is type(found.masks) is torch.Tensor
    assert heights == {104, 112, 120, 128}


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (DetectionAugmentation, {"flip": 1.5}, "flip is a probability"),
        (DetectionAugmentation, {"crop_probability": -1.0}, "crop_probability"),
        (DetectionAugmentation, {"short_sides": ()}, "short_sides"),
        (DetectionAugmentation, {"crop_short_sides": (2000,)}, "longest"),
        (DetectionAugmentation, {"crop_sides": (9, 3)}, "least first"),
        (SegmentationAugmentation, {"scale": (2.0, 0.5)}, "least first"),
        (SegmentationAugmentation, {"short": 3000}, "longest"),
        (SegmentationAugmentation, {"crop": 0}, "crop"),
        (SegmentationAugmentation, {"flip": 2.0}, "flip"),
        (SegmentationAugmentation, {"most_of_one_class": 0.0}, "share"),
        (PhotometricDistortion, {"contrast": (1.5, 0.5)}, "contrast"),
        (PhotometricDistortion, {"hue": -1.0}, "hue"),
    ],
)
def test_what_means_nothing_is_refused(kind: type, fields: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        kind(**fields)


def test_they_survive_json() -> None:
    for settings_ in (
        DetectionAugmentation(short_sides=(3, 5), crop_sides=(2, 7)),
        SegmentationAugmentation(scale=(0.7, 1.1), distortion=PhotometricDistortion(contrast=(0.1, 3.0))),
    ):
        assert from_json(type(settings_), to_json(settings_)) == settings_
