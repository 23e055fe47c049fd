"""COCO files: what comes out is what pycocotools makes of them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_mask

from coco_files import CATEGORIES, draw, random_truth, reference, small, write
from davit.data.coco import CocoImages, find_coco, is_coco
from davit.evaluation.coco import CocoMetric
from davit.structures import Detections, Picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools


@pytest.mark.parametrize("seed", range(6))
def test_pictures_boxes_masks_and_classes_are_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    truth = random_truth(seed, decimals=2 if seed % 2 else 9)
    path = write(tmp_path, truth)
    draw(tmp_path, truth)
    coco, images = reference(path), CocoImages(path, tmp_path, masks=True)
    boxes_only = CocoImages(path, tmp_path, masks=False)
    assert images.classes == ("car", "cat", "toothbrush")
    assert images.category_ids == (3, 17, 90)
    assert (len(images), images.dropped) == (12, 0)
    for index, entry in enumerate(truth["images"]):
        picture, instances = images[index]
        assert picture.getpixel((0, 0)) == (entry["id"], 0, 0)
        assert images.size(index) == (entry["height"], entry["width"]) == picture.size[::-1]
        assert images.name(index) == str(tmp_path / entry["file_name"])
        objects = [found for found in coco.imgToAnns[entry["id"]] if not found["iscrowd"]]
        assert (index in images.with_objects()) == bool(objects)
        assert [images.category_ids[label] for label in instances.labels] == [found["category_id"] for found in objects]
        corners = np.array([found["bbox"] for found in objects]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        assert instances.boxes.dtype == torch.float32
        np.testing.assert_allclose(instances.boxes, corners, atol=1e-5)
        assert instances.masks is not None
        assert instances.masks.dtype == torch.bool
        assert instances.masks.shape == (len(objects), entry["height"], entry["width"])
        for found, mask in zip(objects, instances.masks, strict=True):
            np.testing.assert_array_equal(mask, coco.annToMask(found).astype(bool))
        plain = boxes_only[index][1]
        assert plain.masks is None
        assert plain.boxes.equal(instances.boxes)


@pytest.mark.parametrize("masks", [False, True])
def test_the_ground_truth_is_what_the_file_says(tmp_path: Path, masks: bool) -> None:
    truth = random_truth(7)
    path = write(tmp_path, truth)
    coco, found = reference(path), CocoImages(path, tmp_path, masks).ground_truth()
    json.dumps(found, allow_nan=False)
    assert [image["id"] for image in found["images"]] == [image["id"] for image in truth["images"]]
    assert [(kind["id"], kind["name"]) for kind in found["categories"]] == [(3, "car"), (17, "cat"), (90, "toothbrush")]
    assert any(annotation["iscrowd"] for annotation in found["annotations"])
    for mine, theirs in zip(found["annotations"], truth["annotations"], strict=True):
        for key in ("id", "image_id", "category_id", "bbox", "iscrowd"):
            assert mine[key] == theirs[key]
        pixels = float(reference_mask.area(coco.annToRLE(theirs)))
        assert mine["area"] == theirs.get("area", pixels)
        assert ("segmentation" in mine) == masks
        if masks:
            np.testing.assert_array_equal(coco.annToMask(mine), coco.annToMask(theirs))
        if masks and isinstance(theirs["segmentation"], list):
            assert mine["segmentation"] == theirs["segmentation"]


def test_what_is_learnt_is_what_is_scored(tmp_path: Path) -> None:
    """The targets, handed in as results, are perfect; with class names of other data, and in two processes' order."""
    truth = random_truth(8)
    draw(tmp_path, truth)
    names = ("toothbrush", "unicorn", "car", "cat")
    images = CocoImages(write(tmp_path, truth), tmp_path, masks=True, classes=names)
    metric = CocoMetric(images.ground_truth(), images.category_ids, masks=True)
    for index in range(len(images))[::-1]:
        _, found = images[index]
        size, count = images.size(index), len(found.labels)
        result = Detections(
            boxes=found.boxes,
            scores=torch.ones(count),
            indices=found.labels,
            labels=("",) * count,
            size=size,
            masks=found.masks,
        )
        metric.update([result], [Picture(index=index, size=size)])
    values = metric.compute()
    assert values["box_ap"] == pytest.approx(1)
    assert values["mask_ap"] == pytest.approx(1)
    assert metric.per_class()["unicorn"] == {"box_ap": None, "mask_ap": None}


def test_what_cannot_be_learnt_is_left_out_and_counted(tmp_path: Path) -> None:
    truth = small()
    draw(tmp_path, truth)
    good = truth["annotations"][0]
    boxes = [[5, 5, 0, 9], [5, 5, 9, -1], [30, 5, 9, 9], [-9, -9, 9.5, 9.5], [5, 5, 0.99, 9]]
    truth["annotations"] += [good | {"id": 100 + number, "bbox": box} for number, box in enumerate(boxes)]
    truth["annotations"] += [good | {"id": 200, "bbox": [25, 15, 99, 99]}, good | {"id": 201, "segmentation": [[1, 2]]}]
    path = write(tmp_path, truth)
    images = CocoImages(path, tmp_path, masks=False)
    assert images.dropped == 5
    assert images[0][1].boxes.tolist() == [[2, 2, 12, 12], [25, 15, 30, 20], [2, 2, 12, 12]]  # cut at the edges
    masks = CocoImages(path, tmp_path, masks=True)
    assert masks.dropped == 6
    assert len(masks[0][1].boxes) == 2
    assert len(images.ground_truth()["annotations"]) == 9
    with pytest.raises(ValueError, match="annotation 201 and 0 more have no usable segmentation"):
        masks.ground_truth()


def test_boxes_without_segmentations_or_areas(tmp_path: Path) -> None:
    truth = small()
    for annotation, segmentation in zip(truth["annotations"], ({}, {"segmentation": []}), strict=True):
        for key in ("segmentation", "area", "iscrowd"):
            del annotation[key]
        annotation |= segmentation
    path = write(tmp_path, truth)
    found = CocoImages(path, tmp_path, masks=False).ground_truth()
    assert [annotation["area"] for annotation in found["annotations"]] == [100, 100]
    with pytest.raises(ValueError, match=r"none of its 2 objects can be learnt from.*masks need a segmentation"):
        CocoImages(path, tmp_path, masks=True)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    truth = small()
    draw(tmp_path, truth)
    path = write(tmp_path, truth)
    images = CocoImages(path, tmp_path, masks=False, classes=("cow", "car"))
    assert images.classes == ("cow", "car")
    assert images.category_ids[1] == 3
    assert images.category_ids[0] not in {kind["id"] for kind in CATEGORIES}
    assert images[0][1].labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"instances\.json, category 3: unknown class 'car'. Did you mean 'cart'"):
        CocoImages(path, tmp_path, masks=False, classes=("cart", "cat", "toothbrush"))


def test_the_name_of_a_roboflow_project_is_no_class(tmp_path: Path) -> None:
    truth = small()
    truth["categories"] = [
        {"id": 0, "name": "car", "supercategory": "none"},
        {"id": 3, "name": "car", "supercategory": "car"},
    ]
    images = CocoImages(write(tmp_path, truth), tmp_path, masks=False)
    assert (images.classes, images.category_ids) == (("car",), (3,))
    truth["annotations"][0]["category_id"] = 0
    with pytest.raises(ValueError, match="both called 'car'"):
        CocoImages(write(tmp_path, truth), tmp_path, masks=False)


def test_pickled_for_a_worker_it_is_the_same(tmp_path: Path) -> None:
    truth = random_truth(9)
    draw(tmp_path, truth)
    images = CocoImages(write(tmp_path, truth), tmp_path, masks=True)
    again = pickle.loads(pickle.dumps(images))
    for index in range(len(images)):
        (picture, instances), (picture_, instances_) = images[index], again[index]
        assert picture.tobytes() == picture_.tobytes()
        assert instances.masks is not None
        assert instances_.masks is not None
        assert instances.masks.equal(instances_.masks)
    assert again.ground_truth() == images.ground_truth()


def test_ten_thousand_pictures_take_few_bytes_each(tmp_path: Path) -> None:
    """Each worker may hold its own copy: no trees of Python objects."""
    truth = small()
    shape = np.random.default_rng(0).uniform(0, 20, 60).round(2).tolist()
    truth["images"] = [truth["images"][0] | {"id": id_, "file_name": f"{id_:012}.jpg"} for id_ in range(10_000)]
    one = truth["annotations"][0] | {"segmentation": [shape]}
    truth["annotations"] = [one | {"id": id_, "image_id": id_ % 9_000} for id_ in range(30_000)]
    images = CocoImages(write(tmp_path, truth), tmp_path, masks=True)
    assert len(pickle.dumps(images)) < 30_000 * (60 * 4 + 160) + 10_000 * 60
    assert len(images.with_objects()) == 9_000


def lay(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    return root


def test_layouts_are_found(tmp_path: Path) -> None:
    file = "annotations/instances_{}.json".format
    others = ("annotations/captions_train2017.json", "annotations/instances_minival2014.json")
    coco = lay(tmp_path / "a", file("train2017"), file("val2017"), "train2017/", "val2017/", *others)
    assert find_coco(coco).parts == {
        part: (coco / file(f"{part}2017"), coco / f"{part}2017") for part in ("train", "val")
    }
    nested = lay(tmp_path / "b", file("train"), file("test2014"), "images/train/", "images/test2014/")
    assert find_coco(nested).train == (nested / file("train"), nested / "images/train")
    assert find_coco(nested).validation.images == nested / "images/test2014"
    flat = lay(tmp_path / "c", *(f"{part}/_annotations.coco.json" for part in ("train", "valid", "test")))
    assert list(find_coco(flat).parts) == ["train", "val", "test"]
    assert find_coco(flat).validation == (flat / "valid/_annotations.coco.json", flat / "valid")
    assert all(map(is_coco, (coco, nested, flat)))


def test_layouts_that_are_none_are_named(tmp_path: Path) -> None:
    file = "annotations/instances_{}.json".format
    assert not is_coco(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no COCO data set"):
        find_coco(lay(tmp_path / "a", "annotations/captions_train2017.json"))
    with pytest.raises(ValueError, match=r"instances_val2017\.json has no images beside it: .*b/val2017"):
        find_coco(lay(tmp_path / "b", file("val2017")))
    with pytest.raises(ValueError, match=r"train2014\.json and .*train2017\.json are both for train"):
        find_coco(lay(tmp_path / "c", file("train2014"), file("train2017"), "train2014/", "train2017/"))
    with pytest.raises(ValueError, match="none to score on"):
        _ = find_coco(lay(tmp_path / "d", file("train"), "train/")).validation
    with pytest.raises(ValueError, match="none to train on"):
        _ = find_coco(lay(tmp_path / "e", file("val"), "val/")).train
