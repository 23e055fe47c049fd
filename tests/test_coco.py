"""COCO files: what comes out is what pycocotools makes of them, and damage is named, never guessed around."""

import contextlib
import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO

from davit.data.coco import CocoImages, find_coco, is_coco
from davit.data.coco_json import SECTIONS, entries
from davit.decoding import ImageError
from davit.evaluation.coco import CocoMetric
from davit.structures import Detections, Picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
Truth = dict[str, Any]
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]


def polygon(rng: np.random.Generator, height: int, width: int, decimals: int) -> list[float]:
    center = rng.uniform(0.2, 0.8, 2) * [width, height]
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 20)))
    points = center + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(3, 40)
    return points.clip(0, [width, height]).round(decimals).flatten().tolist()


def encoded(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    mask = np.asfortranarray(rng.random((height, width)) < 0.3, dtype=np.uint8)
    found = reference_mask.encode(mask)
    return {"size": [height, width], "counts": found["counts"].decode()}


def counted(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    edges = np.sort(rng.integers(0, height * width, 9))
    return {"size": [height, width], "counts": np.diff([0, *edges.tolist(), height * width]).tolist()}


def random_truth(seed: int, decimals: int = 2) -> Truth:
    """Every kind of segmentation, in pictures and objects in no order, some of them empty."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for id_ in rng.permutation(np.arange(100, 112)).tolist():
        height, width = rng.integers(30, 90, 2).tolist()
        images.append({"id": id_, "file_name": f"deep/{id_}.png", "height": height, "width": width, "license": 1})
        for _ in range(rng.integers(0, 6)):
            parts = [polygon(rng, height, width, decimals) for _ in range(rng.integers(1, 4))]
            which = rng.integers(4)
            shape = [parts, parts[:1], encoded(rng, height, width), counted(rng, height, width)][which]
            box = [*rng.uniform(0, 15, 2).round(2).tolist(), *rng.uniform(2, 15, 2).round(2).tolist()]
            crowd = {"iscrowd": int(rng.random() < 0.5)} if which > 1 else {"iscrowd": 0}
            label = {"image_id": id_, "category_id": int(rng.choice([90, 3, 17])), "bbox": box}
            area = {"area": float(rng.uniform(1, 999))} if rng.random() < 0.8 else {}
            annotations.append({"id": int(rng.integers(2**40)), "segmentation": shape} | label | crowd | area)
    order = rng.permutation(len(annotations)).tolist()
    annotations = [annotations[place] for place in order]
    return {"info": {"a": [1, {}]}, "images": images, "annotations": annotations, "categories": CATEGORIES}


def write(folder: Path, truth: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(truth))
    return path


def draw(folder: Path, truth: Truth) -> None:
    for image in truth["images"]:
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (image["width"], image["height"]), (image["id"], 0, 0)).save(path)


def small() -> Truth:
    """Two pictures with an object each."""
    shape = {"iscrowd": 0, "area": 50.0, "segmentation": [[2, 2, 12, 2, 12, 12]], "bbox": [2, 2, 10, 10]}
    return {
        "images": [{"id": id_, "file_name": f"{id_}.png", "height": 20, "width": 30} for id_ in (1, 2)],
        "annotations": [{"id": 10 + id_, "image_id": id_, "category_id": 3, **shape} for id_ in (1, 2)],
        "categories": copy.deepcopy(CATEGORIES),
    }


def reference(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


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


def change(section: str, **values: Any) -> Callable[[Truth], None]:
    return lambda truth: truth[section][1].update(values)


def without(section: str, key: str) -> Callable[[Truth], None]:
    return lambda truth: truth[section][1].pop(key)


RLE = {"size": [20, 30], "counts": [100, 500]}
DAMAGE: dict[str, Callable[[Truth], Any]] = {
    "has no list annotations": lambda truth: truth.pop("annotations"),
    "has no list images and no list categories": lambda truth: [truth.pop(key) for key in ("images", "categories")],
    "an entry of images is 7, not an object": lambda truth: truth["images"].append(7),
    "image 2 has no 'height'": without("images", "height"),
    "image 2 has no 'file_name'": without("images", "file_name"),
    "annotation 12 has no 'bbox'": without("annotations", "bbox"),
    "annotation 12 has no 'category_id'": without("annotations", "category_id"),
    "annotation {\"image_id\": 2.* has no 'id'": without("annotations", "id"),
    "category 3 has no 'name'": without("categories", "name"),
    "image id 1 is there 2 times": change("images", id=1),
    "annotation id 11 is there 2 times": change("annotations", id=11),
    "category id 90 is there 2 times": change("categories", id=90),
    "annotation 12 belongs to image 5, which": change("annotations", image_id=5),
    "annotation 12 belongs to category 5, which": change("annotations", category_id=5),
    "categories 3 and 90 are both called 'car'": lambda truth: truth["categories"][0].update(name="car"),
    "image 2 is damaged: file_name '../x.png' leads": change("images", file_name="../x.png"),
    "image 2 is damaged: file_name '/etc/x' leads": change("images", file_name="/etc/x"),
    r"image 2 is damaged: file_name 'C:.*x' leads": change("images", file_name="C:\\x"),
    "image 2 is damaged: file_name '' leads": change("images", file_name=""),
    "image 2 is damaged: its height and width are 0": change("images", height=0),
    "image 2 is damaged.*float": change("images", width=30.5),
    "image '2' is damaged": change("images", id="2"),
    "annotation 12 is damaged: its bbox must be": change("annotations", bbox=[1, 2, 3]),
    "annotation 12 is damaged.*number": change("annotations", bbox=[1, 2, 3, "4"]),
    "annotation 12 is damaged.*integer": change("annotations", image_id="2"),
    "annotation 12 is damaged.*RLE": change("annotations", segmentation=RLE | {"counts": "!!"}),
    "annotation 12 is damaged: .*exceed": change("annotations", segmentation=RLE | {"counts": [100, 501]}),
    "annotation 12 is damaged: .*number": change("annotations", segmentation=[["a"] * 6]),
    r"the mask of annotation 12 is \(30, 20\) high and wide, its image \(20, 30\)": change(
        "annotations", segmentation={"size": [30, 20], "counts": [100, 500]}
    ),
    "annotation 12 has coordinates that are no finite": change("annotations", bbox=[1, 2, 3, float("nan")]),
    "annotation 12 has coordinates that are no": change("annotations", segmentation=[[1, 2, float("inf"), 4, 5, 6]]),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_files_are_refused_with_their_name_and_the_id(tmp_path: Path, message: str) -> None:
    truth = small()
    DAMAGE[message](truth)
    path = write(tmp_path, truth)
    with pytest.raises(ValueError, match=message) as caught:
        CocoImages(path, tmp_path, masks=True)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"no", b"[]", b"{} {}", b"\xff", b'{"images": {}}', b'{"images": [{},]}', b"[" * 99_999]
)
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.json is no COCO file"):
        list(entries(tmp_path / "x.json"))


SIMPLE = st.none() | st.integers() | st.text(max_size=5)
VALUES = SIMPLE | st.lists(SIMPLE, max_size=3) | st.dictionaries(st.text(max_size=3), SIMPLE, max_size=3)


@given(
    sections=st.permutations([*SECTIONS, "info", "licenses"]),
    lists=st.lists(
        st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=3), min_size=3, max_size=3
    ),
    other=VALUES,
    indent=st.sampled_from([None, 0, "\t", " \r\n"]),
    cut=st.floats(0, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_entries_are_read_as_json_reads_them_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, sections: list[str], lists: list[Any], other: Any, indent: Any, cut: float
) -> None:
    truth = {name: other for name in sections} | dict(zip(SECTIONS, lists, strict=True))
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps({name: truth[name] for name in sections}, indent=indent, ensure_ascii=cut < 0.5)
    path.write_text(text, encoding="utf-8")
    expected = [(name, entry) for name in sections if name in SECTIONS for entry in truth[name]]
    assert list(entries(path)) == expected
    path.write_text(text[: int(len(text) * cut)], encoding="utf-8")
    with pytest.raises(ValueError, match="is no COCO file"):
        list(entries(path))


def test_pictures_that_do_not_fit_are_named(tmp_path: Path) -> None:
    truth = small()
    draw(tmp_path, truth)
    truth["images"][0]["height"] = 25
    truth["images"][1] |= {"height": 30, "width": 20}
    truth["annotations"] += [truth["annotations"][0] | {"id": 13}]
    path = write(tmp_path, truth)
    images = CocoImages(path, tmp_path, masks=False)
    with pytest.raises(ImageError, match=r"1\.png: has 30x20 pixels, .*instances\.json says 30x25$"):
        images[0]
    with pytest.raises(ImageError, match=r"2\.png: has 30x20 pixels, .* says 20x30; its EXIF may turn it"):
        images[1]
    (tmp_path / "1.png").write_bytes(b"text")
    with pytest.raises(ImageError, match=r"1\.png: is no picture"):
        images[0]


def test_a_mask_of_too_few_pixels_is_named_with_its_file(tmp_path: Path) -> None:
    truth = small()
    draw(tmp_path, truth)
    truth["annotations"][0]["segmentation"] = {"size": [20, 30], "counts": [100, 50]}
    images = CocoImages(write(tmp_path, truth), tmp_path, masks=True)
    with pytest.raises(ImageError, match=r"instances\.json: a mask of annotations 11 is damaged"):
        images[0]
    assert len(images[1][1].boxes) == 1


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
