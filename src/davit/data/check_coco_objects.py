"""What is wrong with the objects of a COCO file: their ids, boxes, masks and areas."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from davit.data.coco_annotations import FEWEST_NUMBERS
from davit.data.findings import Finding, Level
from davit.decoding import show_path

SLACK = 1  # pixels that a box or mask may lie over the edge: annotators' tools round
LEAST_SIDE = 1  # pixels of a box that can be learnt from
AREA_SHARE = 0.5  # an area contradicts the mask if it differs by more than this part of the larger,
LEAST_OVERLAP = 0.5  # and a box if it overlaps the mask's own box by less
AROUND = 2  # ... and by more than so many pixels along the edges, for thin things are rounded a lot
Edges = tuple[float, float, float, float]  # left, top, right, bottom


class ImageEntry(NamedTuple):
    """A picture as the file has it."""

    name: str
    height: int
    width: int


class ObjectChecks:
    """Looks at one object after the other.

    Attributes:
        uses: number of objects of each category id.
        plain: number of objects of each image id that stand for no crowd.
        crowds: number of those that do.
    """

    def __init__(self, path: Path, images: Mapping[int, ImageEntry], categories: Mapping[int, str]) -> None:
        """Take the valid images and the names of the valid categories, by id."""
        self.where, self.images, self.categories = show_path(path), images, categories
        self.uses, self.plain, self.crowds = Counter[int](), Counter[int](), Counter[int]()
        self._ids: set[int] = set()
        self._seen: set[int] = set()  # hashes of objects
        self._outlined = 0
        self._bare: list[int] = []  # objects without a segmentation

    def look(self, entry: dict[str, Any]) -> Iterator[Finding]:
        """Yield what is wrong with an object."""
        fault = _unreadable(entry)
        if fault:
            yield self._found("error", "bad-entry", f"annotation {json.dumps(entry)[:60]} {fault}")
            return
        id_, image_id, category_id = entry["id"], entry["image_id"], entry["category_id"]
        called = f"annotation {id_}"
        if id_ in self._ids:
            yield self._found("error", "duplicate-id", f"{called} is there twice")
        self._ids.add(id_)
        if category_id not in self.categories:
            yield self._found("error", "unknown-category", f"{called} is of category {category_id}, which is not there")
        if image_id not in self.images:
            yield self._found("error", "unknown-image", f"{called} belongs to image {image_id}, which is not there")
            return
        crowd = bool(entry.get("iscrowd", 0))
        self.uses[category_id] += 1
        (self.crowds if crowd else self.plain)[image_id] += 1
        called += f" of image {image_id} ({self.images[image_id].name})"
        faults = list(self._box(entry, called))
        yield from faults
        good = not any(found.level == "error" for found in faults)
        yield from self._mask(entry, called, _edges(entry["bbox"]) if good else None)

    def end(self) -> Iterator[Finding]:
        """Yield what is known after the last object."""
        for id_ in self._bare if self._outlined else ():
            yield self._found("error", "missing-mask", f"annotation {id_} has no segmentation, others have")
        if self._bare and not self._outlined:
            yield self._found("note", "boxes-only", "no object has a segmentation, so there are boxes to learn only")
        for id_ in sorted(self.crowds.keys() - self.plain.keys()):
            message = f"image {id_} ({self.images[id_].name}) has crowds only, so there is nothing to learn"
            yield self._found("note", "crowds-only", message)

    def _found(self, level: Level, kind: str, message: str) -> Finding:
        return Finding(level=level, kind=kind, file=self.where, message=message)

    def _box(self, entry: dict[str, Any], called: str) -> Iterator[Finding]:
        box, image = entry["bbox"], self.images[entry["image_id"]]
        if not all(map(math.isfinite, box)):
            yield self._found("error", "not-finite", f"{called} has the box {box}")
            return
        shape = f"the box {box} (left, top, width, height)"
        if box[2] <= 0 or box[3] <= 0:
            yield self._found("error", "degenerate-box", f"{called} has {shape} without an area")
            return
        inner = _clipped(_edges(box), image)
        sides = inner[2] - inner[0], inner[3] - inner[1]
        outside = _overhang(_edges(box), image)
        picture = f"picture of {image.width}x{image.height}"
        if min(sides) <= 0:
            yield self._found("error", "box-outside", f"{called} has {shape} outside its {picture}")
        elif outside > SLACK:
            message = f"{called} has {shape}, {outside:.1f} pixels over its {picture}"
            yield self._found("warning", "box-over-edge", message)
        elif min(sides) < LEAST_SIDE:
            yield self._found("note", "tiny-box", f"{called} has {shape} under a pixel, so it is left out of training")
        same = hash((entry["image_id"], entry["category_id"], *box))
        if same in self._seen:
            yield self._found("warning", "duplicate-object", f"{called} repeats {shape} of another of its class")
        self._seen.add(same)

    def _mask(self, entry: dict[str, Any], called: str, box: Edges | None) -> Iterator[Finding]:
        """Look at the segmentation, and at the area, which is to be that of the mask."""
        segmentation, image = entry.get("segmentation"), self.images[entry["image_id"]]
        size: tuple[float, Edges] | None = None
        if not segmentation:
            self._bare.append(entry["id"])
            if box is not None:
                size = (box[2] - box[0]) * (box[3] - box[1]), box
        else:
            self._outlined += 1
            faults = list(_outline_faults(segmentation, image))
            for level, kind, message in faults:
                yield self._found(level, kind, f"{called} {message}")
            if any(kind != "mask-over-edge" for _, kind, _ in faults):
                return
            measured = _measured(segmentation, image)
            if isinstance(measured, str):
                yield self._found("error", "bad-mask", f"{called} has a mask that is damaged: {measured}")
                return
            size = measured
        yield from self._size(entry, called, size, box)

    def _size(
        self, entry: dict[str, Any], called: str, size: tuple[float, Edges] | None, box: Edges | None
    ) -> Iterator[Finding]:
        if size is None:
            return
        pixels, tight = size
        if pixels == 0:
            level: Level = "warning" if box and _rim(box) <= 4 * AROUND else "error"
            yield self._found(level, "empty-mask", f"{called} has a mask without a pixel")
            return
        yield from self._area(entry, called, pixels, AROUND * _rim(tight))
        if box is not None and _overlap(box, tight) < LEAST_OVERLAP:
            moved = max(abs(mine - theirs) for mine, theirs in zip(box, tight, strict=True))
            if moved > 2 * AROUND:
                around = [round(edge) for edge in (*tight[:2], tight[2] - tight[0], tight[3] - tight[1])]
                message = f"{called} has the box {entry['bbox']}, but its mask lies in {around}"
                yield self._found("error", "box-beside-mask", message)

    def _area(self, entry: dict[str, Any], called: str, pixels: float, slack: float) -> Iterator[Finding]:
        area = entry.get("area")
        if area is None:
            return
        outlined = bool(entry.get("segmentation"))
        apart = abs(area - pixels) if outlined else area - pixels  # within a box, the object may be thin
        if not math.isfinite(area) or area < 0 or apart > max(AREA_SHARE * max(area, pixels), slack):
            what = "mask" if outlined else "box"
            yield self._found("warning", "wrong-area", f"{called} has the area {area}, its {what} {pixels:.0f} pixels")


def _unreadable(entry: dict[str, Any]) -> str:
    """What keeps an entry from being read at all."""
    for key in ("id", "image_id", "category_id", "bbox"):
        if key not in entry:
            return f"has no {key}"
    for key in ("id", "image_id", "category_id"):
        if not isinstance(entry[key], int):
            return f"has a {key} that is no whole number"
    box, area = entry["bbox"], entry.get("area")
    if not isinstance(box, list) or len(box) != 4 or not _numbers(box):
        return "has a bbox that is not [left, top, width, height]"
    if area is not None and not _numbers([area]):
        return "has an area that is no number"
    return "" if entry.get("iscrowd", 0) in (0, 1) else "has an iscrowd other than 0 and 1"


def _outline_faults(segmentation: Any, image: ImageEntry) -> Iterator[tuple[Level, str, str]]:
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size != [image.height, image.width]:
            expected = [image.height, image.width]
            yield "error", "mask-size", f"has a mask of size {size}, its picture is {expected} high and wide"
        return
    polygons = segmentation if isinstance(segmentation, list) else [segmentation]
    for polygon in polygons:
        if not isinstance(polygon, list) or not _numbers(polygon):
            yield "error", "bad-mask", "has a segmentation that is neither polygons nor a run-length encoding"
            return
        if len(polygon) < FEWEST_NUMBERS or len(polygon) % 2:
            yield "error", "short-polygon", f"has a polygon of {len(polygon)} numbers; three points take six"
            return
        if not all(map(math.isfinite, polygon)):
            yield "error", "not-finite", "has a polygon with coordinates that are no finite numbers"
            return
    across, down = [x for part in polygons for x in part[::2]], [y for part in polygons for y in part[1::2]]
    edges = min(across), min(down), max(across), max(down)
    inner = _clipped(edges, image)
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        flat = edges[0] == edges[2] or edges[1] == edges[3]
        message = "has a mask without an area" if flat else "has a mask outside its picture"
        yield "error", "empty-mask" if flat else "mask-outside", message
    elif (outside := _overhang(edges, image)) > SLACK:
        level: Level = "error" if outside > max(image.height, image.width) else "warning"
        yield (
            level,
            "mask-over-edge" if level == "warning" else "mask-outside",
            (f"has a mask that reaches {outside:.1f} pixels out of its picture"),
        )


def _measured(segmentation: Any, image: ImageEntry) -> tuple[float, Edges] | str:
    """Pixels and edges of a mask, or why there are none."""
    from faster_coco_eval.core import mask

    try:
        encoded = mask.segmToRle(segmentation, image.width, image.height)
        if isinstance(segmentation, dict):
            mask.decode(encoded)  # the only one to count whether all pixels are there
        left, top, width, height = mask.toBbox(encoded).tolist()
        return float(mask.area(encoded)), (left, top, left + width, top + height)
    except (ValueError, RuntimeError, KeyError, TypeError, IndexError) as error:
        return str(error).split("\n")[0][:100] or type(error).__name__


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _edges(box: list[float]) -> Edges:
    left, top, width, height = box
    return left, top, left + width, top + height


def _clipped(edges: Edges, image: ImageEntry) -> Edges:
    left, top, right, bottom = edges
    return max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)


def _overhang(edges: Edges, image: ImageEntry) -> float:
    """How many pixels the farthest edge lies outside the picture."""
    left, top, right, bottom = edges
    return max(-left, -top, right - image.width, bottom - image.height)


def _rim(edges: Edges) -> float:
    left, top, right, bottom = edges
    return 2 * (right - left + bottom - top)


def _overlap(one: Edges, other: Edges) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(edges[2] - edges[0]) * (edges[3] - edges[1]) for edges in (one, other)]
    return shared / (sum(areas) - shared)
