"""Which class each category of a COCO file is: decided by its name, never by its place or id."""

from collections.abc import Sequence

import numpy as np

from davit.data.coco_annotations import Annotations, Category
from davit.naming import unknown_name


def match_categories(read: Annotations, classes: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return class names, and the category id of each: of classes that the file does not know, an id it does not use.

    Args:
        read: the annotations.
        classes: class names of a model or of other data; None takes the categories by their ids.

    Raises:
        ValueError: objects of a class that is not among `classes`, two categories of one name, or none at all.
    """
    used = set(np.unique(read.labels).tolist())
    kinds = sorted(kind for kind in read.categories if kind.id in used or not is_placeholder(kind, read.categories))
    ids: dict[str, int] = {}
    for kind in kinds:
        if ids.setdefault(kind.name, kind.id) != kind.id:
            raise ValueError(f"{read.path}: categories {ids[kind.name]} and {kind.id} are both called {kind.name!r}")
    if not kinds:
        raise ValueError(f"{read.path} has no categories")
    if classes is None:
        return tuple(ids), tuple(ids.values())
    for kind in kinds:
        if kind.name not in classes and kind.id in used:
            raise ValueError(f"{read.path}, category {kind.id}: {unknown_name('class', kind.name, classes)}")
    unused = max(ids.values()) + 1
    return tuple(classes), tuple(ids.get(name, unused + index) for index, name in enumerate(classes))


def is_placeholder(kind: Category, kinds: Sequence[Category]) -> bool:
    """Whether a class that no object has only heads others: Roboflow puts the name of the project before them."""
    return kind.parent in ("", "none") and any(kind.name == other.parent for other in kinds if other != kind)
