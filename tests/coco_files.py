"""COCO files for tests, made from seeds, and what pycocotools reads in them."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO

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
