"""COCO data sets: pictures with boxes, masks and crowds, and the files they lie in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from davit.data.coco_annotations import Annotations, read_annotations
from davit.data.coco_classes import match_categories
from davit.data.folder import SPLITS
from davit.decoding import ImageError, read_image, show_path
from davit.structures import Instances

if TYPE_CHECKING:
    from PIL.Image import Image

_INSTANCES = re.compile(r"instances_(train|val|test)\d*\.json")
_ROBOFLOW = "_annotations.coco.json"
_LEAST_SIDE = 1  # pixels of a box inside its picture; mmdet trains on no smaller ones either


class CocoFiles(NamedTuple):
    """Where a part of a data set lies.

    Attributes:
        annotations: the JSON file.
        images: the folder that its file names begin in.
    """

    annotations: Path
    images: Path


@dataclass(frozen=True)
class CocoSource:
    """A COCO data set.

    Attributes:
        root: its folder.
        parts: those of `train`, `val` and `test` that are there.
    """

    root: Path
    parts: dict[str, CocoFiles]

    @property
    def train(self) -> CocoFiles:
        """The part to learn from.

        Raises:
            ValueError: there is none.
        """
        if "train" not in self.parts:
            raise ValueError(f"{self.root} has annotations of {' and '.join(self.parts)} only, and none to train on")
        return self.parts["train"]

    @property
    def validation(self) -> CocoFiles:
        """The part to score on: `val`, or without one `test`.

        Raises:
            ValueError: there is neither.
        """
        for part in ("val", "test"):
            if part in self.parts:
                return self.parts[part]
        raise ValueError(f"{self.root} has annotations of train only, and none to score on")


def find_coco(root: str | Path) -> CocoSource:
    """Find the parts of a COCO data set.

    It is laid out as COCO's own, `annotations/instances_train2017.json` beside `train2017/` (or `images/train2017/`),
    of any year or none; or as Roboflow exports it, `train/_annotations.coco.json` among the images, with `valid` for
    `val`.

    Raises:
        ValueError: neither, two files for one part, or annotations without their folder of images.
    """
    root = Path(root)
    parts: dict[str, CocoFiles] = {}
    for part, path in _annotations(root):
        if part in parts:
            raise ValueError(f"{parts[part].annotations} and {path} are both for {part}: keep only one in {root}")
        parts[part] = CocoFiles(path, path.parent if path.name == _ROBOFLOW else _images(root, path))
    if not parts:
        raise ValueError(
            f"{root} is no COCO data set: it has neither annotations/instances_train2017.json (of any year) "
            f"nor train/{_ROBOFLOW}"
        )
    return CocoSource(root, {part: parts[part] for part in SPLITS if part in parts})


def is_coco(root: str | Path) -> bool:
    """Whether a folder has annotations where `find_coco` looks for them."""
    return bool(_annotations(Path(root)))


def _annotations(root: Path) -> list[tuple[str, Path]]:
    """Files of annotations with the part they are for."""
    files: list[tuple[str, Path]] = []
    for path in sorted((root / "annotations").glob("instances_*.json")):
        if match := _INSTANCES.fullmatch(path.name):
            files.append((match[1], path))
    for folder in ("train", "val", "valid", "test"):
        if (path := root / folder / _ROBOFLOW).is_file():
            files.append(("val" if folder == "valid" else folder, path))
    return files


def _images(root: Path, annotations: Path) -> Path:
    name = annotations.stem.removeprefix("instances_")
    places = (root / name, root / "images" / name)
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(f"{annotations} has no images beside it: expected them in {places[0]}")


class CocoImages(Dataset[tuple["Image", Instances]]):
    """The pictures of a COCO file with their objects.

    Attributes:
        path: the annotations.
        root: the folder of the images.
        masks: whether objects come with masks.
        classes: class names, in the order of the indices.
        category_ids: id of each class in the annotations. Classes of other data that this file does not know get ids
            that nothing here has.
        dropped: number of objects that are left out because nothing can be learnt from them: boxes of which less than
            a pixel lies in the picture and, with masks, objects without one. Crowds are not counted.
    """

    def __init__(self, annotations: Path, images: Path, masks: bool, classes: Sequence[str] | None = None) -> None:
        """Read the annotations; pictures are not looked at.

        Args:
            annotations: COCO JSON.
            images: the folder that its file names begin in.
            masks: load masks as well as boxes.
            classes: class names of a model or of the training part, to be matched by name; None takes the file's
                categories by their ids.

        Raises:
            ValueError: a damaged file, one without anything to learn, or with objects of a class that is not among
                `classes`; it names the file and the id.
            OSError: the file cannot be read.
        """
        self.path, self.root, self.masks = Path(annotations), Path(images), masks
        self._read = read = read_annotations(self.path, masks=masks)
        self.classes, self.category_ids = match_categories(read, classes)
        indices = {number: index for index, number in enumerate(self.category_ids)}
        self._classes = np.array([indices[label] for label in read.labels.tolist()], dtype=np.int64)
        boxes = _inside(read)
        self._boxes = boxes.astype(np.float32)
        usable = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST_SIDE).all(1) & ~read.crowds
        if masks:
            usable &= read.outlines.known()
        self.dropped = int((~usable & ~read.crowds).sum())
        if self.dropped and not usable.any():
            ways = "boxes are [left, top, width, height] in pixels" + ("; masks need a segmentation" if masks else "")
            raise ValueError(f"{self.path}: none of its {self.dropped} objects can be learnt from: {ways}")
        rows = np.flatnonzero(usable)
        self._rows = rows[np.argsort(read.images[rows], kind="stable")]
        self._starts = np.searchsorted(read.images[self._rows], np.arange(len(read.image_ids) + 1))

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._read.image_ids)

    def __getitem__(self, index: int) -> tuple["Image", Instances]:
        """Return a picture and its objects, without crowds.

        Raises:
            ImageError: the file cannot be decoded or has another size than the annotations say, or a mask is damaged.
        """
        picture = read_image(self._file(index))
        height, width = self.size(index)
        if picture.size != (width, height):
            turned = "; its EXIF may turn it" if picture.size == (height, width) else ""
            shape = f"{picture.width}x{picture.height}"
            raise ImageError(f"{self.name(index)}: has {shape} pixels, {self.path} says {width}x{height}{turned}")
        rows = self._rows[self._starts[index] : self._starts[index + 1]]
        instances = Instances(
            boxes=torch.from_numpy(self._boxes[rows]),
            labels=torch.from_numpy(self._classes[rows]),
            masks=self._masks(rows, (height, width)) if self.masks else None,
        )
        return picture, instances

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of a picture, as the annotations say."""
        height, width = self._read.sizes[index].tolist()
        return height, width

    def name(self, index: int) -> str:
        """Return what errors call a picture: its path."""
        return show_path(self._file(index))

    def with_objects(self) -> list[int]:
        """Return the pictures that have something to learn."""
        return np.flatnonzero(np.diff(self._starts)).tolist()

    def ground_truth(self) -> dict[str, Any]:
        """Return what to score against, as COCO's JSON: all objects, crowds and those left out of training included.

        Raises:
            ValueError: with masks, an object has none, so that it could never be found.
        """
        read = self._read
        known = read.outlines.known()
        if self.masks and not known.all():
            raise ValueError(
                f"{self.path}: annotation {read.ids[~known][0]} and {int((~known).sum()) - 1} more have no usable "
                f"segmentation, so masks cannot be scored; `davit data check` lists them, or score boxes only"
            )
        sizes = read.sizes.tolist()
        images = [
            {"id": number, "file_name": file, "height": height, "width": width}
            for number, file, (height, width) in zip(read.image_ids.tolist(), read.files, sizes, strict=True)
        ]
        annotations = [
            {"id": number, "image_id": images[image]["id"], "category_id": label}
            | {"bbox": box, "area": area, "iscrowd": int(crowd)}
            for number, image, label, box, area, crowd in zip(
                read.ids.tolist(),
                read.images.tolist(),
                read.labels.tolist(),
                read.boxes.tolist(),
                read.areas.tolist(),
                read.crowds.tolist(),
                strict=True,
            )
        ]
        if self.masks:
            for row, (annotation, image) in enumerate(zip(annotations, read.images.tolist(), strict=True)):
                annotation["segmentation"] = read.outlines.segmentation(row, tuple(sizes[image]))
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _file(self, index: int) -> Path:
        return self.root / self._read.files[index]

    def _masks(self, rows: NDArray[np.int64], size: tuple[int, int]) -> torch.Tensor:
        """(objects, height, width) bool."""
        from faster_coco_eval.core import mask

        if not len(rows):
            return torch.zeros((0, *size), dtype=torch.bool)
        try:
            encoded = [self._read.outlines.encoding(row, size) for row in rows.tolist()]
            stacked = mask.decode(encoded)  # (height, width, objects) uint8
        except (ValueError, RuntimeError) as error:
            numbers = ", ".join(map(str, self._read.ids[rows].tolist()))
            raise ImageError(f"{self.path}: a mask of annotations {numbers} is damaged: {error}") from error
        return torch.from_numpy(stacked.transpose(2, 1, 0)).view(torch.bool).mT.contiguous()  # it lies column by column


def _inside(read: Annotations) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom of the part of each box that lies in its picture."""
    edges = np.concatenate([read.boxes[:, :2], read.boxes[:, :2] + read.boxes[:, 2:]], 1)
    limits = read.sizes[read.images][:, ::-1]  # width, height
    return edges.clip(0, np.tile(limits, 2))
