"""`check_coco`: every seeded fault is found and its id or file named, and clean data gives no finding."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.data.check_coco import check_coco
from davit.data.findings import CheckReport
from odd_pictures import encode, exif

Truth = dict[str, Any]
NAMES = ("cat", "dog", "bird")


def noise(seed: int, width: int, height: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def polygon(left: float, top: float, width: float, height: float) -> list[float]:
    """An octagon that touches all four sides of a box."""
    x, y = [left + width * share for share in (0, 0.3, 0.7, 1)], [top + height * share for share in (0, 0.3, 0.7, 1)]
    return [x[1], y[0], x[2], y[0], x[3], y[1], x[3], y[2], x[2], y[3], x[1], y[3], x[0], y[2], x[0], y[1]]


def object_(id_: int, image_id: int, box: list[float], category: int = 1) -> dict[str, Any]:
    area = box[2] * box[3] * (1 - 2 * 0.3 * 0.3)
    made = {"id": id_, "image_id": image_id, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
    return made | {"segmentation": [polygon(*box)]}


def crowd(id_: int, image_id: int, height: int, width: int) -> dict[str, Any]:
    """The left quarter of a picture, as uncompressed counts."""
    columns = width // 4
    counts = [0, columns * height, (width - columns) * height]
    made = {"id": id_, "image_id": image_id, "category_id": 2, "bbox": [0, 0, columns, height], "iscrowd": 1}
    return made | {"area": columns * height, "segmentation": {"size": [height, width], "counts": counts}}


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Two parts of pictures in two formats and several sizes, with polygons, a crowd, and one without objects."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for start, part, count in ((0, "train", 8), (100, "val", 4)):
        (root / f"{part}2017").mkdir(parents=True)
        images, annotations = [], []
        for number in range(start + 1, start + 1 + count):
            width, height = 80 + 4 * (number % 9), 60 + 4 * (number % 7)
            name, form = (f"{number}.jpg", "JPEG") if number % 2 else (f"{number}.png", "PNG")
            (root / f"{part}2017" / name).write_bytes(encode(noise(number, width, height), form))
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for _ in range(0 if number == start + 3 else 3):
                box = [round(float(rng.uniform(0, side / 2)), 2) for side in (width, height)]
                box += [round(float(rng.uniform(8, side / 2)), 2) for side in (width, height)]
                id_ = start + len(annotations) + 1
                annotations.append(object_(id_, number, box, 1 + id_ % 3))
        annotations.append(crowd(start + len(annotations) + 1, start + 2, images[1]["height"], images[1]["width"]))
        categories = [{"id": id_, "name": name} for id_, name in enumerate(NAMES, 1)]
        write(root, part, {"images": images, "annotations": annotations, "categories": categories})
    return root


def path_of(root: Path, part: str) -> Path:
    return root / "annotations" / f"instances_{part}2017.json"


def write(root: Path, part: str, truth: Truth) -> None:
    path_of(root, part).parent.mkdir(exist_ok=True)
    path_of(root, part).write_text(json.dumps(truth))


def read(root: Path, part: str = "train") -> Truth:
    return json.loads(path_of(root, part).read_text())


def kinds(report: CheckReport) -> set[tuple[str, str]]:
    return {(found.kind, found.level) for found in report.findings}


@pytest.mark.parametrize("workers", [0, 2])
def test_clean_data_gives_no_finding(clean: Path, workers: int) -> None:
    seen: list[int] = []
    report = check_coco(clean, workers=workers, started=seen.append, progress=seen.append)
    assert report.findings == ()
    assert report.images == {"train": 8, "val": 4}
    assert seen == [12] + [1] * 12
    assert check_coco(clean, decode=False).findings == ()


def edit(**values: Any) -> Callable[[Truth, Path], None]:
    """Change annotation 5, which lies in image 2."""

    def change(truth: Truth, root: Path) -> None:
        target = truth["annotations"][4]
        assert (target["id"], target["image_id"]) == (5, 2)
        target |= copy.deepcopy(values)

    return change


def edit_image(**values: Any) -> Callable[[Truth, Path], None]:
    return lambda truth, root: truth["images"][4].update(values)


def add(section: str, *entries: Any) -> Callable[[Truth, Path], None]:
    return lambda truth, root: truth[section].extend(copy.deepcopy(entries))


def put(name: str, data: bytes) -> Callable[[Truth, Path], None]:
    return lambda truth, root: void((root / "train2017" / name).write_bytes(data))


def void(_: object) -> None: ...


def without_masks(truth: Truth, root: Path) -> None:
    for annotation in truth["annotations"]:
        del annotation["segmentation"]


def whole_picture(truth: Truth, root: Path) -> None:
    """Boxes as edges, which some tools write."""
    target = truth["annotations"][4]
    left, top, width, height = 8, 6, 10, 9
    target |= object_(5, 2, [left, top, width, height], target["category_id"])
    target["bbox"] = [left, top, left + width, top + height]


def copy_across(truth: Truth, root: Path) -> None:
    (root / "val2017" / "101.jpg").write_bytes((root / "train2017" / "1.jpg").read_bytes())
    image = {key: truth["images"][0][key] for key in ("height", "width")}
    val = read(root, "val")
    val["images"][0] |= image
    val["annotations"] = [found for found in val["annotations"] if found["image_id"] != 101]
    write(root, "val", val)


def new_class(truth: Truth, root: Path) -> None:
    val = read(root, "val")
    val["categories"].append({"id": 4, "name": "fish"})
    val["annotations"][0]["category_id"] = 4
    write(root, "val", val)


def unscored(truth: Truth, root: Path) -> None:
    val = read(root, "val")
    val["annotations"] = [found for found in val["annotations"] if found["category_id"] != 3]
    write(root, "val", val)


def crowds_only(truth: Truth, root: Path) -> None:
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] != 2 or a["iscrowd"]]


WIDE = 80 + 4 * 2  # of image 2, which is 68 high
ENCODED = {"size": [68, WIDE], "counts": [100, 200, 68 * WIDE - 300]}
FAULTS: dict[str, tuple[str, Callable[[Truth, Path], None], str]] = {
    "degenerate-box": ("error", edit(bbox=[10, 10, 0, 20]), "annotation 5 "),
    "degenerate-box negative": ("error", edit(bbox=[30, 30, -20, 20]), "annotation 5 "),
    "box-outside": ("error", edit(bbox=[500, 10, 20, 20]), "annotation 5 "),
    "box-over-edge": ("warning", edit(**object_(5, 2, [60, 30, 40, 20]) | {"segmentation": []}), "annotation 5 "),
    "not-finite": ("error", edit(bbox=[float("nan"), 10, 20, 20]), "annotation 5 "),
    "not-finite polygon": ("error", edit(segmentation=[[1, 2, float("inf"), 4, 5, 6]]), "annotation 5 "),
    "tiny-box": ("note", edit(**object_(5, 2, [10, 10, 0.5, 0.5]) | {"segmentation": []}), "annotation 5 "),
    "unknown-category": ("error", edit(category_id=17), "category 17"),
    "unknown-image": ("error", edit(image_id=999), "image 999"),
    "duplicate-id": ("error", add("annotations", object_(5, 4, [1, 1, 20, 20])), "annotation 5 "),
    "duplicate-id image": (
        "error",
        add("images", {"id": 2, "file_name": "3.jpg", "height": 9, "width": 9}),
        "image 2 ",
    ),
    "duplicate-id category": ("error", add("categories", {"id": 2, "name": "fish"}), "category 2 "),
    "duplicate-object": ("warning", add("annotations", *(object_(n, 4, [1, 1, 20, 20]) for n in (90, 91))), "91"),
    "bad-entry": ("error", edit(bbox=[1, 2, 3]), '"id": 5'),
    "bad-entry image": ("error", add("images", {"id": 77, "file_name": "x.jpg", "height": 9}), "77"),
    "bad-entry category": ("error", add("categories", {"id": 77}), "77"),
    "bad-entry crowd": ("error", edit(iscrowd=2), '"id": 5'),
    "short-polygon": ("error", edit(segmentation=[[1, 2, 3, 4]]), "annotation 5 "),
    "short-polygon odd": ("error", edit(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 5 "),
    "mask-outside": ("error", edit(segmentation=[polygon(300, 300, 20, 20)]), "annotation 5 "),
    "mask-outside far": ("error", edit(segmentation=[polygon(10, 10, 1e7, 20)]), "annotation 5 "),
    "mask-over-edge": ("warning", edit(**object_(5, 2, [60, 30, 31, 9]) | {"bbox": [60, 30, 28, 9]}), "annotation 5 "),
    "empty-mask": ("error", edit(segmentation=[[10, 10, 20, 10, 30, 10]]), "annotation 5 "),
    "empty-mask encoded": (
        "error",
        edit(**object_(5, 2, [10, 10, 30, 30]) | {"segmentation": {"size": [68, WIDE], "counts": [68 * WIDE]}}),
        "annotation 5 ",
    ),
    "mask-size": ("error", edit(segmentation=ENCODED | {"size": [WIDE, 68]}), "annotation 5 "),
    "bad-mask": ("error", edit(segmentation=ENCODED | {"counts": "no"}), "annotation 5 "),
    "bad-mask short": ("error", edit(segmentation=ENCODED | {"counts": [5, 5]}), "annotation 5 "),
    "bad-mask kind": ("error", edit(segmentation="polygon"), "annotation 5 "),
    "missing-mask": ("error", edit(segmentation=[]), "annotation 5 "),
    "boxes-only": ("note", without_masks, "train2017.json"),
    "wrong-area": ("warning", edit(**object_(5, 2, [10, 10, 30, 30]) | {"area": 4000}), "annotation 5 "),
    "box-beside-mask": ("error", whole_picture, "annotation 5 "),
    "crowds-only": ("note", crowds_only, "image 2 "),
    "id-gaps": ("note", add("categories", {"id": 9, "name": "fish"}), "1 to 9"),
    "empty-class": ("warning", add("categories", {"id": 4, "name": "fish"}), "'fish'"),
    "same-class": ("error", add("categories", {"id": 4, "name": "cat"}), "1, 4"),
    "unknown-class": ("error", new_class, "'fish'"),
    "unscored-class": ("warning", unscored, "'bird'"),
    "placeholder": ("note", lambda truth, root: place_holder(truth), "'pets'"),
    "file-outside": ("error", edit_image(file_name="../val2017/101.jpg"), "image 5 "),
    "duplicate-file": ("error", edit_image(file_name="7.jpg", height=60, width=108), "image 7 "),
    "size-mismatch": ("error", edit_image(height=90), "5.jpg"),
    "size-mismatch turned": ("error", put("5.jpg", encode(noise(5, 100, 80), "JPEG", exif=exif(6))), "5.jpg"),
    "unreadable": ("error", lambda truth, root: (root / "train2017" / "5.jpg").unlink(), "5.jpg"),
    "damaged": ("error", put("5.jpg", encode(noise(5, 100, 80), "JPEG")[:700]), "5.jpg"),
    "not-an-image": ("error", put("5.jpg", b"<!DOCTYPE html>"), "5.jpg"),
    "leak": ("error", copy_across, "101.jpg"),
}  # fmt: skip
ALSO = {  # what the same fault makes true as well
    "box-over-edge": {"missing-mask"},
    "tiny-box": {"missing-mask"},
    "id-gaps": {"empty-class"},
    "same-class": {"empty-class"},
    "file-outside": {"unknown-image"},
    "duplicate-file": {"duplicate", "box-over-edge", "mask-over-edge", "box-outside", "mask-outside"},
}


def place_holder(truth: Truth) -> None:
    truth["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        *({**kind, "supercategory": "pets"} for kind in truth["categories"]),
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_seeded_fault_is_found_alone_and_its_id_or_file_named(clean: Path, fault: str) -> None:
    level, change, named = FAULTS[fault]
    truth = read(clean)
    change(truth, clean)
    write(clean, "train", truth)
    report = check_coco(clean)
    kind = fault.split()[0]
    assert (kind, level) in kinds(report)
    assert {found for found, _ in kinds(report)} - ALSO.get(fault, set()) == {kind}
    assert any(named in f"{found.file}: {found.message}" for found in report.findings if found.kind == kind)


def test_all_faults_of_single_objects_at_once_are_all_found(clean: Path) -> None:
    truth = read(clean)
    for number, (_, change, _) in enumerate(FAULTS.values()):
        if change.__qualname__.startswith("edit.<locals>"):
            part = read(clean)
            change(part, clean)
            truth["annotations"].append({**part["annotations"][4], "id": 1000 + number})
    write(clean, "train", truth)
    report = check_coco(clean, workers=2)
    named = {number for number in range(len(FAULTS)) if any(f"{1000 + number}" in f.message for f in report.findings)}
    assert named == {n for n, (_, change, _) in enumerate(FAULTS.values()) if "edit.<locals>" in change.__qualname__}


@pytest.mark.parametrize("data", [b"no json", b"[]", b'{"images": []}', b'{"images": [', b"\xff\xfe", b""])
def test_a_file_that_cannot_be_read_is_a_finding_and_the_others_are_checked(clean: Path, data: bytes) -> None:
    path_of(clean, "val").write_bytes(data)
    truth = read(clean)
    edit(bbox=[1, 1, 0, 0])(truth, clean)
    write(clean, "train", truth)
    assert {kind for kind, _ in kinds(check_coco(clean))} >= {"bad-file", "degenerate-box"}
