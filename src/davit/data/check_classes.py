"""What is wrong with class folders and the classes of shards: the part of a check that only classification has."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from davit.data.findings import Finding, Level
from davit.data.images import LabelledImages
from davit.decoding import SUFFIXES, show_path


def class_findings(parts: Mapping[str, LabelledImages]) -> Iterator[Finding]:
    """Compare the classes of the parts with each other."""
    for part, images in parts.items():
        where = f"{images.root} ({part})"
        for name in images.empty:
            learnt = part not in ("val", "test")
            level: Level = "error" if learnt else "warning"
            yield Finding(level=level, kind="empty-class", file=where, message=f"class {name!r} has no images")
        yield from name_findings(images.classes, where)
    if "train" not in parts:
        return
    train = parts["train"]
    learnt = _filled(train)
    for part in ("val", "test"):
        if part not in parts:
            continue
        scored = _filled(parts[part])
        where = f"{parts[part].root} ({part})"
        for name in sorted(scored - set(train.classes)):
            message = f"class {name!r} is not among those of train"
            yield Finding(level="error", kind="unknown-class", file=where, message=message)
        for name in sorted(learnt - scored):
            message = f"class {name!r} of train has no images here, so it is not scored"
            yield Finding(level="warning", kind="unscored-class", file=where, message=message)


def _filled(images: LabelledImages) -> set[str]:
    return {images.classes[label] for label in Counter(int(label) for label in images.labels)}


def name_findings(classes: Sequence[str], where: str) -> Iterator[Finding]:
    """Find class names that are easily the same class, or that do not survive a copy to another system."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold() or name].append(name)
        if name != name.strip() or not name.isprintable():
            message = f"class {name!r} begins or ends with a space, or holds what cannot be printed"
            yield Finding(level="warning", kind="odd-class-name", file=where, message=message)
    for names in alike.values():
        if len(names) > 1:
            message = f"classes {', '.join(map(repr, names))} differ only in case, accents' form or separators"
            yield Finding(level="error", kind="similar-classes", file=where, message=message)


def folder_findings(root: Path) -> Iterator[Finding]:
    """Say which files of a folder of class folders are passed over, and which folders cannot be read."""
    errors: list[OSError] = []
    for parent, folders, files in os.walk(root, onerror=errors.append):
        for name in sorted(name for name in (*folders, *files) if name.startswith(".")):
            yield _of(Path(parent, name), "note", "hidden", "is hidden, so it is passed over")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            yield from _file(root, Path(parent, name))
    for error in errors:
        yield _of(Path(str(error.filename)), "error", "unreadable", error.strerror or "cannot be read")


def _file(root: Path, path: Path) -> Iterator[Finding]:
    image = path.suffix.lower() in SUFFIXES
    if image and path.parent == root:
        yield _of(path, "warning", "stray", "is an image beside the class folders, so it is passed over")
    elif not image:
        yield _of(path, "note", "ignored", "is no image by its ending, so it is passed over")


def _of(path: Path, level: Level, kind: str, message: str) -> Finding:
    return Finding(level=level, kind=kind, file=show_path(path), message=message)
