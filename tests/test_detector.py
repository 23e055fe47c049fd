"""Detectors: published counts, results of any size and in any batch, and their way to the picture."""

import copy
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from davit.models.detections import DetectorOutput, to_detections
from davit.models.detector import Detector
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.models.variants import VARIANTS
from davit.structures import Instances
from small_detectors import KINDS, TINY, detector, squares, sure, total

PUBLISHED = {  # millions of parameters, and GMACs at 800x1280, of the authors' README
    ("mask_rcnn", "davit_tiny"): (47.8, 263),
    ("mask_rcnn", "davit_small"): (69.2, 351),
    ("mask_rcnn", "davit_base"): (107.3, 491),
    ("retinanet", "davit_tiny"): (38.5, 244),
    ("retinanet", "davit_small"): (59.9, 332),
    ("retinanet", "davit_base"): (98.5, 471),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # for maps this small a second one only waits


@pytest.mark.parametrize(("kind", "variant"), PUBLISHED)
def test_published_parameters_and_macs(kind, variant):
    """MACs as mmdet counts them: 1,000 regions through the box head, 100 through the mask head.

    Its counter does not know the products inside the two attentions, so the published figures lack them.
    """
    config = DetectorConfig(backbone=VARIANTS[variant], head=DetectorHead(kind=kind))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = Detector(config)
        maps = model.features(torch.empty(1, 3, 800, 1280))
        if kind == "retinanet":
            model.head.look(maps)
        else:
            model.head.proposals(maps)
    macs = (counter.get_total_flops() - counter.get_flop_counts()["Global"][torch.ops.aten.bmm]) / 2
    if kind == "mask_rcnn":
        macs += 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
        macs += 100 * (4 * 14**2 * 9 * 256 * 256 + 14**2 * 4 * 256 * 256 + 28**2 * 256 * 80)
    millions, giga = PUBLISHED[kind, variant]
    assert math.floor(sum(p.numel() for p in model.parameters()) / 1e5) / 10 == millions
    assert macs / 1e9 == pytest.approx(giga, rel=0.002)


def test_one_box_for_all_classes_is_the_same_box_for_each():
    torch.manual_seed(11)
    images, instances = squares(96, 128)
    alone, repeated = sure("mask_rcnn", class_agnostic_boxes=True), sure("mask_rcnn")
    state = alone.state_dict()
    assert state["head.regress.weight"].shape == (4, 24)
    for name in ("head.regress.weight", "head.regress.bias"):
        state[name] = torch.cat([state[name]] * 3)
    repeated.load_state_dict(state)
    for one, other in zip(alone(images), repeated(images), strict=True):
        assert len(one.boxes) > 3
        assert len(one.indices.unique()) > 1
        torch.testing.assert_close(one, other)
    losses = []
    for model in (alone, repeated):
        torch.manual_seed(12)  # the same regions are drawn
        losses.append(model.train()(images, instances))
    torch.testing.assert_close(*losses)
    for each in losses:
        total(each).backward()
    shared, own = alone.head.regress.weight.grad, repeated.head.regress.weight.grad
    torch.testing.assert_close(shared, own.view(3, 4, -1).sum(0))


@pytest.mark.parametrize("kind", KINDS)
def test_result_depends_on_the_arguments_not_on_the_mode(kind):
    images, instances = squares(64, 64)
    instances = instances[1:] * 2
    model = sure(kind)
    names = set(model(images, instances))
    found = model(images)
    model.train()
    assert set(model(images, instances)) == names
    for ours, theirs in zip(model(images), found, strict=True):
        assert isinstance(ours, DetectorOutput)
        torch.testing.assert_close(ours.boxes, theirs.boxes)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_image_beside_others_of_its_size_gets_the_boxes_it_gets_alone(kind):
    model, images = sure(kind), torch.randn(3, 3, 65, 97)
    for image, beside in zip(images, model(images), strict=True):
        (alone,) = model(image[None])
        assert len(alone.boxes) > 20
        torch.testing.assert_close(beside.boxes, alone.boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(beside.scores, alone.scores, rtol=0, atol=1e-4)
        assert beside.indices.tolist() == alone.indices.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(97, 131), (32, 32), (33, 257), (128, 160)])
@torch.no_grad()
def test_any_size_gives_boxes_inside_the_image(kind, height, width):
    model = sure(kind)
    (found,) = model(torch.randn(1, 3, height, width))
    assert len(found.boxes) > 0
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 0::2] <= width).all()
    assert (found.boxes[:, 1::2] <= height).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert (found.scores.diff() <= 0).all()
    assert set(found.indices.tolist()) <= {0, 1, 2}
    assert (found.masks is None) == (kind == "retinanet")
    if found.masks is not None:
        assert found.masks.shape == (len(found.boxes), 28, 28)
    padded = torch.nn.functional.pad(torch.ones(1, 3, height, width), (0, -width % 32, 0, -height % 32))
    (ours,), (by_hand,) = model(torch.ones(1, 3, height, width)), model(padded, sizes=[(height, width)])
    torch.testing.assert_close(ours.boxes, by_hand.boxes)


def test_wrong_arguments_are_named():
    images, instances = squares()
    boxes_only = Instances(boxes=instances[0].boxes, labels=instances[0].labels)
    with pytest.raises(ValueError, match="retinanet"):
        detector("mask_rcnn")(images, (boxes_only, instances[1]))
    with pytest.raises(ValueError, match="2 images need as many instances, got 1"):
        detector("retinanet")(images, instances[:1])
    with pytest.raises(ValueError, match="2 images need as many sizes, got 1"):
        detector("retinanet")(images, sizes=[(97, 131)])
    with pytest.raises(ValueError, match="mask_rcnn"):
        DetectorHead(kind="mask_rcn")  # type: ignore[bad-argument-type]
    for field, value in {"divisor": 16, "anchor_scale": 0.0, "score_threshold": 2.0, "proposals": 0}.items():
        with pytest.raises(ValueError, match=field if field != "anchor_scale" else "positive scales"):
            DetectorHead(**{field: value})
    with pytest.raises(ValueError, match="num_classes"):
        DetectorConfig(backbone=TINY, head=DetectorHead(), num_classes=0)


def test_copies_and_state_dicts_travel():
    model = sure("mask_rcnn")
    other = copy.deepcopy(model)
    fresh = detector("mask_rcnn", score_threshold=0.0).eval()
    fresh.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for twin in (other, fresh):
            torch.testing.assert_close(twin(image)[0].boxes, model(image)[0].boxes)


def test_results_go_to_the_pictures_pixels():
    masks = torch.ones(3, 28, 28)
    masks[0, :, :14] = 0
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [90.0, 45.0, 120.0, 60.0], [40.0, 10.0, 40.0, 30.0]])
    output = DetectorOutput(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 4, 0]), masks)
    found = to_detections(output, (50, 100), (100, 300), ("cat", "dog"))
    assert found.boxes.tolist() == [[30, 40, 90, 80], [270, 90, 300, 100]]
    assert found.labels == ("dog", "4")
    assert found.size == (100, 300)
    truth = torch.zeros(2, 100, 300, dtype=torch.bool)
    truth[0, 40:80, 60:90] = True
    truth[1, 90:100, 270:300] = True
    torch.testing.assert_close(found.masks, truth)
    nothing = DetectorOutput(boxes[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64), masks[:0])
    assert to_detections(nothing, (50, 100), (100, 300), ()).masks.shape == (0, 100, 300)
    boxes_only = to_detections(output._replace(masks=None), (50, 100), (100, 300), ("cat", "dog"))
    assert boxes_only.masks is None
