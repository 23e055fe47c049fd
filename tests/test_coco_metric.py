"""COCO's average precision: equal to pycocotools', whole or in parts, and never of less than it says."""

import contextlib
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from davit.evaluation.accuracy import DivergedError
from davit.evaluation.coco import CocoMetric
from davit.structures import Detections, Picture, encode_mask

IDS = (7, 1, 90, 4, 33)  # of the classes in order: neither sorted nor without gaps
HEIGHT, WIDTH = 150, 190


def ellipse(box: Sequence[float]) -> torch.Tensor:
    left, top, right, bottom = box
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    across = ((x - (left + right) / 2) / max((right - left) / 2, 0.1)) ** 2
    return across + ((y - (top + bottom) / 2) / max((bottom - top) / 2, 0.1)) ** 2 <= 1


def random_box(rng: np.random.Generator) -> list[float]:
    """From a few pixels to nearly the whole picture, so that all three sizes occur."""
    width, height = np.exp(rng.uniform(np.log(3), np.log([WIDTH - 2, HEIGHT - 2])))
    left, top = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
    return [left, top, left + width, top + height]


def shape(rng: np.random.Generator, box: list[float]) -> Any:
    """A polygon, two of them, or an encoding."""
    left, top, right, bottom = (round(edge, 2) for edge in box)
    middle = round((left + right) / 2, 2)
    halves = [[left, top, middle, top, middle, bottom], [middle, top, right, top, right, bottom, middle, bottom]]
    return [halves[:1], halves, encode_mask(ellipse(box))][rng.integers(3)]


def random_truth(rng: np.random.Generator, pictures: int) -> dict[str, Any]:
    numbers = rng.permutation(np.arange(10, 10 + 3 * pictures))[:pictures].tolist()
    images = [{"id": id_, "file_name": f"{id_}.jpg", "height": HEIGHT, "width": WIDTH} for id_ in numbers]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for _ in range(0 if rng.random() < 0.2 else rng.integers(1, 9)):
            box = random_box(rng)
            crowd = bool(rng.random() < 0.15)
            left, top, right, bottom = box
            segmentation = encode_mask(ellipse(box)) if crowd else shape(rng, box)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": int(rng.choice(IDS[:4]))}
                | {"bbox": [left, top, right - left, bottom - top], "iscrowd": int(crowd)}
                | {"area": (right - left) * (bottom - top) * rng.uniform(0.3, 1), "segmentation": segmentation}
            )
    categories = [{"id": id_, "name": f"class {id_}"} for id_ in IDS]
    return {"images": images, "annotations": annotations, "categories": categories}


def random_results(rng: np.random.Generator, truth: dict[str, Any]) -> list[Detections]:
    """True boxes, moved a little; the same again; false ones; and scores of which many are equal."""
    results = []
    for image in truth["images"]:
        boxes, classes = [], []
        for object_ in truth["annotations"]:
            if object_["image_id"] != image["id"] or rng.random() < 0.15:
                continue
            left, top, width, height = object_["bbox"]
            for _ in range(rng.integers(1, 3)):
                noise = rng.normal(0, 0.08, 4) * [width, height, width, height]
                box = np.array([left, top, left + width, top + height]) + noise
                boxes.append(np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])]))
                right = rng.random() < 0.85
                classes.append(IDS.index(object_["category_id"]) if right else int(rng.integers(len(IDS))))
        for _ in range(0 if rng.random() < 0.3 else rng.integers(8)):
            boxes.append(np.array(random_box(rng)))
            classes.append(int(rng.integers(len(IDS))))
        results.append(detections(rng, boxes, classes))
    return results


def detections(rng: np.random.Generator, boxes: list[Any], classes: list[int]) -> Detections:
    scores = -np.sort(-rng.random(len(boxes)).round(1))
    return Detections(
        boxes=torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        scores=torch.tensor(scores, dtype=torch.float32),
        indices=torch.tensor(classes, dtype=torch.int64),
        labels=tuple(map(str, classes)),
        size=(HEIGHT, WIDTH),
        masks=torch.stack([ellipse(box) for box in boxes]) if boxes else torch.zeros(0, HEIGHT, WIDTH).bool(),
    )


def pictures(count: int) -> tuple[Picture, ...]:
    return tuple(Picture(index=index, size=(HEIGHT, WIDTH)) for index in range(count))


def oracle(truth: dict[str, Any], results: list[Detections], kind: str) -> COCOeval:
    """Pycocotools; masks without their boxes, as detectron2 and mmdet hand them over."""
    found = [
        {key: value for key, value in result.items() if key != ("bbox" if kind == "segm" else "segmentation")}
        for image, result_ in zip(truth["images"], results, strict=True)
        for result in result_.to_coco(image["id"], IDS)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = json.loads(json.dumps(truth))
        annotations.createIndex()
        evaluation = COCOeval(annotations, annotations.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_as_oracle(values: dict[str, float], name: str, evaluation: COCOeval) -> None:
    keys = [f"{name}_ap{part}" for part in ("", "50", "75", "_small", "_medium", "_large")]
    for key, expected in zip(keys, evaluation.stats[:6], strict=True):
        assert math.isclose(values.get(key, -1), expected, rel_tol=0, abs_tol=1e-9), key


@pytest.mark.parametrize("seed", range(24))
def test_equal_to_pycocotools_on_random_predictions(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, 12)
    results = random_results(rng, truth)
    before = json.dumps(truth)
    metric = CocoMetric(truth, IDS, masks=True)
    metric.update(results, pictures(12))
    values = metric.compute()
    assert capfd.readouterr() == ("", "")
    assert json.dumps(truth) == before
    assert values["count"] == 12
    assert 0.02 < values["box_ap"] < 0.9
    assert 0.02 < values["mask_ap"] < 0.9
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        evaluation = oracle(truth, results, kind)
        assert_as_oracle(values, name, evaluation)
        precision = evaluation.eval["precision"][:, :, :, 0, 2]
        for place, id_ in enumerate(sorted(IDS)):
            known = precision[:, :, place][precision[:, :, place] > -1]
            mine = metric.per_class()[f"class {id_}"][f"{name}_ap"]
            assert mine is None if not known.size else mine == pytest.approx(known.mean(), abs=1e-9)


def test_only_the_best_hundred_of_a_class_in_a_picture_count() -> None:
    rng = np.random.default_rng(0)
    truth = random_truth(rng, 1)
    image = truth["images"][0]["id"]
    truth["annotations"] = [
        {"id": 1, "image_id": image, "category_id": 7, "bbox": [9, 9, 60, 60], "area": 3600, "iscrowd": 0}
    ]
    boxes = [random_box(rng) for _ in range(150)] + [[9, 9, 69, 69]]
    found = detections(rng, boxes, [0] * 151)
    metric = CocoMetric(truth, IDS, masks=False)
    metric.update([found], pictures(1))
    assert_as_oracle(metric.compute(), "box", oracle(truth, [found], "bbox"))
    assert metric.compute()["box_ap75"] == 0


def test_the_first_object_may_have_id_0() -> None:
    """To COCO's evaluation, 0 means no match, so a found object would count as missed."""
    rng = np.random.default_rng(0)
    truth = random_truth(rng, 3)
    metric = CocoMetric(truth, IDS, masks=True)
    results = random_results(rng, truth)
    metric.update(results, pictures(3))
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
    shifted = CocoMetric(truth, IDS, masks=True)
    shifted.update(results, pictures(3))
    assert shifted.compute() == metric.compute()


class TwoProcesses:
    """What one of two processes hears when both give their parts."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)

    def sum(self, values: torch.Tensor, /) -> torch.Tensor:
        """Not what average precision asks for."""
        raise NotImplementedError

    def gather(self, value: Any, /) -> list[Any]:
        """The parts of both."""
        assert any(value is part for part in self.parts)
        return self.parts


def test_two_processes_score_as_one_and_no_picture_twice() -> None:
    rng = np.random.default_rng(5)
    truth = random_truth(rng, 9)
    results, targets = random_results(rng, truth), pictures(9)
    whole, first, second = (CocoMetric(truth, IDS, masks=True) for _ in range(3))
    whole.update(results, targets)
    first.update(results[1::2], targets[1::2])
    second.update(results[::2], targets[::2])
    first.merge(TwoProcesses(first._found, second._found))
    assert first.compute() == whole.compute()
    with pytest.raises(ValueError, match=r"image \d+ \(.*jpg\) was scored by two processes"):
        whole.merge(TwoProcesses(whole._found, second._found))
    with pytest.raises(ValueError, match="scored twice"):
        second.update(results[:1], targets[:1])


def test_pictures_that_were_not_scored_are_no_silent_part_of_the_score() -> None:
    rng = np.random.default_rng(6)
    truth = random_truth(rng, 6)
    results, targets = random_results(rng, truth), pictures(6)
    metric = CocoMetric(truth, IDS, masks=True)
    metric.update(results[1:5], targets[1:5])
    with pytest.raises(ValueError, match=rf"2 pictures were not scored, the first is image {truth['images'][0]['id']}"):
        metric.compute()
    partly = CocoMetric(truth, IDS, masks=True, allow_missing=True)
    partly.update(results[1:5], targets[1:5])
    kept = {image["id"] for image in truth["images"][1:5]}
    part = truth | {
        "images": truth["images"][1:5],
        "annotations": [found for found in truth["annotations"] if found["image_id"] in kept],
    }
    assert_as_oracle(partly.compute(), "mask", oracle(part, results[1:5], "segm"))
    assert partly.compute()["count"] == 4


def test_sizes_without_objects_are_left_out_and_the_rest_is_json() -> None:
    truth = random_truth(np.random.default_rng(7), 4)
    truth["annotations"] = [
        {
            "id": 1,
            "image_id": truth["images"][0]["id"],
            "category_id": 1,
            "bbox": [0, 0, 9, 9],
            "area": 81,
            "iscrowd": 0,
        }
    ]
    nothing = detections(np.random.default_rng(0), [], [])
    metric = CocoMetric(truth, IDS, masks=False)
    metric.update([nothing] * 4, pictures(4))
    assert metric.compute() == {"box_ap": 0, "box_ap50": 0, "box_ap75": 0, "box_ap_small": 0, "count": 4}
    json.dumps([metric.compute(), metric.per_class()], allow_nan=False)
    assert metric.per_class()["class 1"] == {"box_ap": 0}
    assert metric.per_class()["class 90"] == {"box_ap": None}
    empty = CocoMetric(truth | {"annotations": []}, IDS, masks=False)
    empty.update([nothing] * 4, pictures(4))
    with pytest.raises(ValueError, match="no object to find"):
        empty.compute()


def test_results_that_cannot_be_right_are_refused() -> None:
    rng = np.random.default_rng(8)
    truth = random_truth(rng, 2)
    metric = CocoMetric(truth, IDS, masks=True)
    good = detections(rng, [random_box(rng)], [0])
    changes: list[tuple[type[ValueError], str, dict[str, Any]]] = [
        (ValueError, "high and wide", {"size": (WIDTH, HEIGHT)}),
        (ValueError, "boxes only", {"masks": None}),
        (DivergedError, "no finite", {"scores": torch.tensor([math.nan])}),
        (DivergedError, "no finite", {"boxes": good.boxes / 0}),
        (ValueError, "0 to 4", {"indices": torch.tensor([5])}),
    ]
    for kind, message, change in changes:
        with pytest.raises(kind, match=message):
            metric.update([Detections(**(vars(good) | change))], pictures(1))
    with pytest.raises(ValueError, match="none of the 2"):
        metric.update([good], [Picture(index=2, size=(HEIGHT, WIDTH))])
    with pytest.raises(ValueError, match="category 8"):
        CocoMetric(truth, (7, 8), masks=False)
