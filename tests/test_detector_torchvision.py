"""Whole detectors against torchvision's models with the same weights, told mmdet's conventions."""

import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, roi_align

from davit.models.detect_regions import mask_targets
from davit.models.detector import Detector
from davit.structures import Instances
from mmdet_transcription import mmdet_anchors
from small_detectors import talkative

SIZE = (128, 160)  # P6 and P7 have strides that do not divide it: 160 // 3 is 53, not 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # for maps this small a second one only waits


class ExactAnchors(AnchorGenerator):
    """torchvision's generator with mmdet's boxes."""

    def __init__(self, strides, scales):
        super().__init__(((1.0,) * len(scales),) * 5, ((0.5, 1.0, 2.0),) * 5)
        self.boxes = torch.from_numpy(mmdet_anchors(*SIZE, strides, scales, (0.5, 1.0, 2.0))).float()

    def forward(self, image_list, feature_maps):
        """Return the boxes of each image."""
        return [self.boxes for _ in image_list.image_sizes]


class AlignedPool(MultiScaleRoIAlign):
    """torchvision's pooler region by region, aligned."""

    def forward(self, x, boxes, image_shapes):
        """Return the regions of all images."""
        pooled = []
        for image, of_image in enumerate(boxes):
            for box in of_image:
                side = float(((box[2] - box[0]) * (box[3] - box[1])).sqrt())
                level = min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)
                maps = list(x.values())[level][image : image + 1]
                pooled.append(roi_align(maps, [box[None]], self.output_size, 0.25 / 2**level, 0, aligned=True))
        return torch.cat(pooled) if pooled else torch.zeros(0, next(iter(x.values())).shape[1], *self.output_size)


class Maps(nn.Module):
    """Our backbone, norms and pyramid as torchvision wants them."""

    out_channels = 16

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, images):
        """Return the pyramid's levels by name."""
        levels = self.model.features(images)
        return OrderedDict((str(i), x) for i, x in enumerate(levels))


def load(theirs: nn.Module, ours: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())


def background_first(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat((weight[-1:], weight[:-1]))


def with_background(weight: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat((torch.zeros_like(weight[:rows]), weight))


SETTINGS = {"min_size": SIZE[0], "max_size": SIZE[1], "image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def torchvision_retinanet(model: Detector) -> RetinaNet:
    scales = (4, 4 * 2 ** (1 / 3), 4 * 4 ** (1 / 3))
    theirs = RetinaNet(
        Maps(model), 3, anchor_generator=ExactAnchors((8, 16, 32, 64, 128), scales), detections_per_img=100, **SETTINGS
    )
    head = model.head
    for side, convs in (
        (theirs.head.classification_head, head.class_convs),
        (theirs.head.regression_head, head.box_convs),
    ):
        for block, conv in zip(side.conv, convs, strict=True):
            load(block[0], conv)
    load(theirs.head.classification_head.cls_logits, head.classify)
    load(theirs.head.regression_head.bbox_reg, head.regress)
    return theirs


def torchvision_mask_rcnn(model: Detector) -> MaskRCNN:
    names = ["0", "1", "2", "3"]
    theirs = MaskRCNN(
        Maps(model),
        rpn_anchor_generator=ExactAnchors((4, 8, 16, 32, 64), (8.0,)),
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=AlignedPool(names, 7, 0),
        box_head=TwoMLPHead(16 * 49, 24),
        box_predictor=FastRCNNPredictor(24, 4),
        mask_roi_pool=AlignedPool(names, 14, 0),
        mask_head=MaskRCNNHeads(16, (16,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(16, 16, 4),
        **SETTINGS,
    )
    ours, roi = model.head, theirs.roi_heads
    load(theirs.rpn.head.conv[0][0], ours.proposals.conv)
    load(theirs.rpn.head.cls_logits, ours.proposals.objectness)
    load(theirs.rpn.head.bbox_pred, ours.proposals.offsets)
    load(roi.box_head.fc6, ours.fc1)
    load(roi.box_head.fc7, ours.fc2)
    for block, conv in zip(roi.mask_head, ours.mask_convs, strict=True):
        load(block[0], conv)
    load(roi.mask_predictor.conv5_mask, ours.mask_upsample)
    reordered = (
        (roi.box_predictor.cls_score, ours.classify, background_first),
        (roi.box_predictor.bbox_pred, ours.regress, lambda weight: with_background(weight, 4)),
        (roi.mask_predictor.mask_fcn_logits, ours.mask_classify, lambda weight: with_background(weight, 1)),
    )
    for layer, given, change in reordered:
        layer.load_state_dict({name: change(value) for name, value in given.state_dict().items()})
    return theirs


@pytest.mark.parametrize(
    ("kind", "build"), [("mask_rcnn", torchvision_mask_rcnn), ("retinanet", torchvision_retinanet)]
)
@torch.no_grad()
def test_detects_what_torchvisions_model_detects(kind, build):
    model, images = talkative(kind), torch.randn(2, 3, *SIZE)
    theirs = build(model).eval()
    theirs.transform.postprocess = lambda found, *_: found  # leave the masks in their regions
    expected = theirs(list(images))
    for ours, found in zip(model(images), expected, strict=True):
        assert len(ours.boxes) == 100
        torch.testing.assert_close(ours.boxes, found["boxes"], rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(ours.scores, found["scores"], rtol=1e-4, atol=1e-4)
        assert ours.indices.tolist() == (found["labels"] - int(kind == "mask_rcnn")).tolist()
        if ours.masks is not None:
            torch.testing.assert_close(ours.masks, found["masks"][:, 0], rtol=1e-3, atol=1e-3)


@pytest.fixture
def scene() -> Instances:
    """Three objects apart from each other: no box is the best of two."""
    boxes = torch.tensor([[8.0, 10.0, 50.0, 44.0], [70.0, 60.0, 150.0, 120.0], [100.0, 5.0, 128.0, 50.0]])
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top + 4 : bottom, left:right] = True
    return Instances(boxes=boxes, labels=torch.tensor([0, 2, 1]), masks=masks)


def test_retinanet_loses_as_torchvisions(scene):
    model, image = talkative("retinanet"), torch.randn(1, 3, *SIZE)
    target = {"boxes": scene.boxes, "labels": scene.labels}
    expected = torchvision_retinanet(model).train()(list(image), [target])
    ours = model(image, (scene,))
    torch.testing.assert_close(ours["classes"], expected["classification"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours["boxes"], expected["bbox_regression"], rtol=1e-4, atol=1e-6)


def test_mask_rcnn_loses_as_torchvisions_with_mmdets_boxes_and_masks(scene):
    """With every sample taken there is no chance left; L1 and targets of 0 or 1 are put in place of torchvision's."""
    model, image = talkative("mask_rcnn", anchor_samples=10**6, region_samples=10**6), torch.randn(1, 3, *SIZE)
    theirs = torchvision_mask_rcnn(model).eval()
    head, size = theirs.roi_heads, [SIZE]
    target = {"boxes": scene.boxes, "labels": scene.labels + 1, "masks": scene.masks}
    for sampler in (theirs.rpn.fg_bg_sampler, head.fg_bg_sampler):
        sampler.batch_size_per_image = 10**7
    features = theirs.backbone(image)
    offers = model.head.proposals(list(features.values()))
    proposals = model.head.proposals.propose(offers, size, 2000)
    regions, owners, labels, wanted = head.select_training_samples(proposals, [target])
    logits, offsets = head.box_predictor(head.box_head(head.box_roi_pool(features, regions, size)))
    ours = model(image, (scene,))

    torch.testing.assert_close(ours["classes"], fastrcnn_loss(logits, offsets, labels, wanted)[0], rtol=1e-4, atol=1e-5)
    on = labels[0] > 0
    shifts = offsets.view(len(offsets), -1, 4)[on, labels[0][on]]
    torch.testing.assert_close(ours["boxes"], (shifts - wanted[0][on]).abs().sum() / len(on), rtol=1e-4, atol=1e-5)
    masks = head.mask_predictor(head.mask_head(head.mask_roi_pool(features, [regions[0][on]], size)))
    truth = mask_targets(scene.masks, regions[0][on], owners[0][on], 28)
    probable = masks[torch.arange(int(on.sum())), labels[0][on]]
    torch.testing.assert_close(ours["masks"], F.binary_cross_entropy_with_logits(probable, truth), rtol=1e-4, atol=1e-5)

    anchors = torch.cat(offers.anchors)
    found, matched = theirs.rpn.assign_targets_to_anchors([anchors], [target])
    wanted = theirs.rpn.box_coder.encode(matched, [anchors])[0]
    shifts, on, taken = torch.cat(offers.offsets, 1)[0], found[0] == 1, found[0] >= 0
    objectness = F.binary_cross_entropy_with_logits(torch.cat(offers.logits, 1)[0][taken], found[0][taken])
    torch.testing.assert_close(ours["objectness"], objectness, rtol=1e-4, atol=1e-5)
    expected = (shifts[on] - wanted[on]).abs().sum() / taken.sum()
    torch.testing.assert_close(ours["proposals"], expected, rtol=1e-4, atol=1e-5)
