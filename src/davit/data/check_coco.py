"""Look for what spoils training or scores in a COCO data set."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from davit.data.check_coco_objects import ImageEntry, ObjectChecks
from davit.data.check_images import all_image_findings
from davit.data.coco import CocoFiles, find_coco
from davit.data.coco_annotations import Category, is_inside
from davit.data.coco_classes import is_placeholder
from davit.data.coco_json import entries
from davit.data.findings import CheckReport, Finding, Level
from davit.data.image_facts import ImageFacts, PictureFiles, measure
from davit.decoding import FORMATS, QUIET, show_path

Progress = Callable[[int], object]  # is told how many images were looked at
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # values of it that swap width and height


@dataclass
class _Part:
    """What is known of one part, as far as it can be read.

    Attributes:
        name: `train`, `val` or `test`.
        files: where it lies.
        images: the pictures by id.
        categories: the classes by id.
        uses: number of objects of each category id.
    """

    name: str
    files: CocoFiles
    images: dict[int, ImageEntry] = field(default_factory=dict)
    categories: dict[int, Category] = field(default_factory=dict)
    uses: Mapping[int, int] = field(default_factory=dict)

    def about(self, level: Level, kind: str, message: str) -> Finding:
        """A finding about the annotations."""
        return Finding(level=level, kind=kind, file=show_path(self.files.annotations), message=message)


def check_coco(
    root: str | Path,
    *,
    decode: bool = True,
    workers: int = 0,
    started: Callable[[int], object] = lambda _: None,
    progress: Progress = lambda _: None,
) -> CheckReport:
    """Check the pictures, objects and classes of a COCO data set.

    Args:
        root: what `find_coco` takes.
        decode: decode every image; otherwise only their bytes and headers are looked at.
        workers: processes that do it; 0 is this one.
        started: told the number of images before the first.
        progress: told after each image.

    Raises:
        ValueError: no annotations there.
    """
    parts = [_Part(name, files) for name, files in find_coco(root).parts.items()]
    findings = [finding for part in parts for finding in _annotation_findings(part)]
    findings += _class_findings(parts)
    started(sum(len(part.images) for part in parts))
    facts: dict[str, list[tuple[str, ImageFacts]]] = {}
    for part in parts:
        pictures = PictureFiles([part.files.images / image.name for image in part.images.values()])
        facts[part.name] = []
        for fact in measure(pictures, decode=decode, workers=workers):
            facts[part.name].append(("", fact))
            progress(1)
        for (id_, image), path, (_, fact) in zip(part.images.items(), pictures.paths, facts[part.name], strict=True):
            findings += _size(part, id_, image, path, fact)
    findings += all_image_findings(facts)
    return CheckReport.of(str(root), {part.name: len(part.images) for part in parts}, findings)


def _annotation_findings(part: _Part) -> Iterator[Finding]:
    """Read the file twice: the objects may come before the pictures that they lie in."""
    try:
        names: set[str] = set()
        for section, entry in entries(part.files.annotations):
            if section == "images":
                yield from _image_entry(part, entry, names)
            elif section == "categories":
                yield from _category_entry(part, entry)
        names_by_id = {id_: category.name for id_, category in part.categories.items()}
        checks = ObjectChecks(part.files.annotations, part.images, names_by_id)
        for section, entry in entries(part.files.annotations):
            if section == "annotations":
                yield from checks.look(entry)
        yield from checks.end()
        part.uses = checks.uses
    except (ValueError, OSError) as error:
        yield part.about("error", "bad-file", str(error))


def _image_entry(part: _Part, entry: dict[str, Any], names: set[str]) -> Iterator[Finding]:
    id_, name, height, width = (entry.get(key) for key in ("id", "file_name", "height", "width"))
    whole = isinstance(id_, int) and isinstance(height, int) and isinstance(width, int)
    if not whole or not isinstance(name, str) or height < 1 or width < 1:
        message = f"image {json.dumps(entry)[:80]} needs an id, a file_name, and a height and width above 0"
        yield part.about("error", "bad-entry", message)
    elif not is_inside(name):
        yield part.about("error", "file-outside", f"image {id_} is {name!r}, which leads out of {part.files.images}")
    elif id_ in part.images:
        yield part.about("error", "duplicate-id", f"image {id_} is there twice: {part.images[id_].name} and {name}")
    else:
        if name in names:
            yield part.about("error", "duplicate-file", f"image {id_} is {name}, which is there under another id")
        names.add(name)
        part.images[id_] = ImageEntry(name, height, width)


def _category_entry(part: _Part, entry: dict[str, Any]) -> Iterator[Finding]:
    id_, name = entry.get("id"), entry.get("name")
    if not isinstance(id_, int) or not isinstance(name, str):
        yield part.about("error", "bad-entry", f"category {json.dumps(entry)[:80]} needs an id and a name")
    elif id_ in part.categories:
        message = f"category {id_} is there twice: {part.categories[id_].name} and {name}"
        yield part.about("error", "duplicate-id", message)
    else:
        part.categories[id_] = Category(id_, name, str(entry.get("supercategory", "")))


def _class_findings(parts: list[_Part]) -> Iterator[Finding]:
    train = next((part for part in parts if part.name == "train"), None)
    for part in parts:
        yield from _categories(part)
        if train is None or part is train or not train.categories:
            continue
        learnt = {kind.name for kind in train.categories.values()}
        used = {kind.name for id_, kind in part.categories.items() if part.uses.get(id_)}
        for name in sorted(used - learnt):
            yield part.about("error", "unknown-class", f"class {name!r} is not among those of train")
        for id_, kind in train.categories.items():
            if train.uses.get(id_) and kind.name not in used:
                message = f"class {kind.name!r} of train has no objects here, so it is not scored"
                yield part.about("warning", "unscored-class", message)


def _categories(part: _Part) -> Iterator[Finding]:
    kinds = list(part.categories.values())
    used = [kind for kind in kinds if part.uses.get(kind.id)]
    learnt = part.name == "train"
    for kind in kinds:
        if kind in used:
            continue
        if is_placeholder(kind, kinds):
            message = f"category {kind.id}, {kind.name!r}, has no objects and only heads others, so it is no class"
            yield part.about("note", "placeholder", message)
        elif learnt:
            yield part.about("warning", "empty-class", f"class {kind.name!r} (category {kind.id}) has no objects")
    classes = [kind for kind in kinds if kind in used or not is_placeholder(kind, kinds)]
    names = [kind.name for kind in classes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        numbers = ", ".join(str(kind.id) for kind in classes if kind.name == name)
        yield part.about("error", "same-class", f"categories {numbers} are all called {name!r}")
    numbers = sorted(kind.id for kind in classes)
    if numbers and numbers[-1] - numbers[0] >= len(numbers):
        count = numbers[-1] - numbers[0] + 1 - len(numbers)
        message = f"category ids {numbers[0]} to {numbers[-1]} have {count} gaps; classes are counted without them"
        yield part.about("note", "id-gaps", message)


def _size(part: _Part, id_: int, image: ImageEntry, path: Path, fact: ImageFacts) -> Iterator[Finding]:
    """Compare a picture's size with the annotations: that in which it is shown."""
    if fact.fault:
        return
    turned = fact.width != fact.height and _is_turned(path)
    size = (fact.height, fact.width) if turned else (fact.width, fact.height)
    if size != (image.width, image.height):
        why = ", turned as its EXIF says" if turned else ""
        said = f"{image.width}x{image.height} in {part.files.annotations.name}"
        message = f"has {size[0]}x{size[1]} pixels{why}, but image {id_} is {said}"
        yield Finding(level="error", kind="size-mismatch", file=fact.name, message=message)


def _is_turned(path: Path) -> bool:
    try:
        with QUIET(), Image.open(path, formats=FORMATS) as image:
            return image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception:  # on damaged bytes Pillow raises nearly every type there is; then it is shown as stored
        return False
