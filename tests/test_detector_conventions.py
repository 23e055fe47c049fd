"""The detectors' parts against plain transcriptions of mmdet's formulas."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from davit.models.detect_boxes import Anchors, decode, encode, inside
from davit.models.detect_matching import BACKGROUND, NEITHER, ImageGenerators, draw, match
from davit.models.detect_regions import mask_targets, pool_regions
from davit.models.detections import paste
from davit.models.detector_config import DetectorHead
from davit.models.pyramid import Pyramid
from mmdet_transcription import bilinear, mmcv_roi_align, mmdet_anchors, mmdet_assign, mmdet_decode
from small_detectors import random_boxes, talkative

SIZE = (128, 160)  # P6 and P7 have strides that do not divide it: 160 // 3 is 53, not 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # for maps this small a second one only waits


@pytest.mark.parametrize(
    ("kind", "strides", "scales"),
    [
        ("mask_rcnn", (4, 8, 16, 32, 64), (8.0,)),
        ("retinanet", (8, 16, 32, 64, 128), (4, 4 * 2 ** (1 / 3), 4 * 4 ** (1 / 3))),
    ],
)
def test_anchors_are_mmdets(kind, strides, scales):
    model = talkative(kind)
    with torch.no_grad():
        maps = model.features(torch.zeros(1, 3, *SIZE))
    anchors = (model.head if kind == "retinanet" else model.head.proposals).anchors
    ours = torch.cat(anchors(maps)).double().numpy()
    np.testing.assert_allclose(ours, mmdet_anchors(*SIZE, strides, scales, (0.5, 1.0, 2.0)), atol=1e-4)


def test_anchor_scale_is_the_side_over_the_stride():
    anchors = Anchors(strides=(4,), scales=(5.0,), ratios=(1.0,))
    (boxes,) = anchors([torch.zeros(1, 1, 2, 3)])
    assert boxes.tolist()[4] == [4 - 10, 4 - 10, 4 + 10, 4 + 10]
    for kind, base in {"mask_rcnn": 8.0, "retinanet": 4.0}.items():
        assert DetectorHead(kind=kind).base_scale == base
    assert DetectorHead(anchor_scale=3.0).base_scale == 3.0


@pytest.mark.parametrize("deviations", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_box_coding_is_mmdets(deviations):
    boxes, objects = random_boxes(50, 200, 300, 20.0), random_boxes(50, 200, 300, 20.0)  # within the limits
    offsets = torch.randn(50, 4) * torch.tensor([1.0, 1.0, 30.0, 30.0])  # beyond both limits of the size
    ours = decode(offsets, boxes, deviations)
    truth = [mmdet_decode(b, o, deviations) for b, o in zip(boxes.tolist(), offsets.tolist(), strict=True)]
    torch.testing.assert_close(ours.double(), torch.tensor(truth, dtype=torch.float64), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        decode(encode(objects, boxes, deviations), boxes, deviations), objects, rtol=1e-5, atol=1e-3
    )


def test_regions_are_pooled_as_by_mmcv():
    strides, boxes = (4, 8, 16, 32), [random_boxes(9, *SIZE), random_boxes(6, *SIZE)]
    boxes[0][0] = torch.tensor([0.0, 0.0, 112.0, 112.0])  # a side of 112 is where the second level begins
    boxes[0][1] = torch.tensor([0.0, 0.0, 111.9, 111.9])
    boxes[1][0] = torch.tensor([20.0, 20.0, 20.0, 20.0])
    maps = [torch.randn(2, 3, SIZE[0] // s, SIZE[1] // s) for s in strides]
    ours = pool_regions(maps, strides, boxes, 7)
    rows = iter(ours.double().numpy())
    for image, of_image in enumerate(boxes):
        for box in of_image.tolist():
            side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)
            truth = mmcv_roi_align(maps[level][image].double().numpy(), box, strides[level], 7)
            np.testing.assert_allclose(next(rows), truth, atol=1e-4)
    assert pool_regions(maps, strides, [box[:0] for box in boxes], 7).shape == (0, 3, 7, 7)


def test_mask_targets_are_mmdets():
    masks, boxes, owners = torch.rand(2, 40, 50) > 0.4, random_boxes(6, 40, 50), torch.randint(2, (6,))
    ours = mask_targets(masks, boxes, owners, 14)
    for target, box, owner in zip(ours, boxes.tolist(), owners.tolist(), strict=True):
        truth = mmcv_roi_align(masks[owner][None].double().numpy(), box, 1, 14)[0]
        sure = np.abs(truth - 0.5) > 1e-4
        assert (target.numpy()[sure] == (truth >= 0.5)[sure]).all()


@pytest.mark.parametrize("thresholds", [(0.7, 0.3, 0.3), (0.5, 0.4, 0.0), (0.5, 0.5, 0.5)])
def test_assignment_is_mmdets(thresholds):
    for objects in (1, 2, 7):
        found, boxes = random_boxes(objects, 60, 60), random_boxes(200, 60, 60)
        boxes = torch.cat((boxes, found, found.repeat_interleave(2, 0) + 1, boxes[:20]))  # ties among them
        assert match(found, boxes, *thresholds).tolist() == mmdet_assign(box_iou(found, boxes), *thresholds)
    assert match(found[:0], boxes, *thresholds).unique().tolist() == [BACKGROUND]
    outside = torch.tensor([[900.0, 900.0, 950.0, 950.0]])
    assert match(outside, boxes, *thresholds).unique().tolist() == [BACKGROUND]


def test_draws_have_the_sizes_of_the_recipe_and_do_not_depend_on_how_a_batch_is_dealt_out():
    matches = torch.tensor([0] * 30 + [BACKGROUND] * 400 + [NEITHER] * 50)
    generators = ImageGenerators()
    sizes = {(256, 0.5): (30, 226), (64, 0.25): (16, 48), (1000, 0.5): (30, 400)}
    for (count, share), expected in sizes.items():
        (generator,) = generators(1, matches.device)
        positive, negative = draw(matches, count, share, generator)
        assert (len(positive.unique()), len(negative.unique())) == expected
        assert (matches[positive] >= 0).all()
        assert (matches[negative] == BACKGROUND).all()

    def drawn(first: int, count: int) -> list[list[int]]:
        torch.manual_seed(5)
        generators.place(first, 4)
        return [torch.cat(draw(matches, 64, 0.5, g)).tolist() for g in generators(count, matches.device)]

    whole = drawn(0, 4)
    assert drawn(0, 1) + drawn(1, 3) == whole
    assert len({tuple(image) for image in whole}) == 4


def test_anchors_in_the_padding_of_a_smaller_image_are_left_out():
    anchors = torch.cat(Anchors(strides=(16,), scales=(8.0,), ratios=(0.5, 1.0, 2.0))([torch.zeros(1, 1, 8, 10)]))
    kept = inside(anchors, (64, 96)).view(8, 10, 3)
    assert kept[:4, :6].all()
    assert kept.sum() == 4 * 6 * 3


def test_masks_are_pasted_as_by_mmdet():
    mask, whole = torch.rand(28, 28), torch.zeros(40, 60, dtype=torch.bool)
    box = torch.tensor([3.3, 5.2, 41.7, 39.9])
    paste(mask, box, whole)
    for row in range(40):
        for column in range(60):
            y, x = (row + 0.5 - 5.2) / 34.7 * 28 - 0.5, (column + 0.5 - 3.3) / 38.4 * 28 - 0.5
            padded = np.pad(mask.double().numpy(), 1)[None]  # zeros beyond the grid
            value = bilinear(padded, y + 1, x + 1)[0] if -1 < y < 28 and -1 < x < 28 else 0.0
            assert abs(value - 0.5) < 1e-4 or bool(whole[row, column]) == (value >= 0.5)


def test_pyramid_is_torchvisions():
    widths, maps = (5, 6, 7), [torch.randn(2, 5, 13, 9), torch.randn(2, 6, 7, 5), torch.randn(2, 7, 4, 3)]
    ours, theirs = Pyramid(widths, 8), FeaturePyramidNetwork(list(widths), 8, LastLevelMaxPool())
    blocks = [*theirs.inner_blocks, *theirs.layer_blocks]
    for block, layer in zip(blocks, [*ours.laterals, *ours.outputs], strict=True):
        block[0].load_state_dict(layer.state_dict())
    expected = theirs(OrderedDict((str(i), x) for i, x in enumerate(maps)))
    torch.testing.assert_close(ours(maps), list(expected.values()))
    retina = Pyramid(widths, 8, convolved=2)
    p6 = F.conv2d(maps[-1], retina.coarser[0].weight, retina.coarser[0].bias, stride=2, padding=1)
    p7 = F.conv2d(p6, retina.coarser[1].weight, retina.coarser[1].bias, stride=2, padding=1)
    torch.testing.assert_close(retina(maps)[-2:], [p6, p7])
