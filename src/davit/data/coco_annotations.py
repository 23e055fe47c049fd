"""COCO's annotations as arrays: little enough to hand to every process that loads pictures."""

import json
import re
from array import array
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from davit.data.coco_json import entries

FEWEST_NUMBERS = 6  # of a polygon: three points
_UNITS = 1000  # coordinates of up to three decimals are kept as whole thousandths, in half the memory
_PATH_SIGNS = re.compile(r"[/\\]")


class Category(NamedTuple):
    """A class as the file has it."""

    id: int
    name: str
    parent: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlines:
    """The segmentations of all objects: of each either polygons, or one compressed run-length encoding, or nothing.

    Attributes:
        numbers: the coordinates of all polygons, x and y by turns, in pixels or thousandths of them.
        polygons: (P + 1,) where each polygon begins among the numbers.
        objects: (N + 1,) which polygons belong to each object.
        counts: the counts of all encodings, one after the other.
        ends: (N + 1,) where those of each object begin.
    """

    numbers: NDArray[Any]
    polygons: NDArray[np.int64]
    objects: NDArray[np.int64]
    counts: bytes
    ends: NDArray[np.int64]

    def encoding(self, row: int, size: tuple[int, int]) -> dict[str, Any]:
        """Return the mask of an object as one compressed run-length encoding.

        Raises:
            ValueError, RuntimeError: it is damaged, as faster-coco-eval has it.
        """
        from faster_coco_eval.core import mask

        height, width = size
        shape: Any = self.segmentation(row, size)
        return mask.segmToRle(shape, width, height)

    def segmentation(self, row: int, size: tuple[int, int]) -> list[list[float]] | dict[str, Any]:
        """Return the segmentation as COCO has it: polygons, none of them for an object without."""
        counts = self.counts[self.ends[row] : self.ends[row + 1]]
        if counts:
            return {"size": list(size), "counts": counts.decode()}
        edges = self.polygons[self.objects[row] : self.objects[row + 1] + 1]
        scale = 1 if self.numbers.dtype == np.float64 else _UNITS
        return [(self.numbers[start:end] / scale).tolist() for start, end in pairwise(edges.tolist())]

    def known(self) -> NDArray[np.bool_]:
        """Tell which objects have a segmentation."""
        return (np.diff(self.ends) > 0) | (np.diff(self.objects) > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """What a file says, in its own order and ids.

    Attributes:
        path: the file.
        categories: the classes.
        image_ids: (I,) id of each picture.
        sizes: (I, 2) height and width.
        files: names of the files.
        ids: (N,) id of each object.
        images: (N,) place of its picture in `image_ids`.
        labels: (N,) its category id.
        boxes: (N, 4) float64: left, top, width, height.
        crowds: (N,) whether it stands for a crowd.
        areas: (N,) in pixels; where the file has none, those of the masks or boxes.
        outlines: the segmentations.
    """

    path: Path
    categories: tuple[Category, ...]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    files: tuple[str, ...]
    ids: NDArray[np.int64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    areas: NDArray[np.float64]
    outlines: Outlines


def read_annotations(path: Path, *, masks: bool) -> Annotations:
    """Read a file.

    Args:
        path: COCO JSON.
        masks: keep segmentations; otherwise only those of objects without an area.

    Raises:
        ValueError: no COCO file, or one with an entry that cannot be right; it names its id.
        OSError: it cannot be read.
    """
    reader = _Reader(masks)
    for section, entry in entries(path):
        try:
            getattr(reader, section)(entry)
        except KeyError as error:
            raise ValueError(f"{path}: {_called(section, entry)} has no {error}") from error
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path}: {_called(section, entry)} is damaged: {error}") from error
    return reader.finish(path)


def _called(section: str, entry: dict[str, Any]) -> str:
    one = {"images": "image", "annotations": "annotation", "categories": "category"}[section]
    return f"{one} {entry['id']!r}" if "id" in entry else f"{one} {json.dumps(entry)[:60]}"


class _Reader:
    """Grows arrays, a method for each section."""

    def __init__(self, masks: bool) -> None:
        self.masks = masks
        self.kinds: list[Category] = []
        self.image_ids, self.sizes, self.files = array("q"), array("q"), list[str]()
        self.ids, self.owners, self.labels, self.crowds = array("q"), array("q"), array("q"), array("b")
        self.boxes, self.areas, self.numbers = array("d"), array("d"), array("d")
        self.polygons, self.objects, self.ends = array("q", [0]), array("q", [0]), array("q", [0])
        self.counts = bytearray()
        self.mask_sizes: dict[int, tuple[int, int]] = {}  # of encodings, by object

    def images(self, entry: dict[str, Any]) -> None:
        name = entry["file_name"]
        if not isinstance(name, str) or not is_inside(name):
            raise ValueError(f"file_name {name!r} leads out of the folder of the images")
        if entry["height"] < 1 or entry["width"] < 1:
            raise ValueError(f"its height and width are {entry['height']} and {entry['width']}")
        self.files.append(name)
        self.image_ids.append(entry["id"])
        self.sizes.extend((entry["height"], entry["width"]))

    def categories(self, entry: dict[str, Any]) -> None:
        if not isinstance(entry["name"], str) or not isinstance(entry["id"], int):
            raise ValueError(f"its id must be a whole number and its name text, got {entry['name']!r}")
        self.kinds.append(Category(entry["id"], entry["name"], str(entry.get("supercategory", ""))))

    def annotations(self, entry: dict[str, Any]) -> None:
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError(f"its bbox must be [left, top, width, height], got {json.dumps(box)[:60]}")
        self.boxes.extend(box)
        self.ids.append(entry["id"])
        self.owners.append(entry["image_id"])
        self.labels.append(entry["category_id"])
        self.crowds.append(entry.get("iscrowd", 0))
        area = entry.get("area")
        self.areas.append(float("nan") if area is None else area)
        if self.masks or area is None:
            self._segmentation(entry.get("segmentation"))
        self.objects.append(len(self.polygons) - 1)
        self.ends.append(len(self.counts))

    def _segmentation(self, value: Any) -> None:
        if isinstance(value, dict):
            height, width = value["size"]
            self.mask_sizes[len(self.ids) - 1] = (height, width)
            self.counts += compressed(value)
            return
        for polygon in value or ():
            if len(polygon) >= FEWEST_NUMBERS and len(polygon) % 2 == 0:
                self.numbers.extend(polygon)
                self.polygons.append(len(self.numbers))

    def finish(self, path: Path) -> Annotations:
        ids, image_ids = np.array(self.ids), np.array(self.image_ids)
        labels, kinds = np.array(self.labels), np.array([kind.id for kind in self.kinds], dtype=np.int64)
        for name, values in (("image", image_ids), ("annotation", ids), ("category", kinds)):
            _refuse_twice(path, name, values)
        _places(path, ids, labels, kinds, "category")
        read = Annotations(
            path=path,
            categories=tuple(self.kinds),
            image_ids=image_ids,
            sizes=np.array(self.sizes).reshape(-1, 2),
            files=tuple(self.files),
            ids=ids,
            images=_places(path, ids, np.array(self.owners), image_ids, "image"),
            labels=labels,
            boxes=np.array(self.boxes).reshape(-1, 4),
            crowds=np.array(self.crowds).astype(bool),
            areas=np.array(self.areas),
            outlines=Outlines(
                numbers=_lean(np.array(self.numbers)),
                polygons=np.array(self.polygons),
                objects=np.array(self.objects),
                counts=bytes(self.counts),
                ends=np.array(self.ends),
            ),
        )
        _refuse_infinite(read)
        for row, size in self.mask_sizes.items():
            expected = tuple(read.sizes[read.images[row]].tolist())
            if size != expected:
                raise ValueError(
                    f"{path}: the mask of annotation {ids[row]} is {size} high and wide, its image {expected}"
                )
        return _with_areas(read)


def compressed(encoding: dict[str, Any]) -> bytes:
    """The counts of a run-length encoding in their compressed form.

    Raises:
        ValueError, RuntimeError: they are damaged, as faster-coco-eval has it.
    """
    from faster_coco_eval.core import mask

    height, width = encoding["size"]
    counts = mask.segmToRle(encoding, width, height)["counts"]
    return counts if isinstance(counts, bytes) else counts.encode()


def _with_areas(read: Annotations) -> Annotations:
    """Fill in the areas that the file does not have: those of the masks, or of the boxes."""
    from faster_coco_eval.core import mask

    areas, known = read.areas.copy(), read.outlines.known()
    for row in np.flatnonzero(np.isnan(areas)).tolist():
        height, width = read.sizes[read.images[row]].tolist()
        box = read.boxes[row].clip(min=0)
        areas[row] = mask.area(read.outlines.encoding(row, (height, width))) if known[row] else box[2] * box[3]
    return replace(read, areas=areas)


def _lean(numbers: NDArray[np.float64]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        units = np.rint(numbers * _UNITS)
        whole = (np.abs(units) < 2**31).all() and (units / _UNITS == numbers).all()
    return units.astype(np.int32) if whole else numbers


def _refuse_infinite(read: Annotations) -> None:
    outlines = read.outlines
    numbers = np.flatnonzero(~np.isfinite(outlines.numbers))
    polygons = np.searchsorted(outlines.polygons, numbers, side="right") - 1
    objects = np.searchsorted(outlines.objects, polygons, side="right") - 1
    rows = np.concatenate([objects, np.flatnonzero(~np.isfinite(read.boxes).all(1))])
    if len(rows):
        raise ValueError(f"{read.path}: annotation {read.ids[rows[0]]} has coordinates that are no finite numbers")


def _refuse_twice(path: Path, kind: str, ids: NDArray[np.int64]) -> None:
    values, uses = np.unique(ids, return_counts=True)
    if (uses > 1).any():
        raise ValueError(f"{path}: {kind} id {values[uses > 1][0]} is there {uses.max()} times; ids must differ")


def _places(
    path: Path, ids: NDArray[np.int64], wanted: NDArray[np.int64], known: NDArray[np.int64], kind: str
) -> NDArray[np.int64]:
    """Where each wanted id is among the known ones."""
    order = np.argsort(known, kind="stable")
    spots = np.searchsorted(known, wanted, sorter=order).clip(max=max(len(known) - 1, 0))
    places = order[spots] if len(known) else np.zeros_like(wanted)
    lost = known[places] != wanted if len(known) else np.ones(len(wanted), dtype=bool)
    if lost.any():
        raise ValueError(f"{path}: annotation {ids[lost][0]} belongs to {kind} {wanted[lost][0]}, which is not there")
    return places


def is_inside(name: str) -> bool:
    """Whether a file name stays in its folder, on every system."""
    parts = _PATH_SIGNS.split(name)
    odd = ".." in parts or "\0" in name or re.match("[A-Za-z]:", name)
    return bool(parts[0] and parts[-1] and not odd)
