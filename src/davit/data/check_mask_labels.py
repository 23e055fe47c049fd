"""What is wrong with the labels of index masks: those that are no class, and classes without pixels."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from davit.class_names import ADE20K
from davit.data.check_classes import name_findings
from davit.data.findings import Finding, Level
from davit.data.mask_facts import MaskFacts
from davit.data.masks import ADE20K_LIST, CLASS_LIST
from davit.decoding import show_path
from davit.models.segmenter_config import IGNORED

_LISTED = 5
_SMOOTHED = 16  # labels of a mask that are no class; more are shades
_IMBALANCE = 100  # times that the largest class has the pixels of the smallest
_USUAL = 0.5  # share of masks that have a label which is no accident
_MOSTLY = 0.5  # share of pixels that count for nothing


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the labels of a folder mean.

    Attributes:
        where: the list of classes.
        names: the classes, in its order, whatever is wrong with them.
        first: the label of the first.
        ignored: labels that stand for no class.
    """

    where: str
    names: tuple[str, ...]
    first: int
    ignored: frozenset[int]

    @property
    def classes(self) -> range:
        """The labels of classes."""
        return range(self.first, self.first + len(self.names))

    def unknown(self, labels: Mapping[int, int]) -> dict[int, int]:
        """The labels that are neither a class nor ignored."""
        return {label: n for label, n in labels.items() if label not in self.classes and label not in self.ignored}

    def counted(self, labels: Mapping[int, int]) -> dict[int, int]:
        """The labels that are a class."""
        return {label: n for label, n in labels.items() if label in self.classes and label not in self.ignored}


def read_labels(
    root: Path, pictures: Path, first: str, class_list: str | Path | None, ignore: Sequence[int]
) -> tuple[Labels | None, list[Finding]]:
    """Read the list of classes as far as it can be read; `MaskFolder` refuses a faulty one.

    Args:
        root: the folder that holds the parts.
        pictures: the folder of a part's pictures.
        first: name of its first picture, which tells ADE20K.
        class_list: a list that lies elsewhere.
        ignore: labels that stand for no class, besides 255.
    """
    path, start = (root / CLASS_LIST, 0) if class_list is None else (Path(class_list), 0)
    if class_list is None and (root / ADE20K_LIST).is_file():
        path, start = root / ADE20K_LIST, 1
    where = show_path(path)
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        return None, [_found("error", "bad-class-list", where, "is not UTF-8 text")]
    except OSError:
        if class_list is None and pictures.parent.name == "images" and first.startswith("ADE_"):
            names = ADE20K
            return Labels(where=where, names=names, first=1, ignored=frozenset((IGNORED, 0, *ignore))), []
        message = "is missing: write one class name a line, the first for label 0, or name a list with --class-list"
        return None, [_found("error", "no-class-list", where, message)]
    if start:  # its columns: number, three counts, all names of the class
        lines = [line.split("\t")[-1].split(",")[0].strip() for line in lines[1:]]
    known = Labels(where=where, names=tuple(lines), first=start, ignored=frozenset((IGNORED, *range(start), *ignore)))
    findings = list(_list_findings(known))
    return (None if any(found.kind == "bad-class-list" for found in findings) else known), findings


def _list_findings(labels: Labels) -> Iterator[Finding]:
    if not 1 <= len(labels.names) <= IGNORED:
        yield _found(
            "error", "bad-class-list", labels.where, f"names {len(labels.names)} classes, expected 1 to {IGNORED}"
        )
    for place, name in enumerate(labels.names):
        if not name:
            yield _found("error", "empty-class-name", labels.where, f"has no name for label {labels.first + place}")
        elif name in labels.names[:place]:
            before = labels.first + labels.names.index(name)
            message = f"names both label {before} and {labels.first + place} {name!r}"
            yield _found("error", "same-class", labels.where, message)
    yield from name_findings(tuple(dict.fromkeys(filter(None, labels.names))), labels.where)


def label_findings(parts: Mapping[str, Sequence[MaskFacts]], labels: Labels) -> Iterator[Finding]:
    """Compare labels with the classes, mask by mask and as a whole, and the parts with each other."""
    everything = [mask for masks in parts.values() for mask in masks if mask.labels]
    if not everything:
        return
    total = _total(everything)
    moved = _moved(everything, labels)
    if moved:  # the same fault in all masks
        yield moved
        return
    for mask in everything:
        yield from _mask_findings(mask, labels)
    if not labels.counted(total):
        message = "is a list of classes of which no mask has a pixel"
        yield _found("error", "nothing-counts", labels.where, message)
        return
    for part, masks in parts.items():
        yield from _share_findings(part, masks, labels)
    if "train" in parts:
        yield from _class_findings({part: _total(masks) for part, masks in parts.items()}, labels)


def present_labels(root: str, parts: Mapping[str, Sequence[MaskFacts]]) -> Iterator[Finding]:
    """Say which labels there are, where no list says what they mean."""
    total = _total([mask for masks in parts.values() for mask in masks])
    present = sorted(label for label in total if label != IGNORED)
    if present:
        message = f"holds masks of {len(present)} labels, {present[0]} to {present[-1]}"
        yield _found("note", "labels", root, message + (f", and {IGNORED}" if IGNORED in total else ""))


def _mask_findings(mask: MaskFacts, labels: Labels) -> Iterator[Finding]:
    wrong = labels.unknown(mask.labels)
    if wrong:
        told = ", ".join(f"{label} in {count:,} pixels" for label, count in list(wrong.items())[:_LISTED])
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        why = ": is it a grey picture, or were its labels smoothed?" if len(wrong) > _SMOOTHED else ""
        message = f"has the label {told}{more}; classes are {labels.classes[0]} to {labels.classes[-1]}{why}"
        yield _found("error", "unknown-label", mask.file.name, message)
    elif not labels.counted(mask.labels):
        yield _found(
            "warning", "all-ignored", mask.file.name, "has no pixel of a class, so nothing can be learnt from it"
        )


def _moved(masks: Sequence[MaskFacts], labels: Labels) -> Finding | None:
    """Labels that mean something else in all masks: those spread over 0 to 255, and those that count from 1."""
    total, last = _total(masks), len(labels.names)
    present = sorted(label for label in total if label not in labels.ignored)
    if labels.first or not present:
        return None
    steps = max(last - 1, 1)
    shades = {rounded(index * IGNORED / steps) for index in range(last) for rounded in (math.floor, round)}
    if last > 1 and IGNORED in total and shades >= set(present) and not set(present) & set(range(1, last)):
        held = ", ".join(map(str, present))
        message = f"masks hold {held} and {IGNORED} only, which counts for nothing: write 0 to {last - 1}, not shades"
        return _found("error", "scaled-labels", labels.where, message)
    if present[-1] != last:
        return None
    beyond = f"names {last} classes, labels 0 to {last - 1}, but masks go up to {last}"
    if present[0] >= 1:
        return _found("error", "shifted-labels", labels.where, f"{beyond} and never have 0: take 1 off each label")
    if sum(last in mask.labels for mask in masks) < _USUAL * len(masks):  # single masks are wrong
        return None
    either = (
        f"either {last} stands for no class (--ignore {last}), or 0 does: then take 1 off each, and make 0 {IGNORED}"
    )
    return _found("error", "shifted-labels", labels.where, f"{beyond}; {either}")


def _share_findings(part: str, masks: Sequence[MaskFacts], labels: Labels) -> Iterator[Finding]:
    """How the pixels of a part are shared out."""
    total = _total(masks)
    counted = labels.counted(total)
    if not counted:
        return
    nothing = 1 - sum(counted.values()) / sum(total.values())
    if nothing > _MOSTLY:
        message = f"{nothing:.1%} of the pixels of {part} count for nothing"
        yield _found("note", "mostly-ignored", labels.where, message)
    most, *rest = sorted(counted, key=counted.__getitem__, reverse=True)
    if part != "train" or not rest or counted[most] < _IMBALANCE * counted[rest[-1]]:
        return
    rare = [label for label in reversed(rest) if counted[most] >= _IMBALANCE * counted[label]]
    pictures = Counter(label for mask in masks for label in mask.labels)
    pixels = sum(counted.values())
    told = ", ".join(
        f"{_name(labels, label)} {100 * counted[label] / pixels:.2g} %, in {pictures[label]:,} pictures"
        for label in rare[:_LISTED]
    )
    more = f"; {len(rare) - _LISTED} more are as rare" if len(rare) > _LISTED else ""
    share = f"{_name(labels, most)} has {100 * counted[most] / pixels:.2g} % of the pixels that count in {part}"
    yield _found("note", "imbalance", labels.where, f"{share}; {told}{more}: task.class_weights can even that out")


def _class_findings(totals: Mapping[str, Counter[int]], labels: Labels) -> Iterator[Finding]:
    """Compare the classes of the parts with each other."""
    train, others = totals["train"], {part: total for part, total in totals.items() if part != "train"}
    for label in labels.classes:
        if label in labels.ignored:
            continue
        name = f"class {_name(labels, label)} (label {label})"
        elsewhere = [part for part, total in others.items() if total[label]]
        if not train[label] and elsewhere:
            pixels = ", ".join(f"{others[part][label]:,} pixels in {part}" for part in elsewhere)
            message = f"{name} has {pixels} and none in train, so it cannot be learnt"
            yield _found("error", "unlearnt-class", labels.where, message)
        elif not train[label]:
            yield _found("warning", "empty-class", labels.where, f"{name} has no pixels in train")
        elif (total := others.get("val")) and not total[label]:
            message = f"{name} of train has no pixels in val, so it is not scored"
            yield _found("warning", "unscored-class", labels.where, message)


def _total(masks: Sequence[MaskFacts]) -> Counter[int]:
    total: Counter[int] = Counter()
    for mask in masks:
        total.update(mask.labels)
    return total


def _name(labels: Labels, label: int) -> str:
    return repr(labels.names[label - labels.first])


def _found(level: Level, kind: str, where: str, message: str) -> Finding:
    return Finding(level=level, kind=kind, file=where, message=message)
