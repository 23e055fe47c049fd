"""What ONNX files of detectors are traced from, and how answers are compared, without ONNX itself."""

import pytest
import torch

from davit.inference.backends.exported import read_outputs
from davit.inference.backends.onnx_detection import NOTHING, DetectionGraph, keep_apart
from davit.inference.parity import Parity, compare
from davit.models.detections import DetectorOutput
from davit.models.detector import Detector
from davit.models.upernet import average
from small_detectors import random_boxes
from spoken_models import KINDS, SHAPES, model_of, pictures, same


@pytest.mark.parametrize("kind", KINDS)
def test_all_images_at_once_give_what_the_model_gives_one_by_one(kind: str) -> None:
    model = model_of(kind)
    graph, found = DetectionGraph(model).eval(), 0
    for batch, height, width in SHAPES:
        images = pictures(batch, height, width)
        with torch.inference_mode():
            found += same(model(images), read_outputs("detector", graph(images)))
    assert found > 150


def test_boxes_compete_inside_their_group_and_row_only() -> None:
    boxes = random_boxes(60, 100, 100, least=40).view(2, 30, 4)
    scores = torch.rand(2, 3, 30)
    scores[0, 0, :10] = NOTHING
    kept = keep_apart(boxes, scores, 0.3)
    assert not kept[0, 0, :10].any()
    for group in range(2):
        for row in range(3):
            survivors = []  # greedily, by the definition
            for place in scores[group, row].argsort(descending=True).tolist():
                if scores[group, row, place] <= NOTHING:
                    continue
                overlaps = [overlap(boxes[group, place], boxes[group, other]) for other in survivors]
                survivors += [place] if max(overlaps, default=0) <= 0.3 else []
            assert kept[group, row].nonzero().flatten().tolist() == sorted(survivors)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    shared = float(sides.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (6, 12), (25, 32)])
def test_averages_by_products_are_the_adaptive_ones(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, *size)
    wanted = [average(x, side) for side in (1, 2, 3, 6)]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for side, values in zip((1, 2, 3, 6), wanted, strict=True):
        torch.testing.assert_close(average(x, side), values)


def test_objects_are_paired_whatever_their_order_and_the_last_place_is_forgiven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes, scores = random_boxes(6, 90, 90), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.4, 0.3])
    model = model_of("retinanet")
    ours = DetectorOutput(boxes, scores, torch.arange(6))
    order = torch.tensor([1, 0, 2, 3, 4])  # the last one, at the very end of the list, is missing
    theirs = DetectorOutput(boxes[order] + 0.003, scores[order] + 1e-5, torch.arange(6)[order])
    monkeypatch.setattr(Detector, "forward", lambda self, images: [ours] * len(images))

    def compared(found: DetectorOutput) -> Parity:
        return compare(model, lambda images: [found] * len(images), "x")

    parity = compared(theirs)
    assert (parity.failures, parity.unmatched) == ([], 0)
    assert parity.largest["boxes"] == pytest.approx(0.003, abs=1e-4)
    images = sum(one.shape[0] for one in parity.comparisons)
    assert parity.objects == 6 * images
    for worse in (
        theirs._replace(boxes=theirs.boxes + 0.1),
        theirs._replace(scores=theirs.scores - 0.01),
        theirs._replace(indices=theirs.indices + 1),
        DetectorOutput(*(part[1:] for part in (boxes, scores, torch.arange(6)))),
    ):
        assert "found by one of the two only" in compared(worse).failures[0]

    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("no such operator\nand more")

    assert "cannot be computed: no such operator" in compare(model, broken, "x").failures[0]
    few = DetectorOutput(*(part[:0] for part in (boxes, scores, torch.arange(6))))
    assert compared(few).unmatched == 5 * images  # the sixth has the last place


@pytest.mark.parametrize("masks", [torch.full((6, 28, 28), torch.nan), None], ids=["no numbers", "none"])
def test_masks_that_are_no_numbers_or_missing_are_a_difference(
    masks: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, scores = random_boxes(6, 90, 90), torch.linspace(0.9, 0.3, 6)
    ours = DetectorOutput(boxes, scores, torch.arange(6), torch.rand(6, 28, 28))
    monkeypatch.setattr(Detector, "forward", lambda self, images: [ours] * len(images))
    found = compare(model_of("mask_rcnn"), lambda images: [ours._replace(masks=masks)] * len(images), "x")
    assert found.unmatched == 0
    assert all("masks differ by inf" in failure for failure in found.failures)
    assert len(found.failures) == len(found.comparisons)
