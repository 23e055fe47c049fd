"""Training detectors: gradients, batches, precision, bad numbers, first values, learning by heart."""

import math

import pytest
import torch

from davit.models.detect_retinanet import RetinaNet
from davit.models.detections import to_detections
from davit.models.detector import Detector
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.structures import Instances
from davit.train.initialise import initialise
from small_detectors import KINDS, TINY, detector, squares, total


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # for maps this small a second one only waits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [True, False])
def test_losses_are_finite_and_reach_every_parameter(kind, masked):
    model = detector(kind)
    images, instances = squares()
    if not masked:  # pictures without objects train too
        instances = instances[1:] * 2
    losses = model(images, instances)
    assert all(math.isfinite(value.item()) and value.item() >= 0 for value in losses.values())
    total(losses).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    if masked:
        assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_a_batch_is_the_mean_over_its_images(kind):
    """So micro-batches and processes may share a batch. With every sample taken, there is no chance in it."""
    model = detector(kind, anchor_samples=10**6, region_samples=10**6)
    images, instances = squares()
    whole = model(images, instances)
    alone = [model(images[i : i + 1], instances[i : i + 1]) for i in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_in_padding_teach_nothing(kind):
    model = detector(kind, anchor_samples=10**6)
    images, (objects, nothing) = squares(64, 96)
    objects = Instances(boxes=objects.boxes[:1], labels=objects.labels[:1], masks=objects.masks[:1])
    canvas = torch.zeros(2, 3, 128, 192)
    canvas[:, :, :64, :96] = images
    small = model(canvas, (objects, nothing), [(64, 96), (64, 96)])
    full = model(canvas, (objects, nothing))
    key = "objectness" if kind == "mask_rcnn" else "classes"
    assert small[key] != full[key]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_float32_and_close(kind, precision):
    model = detector(kind, anchor_samples=10**6, region_samples=10**6)
    images, instances = squares()
    plain = model(images, instances)
    with torch.autocast("cpu", precision):
        losses = model(images, instances)
        assert all(found.boxes.dtype == torch.float32 for found in model(images))
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert total(losses).item() == pytest.approx(total(plain).item(), rel=0.05)
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_give_losses_that_are_none_and_do_not_raise(kind, bad):
    model = detector(kind)
    images, instances = squares()
    model.backbone.stages[3].blocks[0].channel.mlp.fc2.bias.data.fill_(bad)
    assert not math.isfinite(total(model(images, instances)).item())
    for found in model(images):
        assert found.boxes.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "box",
    [
        [20.0, 20.0, 20.0, 40.0],
        [40.0, 40.0, 20.0, 20.0],
        [math.nan] * 4,
        [0.0, 0.0, math.inf, 9.0],
        [-9e9, 0.0, 9e9, 5.0],
    ],
)
def test_boxes_without_size_or_sense_do_not_raise(kind, box):
    model = detector(kind)
    images, (objects, nothing) = squares()
    boxes = torch.cat((objects.boxes, torch.tensor([box])))
    masks = torch.cat((objects.masks, objects.masks[:1]))
    bad = Instances(boxes=boxes, labels=torch.tensor([0, 1, 2]), masks=masks)
    total(model(images, (bad, nothing))).backward()


@pytest.mark.parametrize("kind", KINDS)
def test_built_on_meta_and_initialised_it_is_as_if_built_at_once(kind):
    config = DetectorConfig(backbone=TINY, head=DetectorHead(kind=kind, channels=32, hidden=64), num_classes=5)
    at_once = Detector(config)
    with torch.device("meta"):
        model = Detector(config)
    model.to_empty(device="cpu")
    initialise(model, 3, {})
    for (name, ours), theirs in zip(model.state_dict().items(), at_once.state_dict().values(), strict=True):
        deviation = theirs.std().item() if theirs.numel() > 1 else 0.0
        assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=6 * deviation / ours.numel() ** 0.5), name
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.6), name
        if deviation and ours.numel() > 100:
            assert ours.std().item() == pytest.approx(deviation, rel=0.3), name
    with torch.no_grad():
        assert all(len(found.boxes) == 0 or found.scores.max() < 0.6 for found in model(torch.randn(2, 3, 64, 64)))


def test_retinanet_at_first_believes_in_nothing():
    model = detector("retinanet")
    with torch.no_grad():
        logits, _ = model.head.look(model.features(torch.randn(1, 3, 64, 64)))
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_learns_two_pictures_by_heart(kind):
    """A bright square in each; found again with its class, its box and its mask."""
    counts = {"region_samples": 64, "proposals": 64, "candidates": 200, "training_candidates": 200}
    scale = 4.0 if kind == "mask_rcnn" else 2.0
    head = DetectorHead(kind=kind, channels=32, hidden=64, anchor_scale=scale, **counts)
    model = Detector(DetectorConfig(backbone=TINY, head=head, num_classes=2))
    images, places = torch.randn(2, 3, 64, 64) * 0.1, [(12, 10, 34, 40), (24, 30, 58, 56)]
    instances = []
    for label, (image, (left, top, right, bottom)) in enumerate(zip(images, places, strict=True)):
        image[label, top:bottom, left:right] += 2
        mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        mask[0, top:bottom, left:right] = True
        box = torch.tensor([[left, top, right, bottom]], dtype=torch.float32)
        instances.append(Instances(boxes=box, labels=torch.tensor([label]), masks=mask))
    steps, losses = 100, []
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min((step + 1) / 10, 1, 3 * (1 - step / steps))
        loss = total(model(images, instances))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    with torch.no_grad():
        found = model.eval()(images)
    for label, (output, one) in enumerate(zip(found, instances, strict=True)):
        picture = to_detections(output, (64, 64), (128, 64), ("red", "green"))
        left, top, right, bottom = picture.boxes[0].tolist()
        x0, y0, x1, y1 = one.boxes[0].tolist()
        y0, y1 = 2 * y0, 2 * y1
        common = max(min(right, x1) - max(left, x0), 0) * max(min(bottom, y1) - max(top, y0), 0)
        union = (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - common
        assert common / union > 0.7
        assert picture.labels[0] == ("red", "green")[label]
        if picture.masks is not None:
            truth = one.masks[0].repeat_interleave(2, 0)
            assert (picture.masks[0] & truth).sum() / (picture.masks[0] | truth).sum() > 0.7


@pytest.mark.parametrize(("kept", "least", "most"), [(True, 0.3, 3.0), (False, 0.0, 0.01)])
def test_narrow_heads_may_keep_the_variance(kept, least, most):
    torch.manual_seed(0)
    head = RetinaNet(DetectorHead(kind="retinanet", channels=64, kept_variance=kept), 3)
    x = start = torch.randn(2, 64, 24, 24)
    with torch.no_grad():
        for convolution in head.class_convs:
            x = convolution(x).relu()
    assert least < float(x.square().mean() / start.square().mean()) ** 0.5 < most
