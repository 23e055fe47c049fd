"""Look for what spoils training or scores in pictures with index masks."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from davit.data.check_images import all_image_findings
from davit.data.check_mask_labels import label_findings, present_labels, read_labels
from davit.data.findings import CheckReport, Finding, Level
from davit.data.image_facts import ImageFacts, PictureFiles, measure
from davit.data.mask_facts import MaskFacts, Pair, measure_masks
from davit.data.masks import mask_parts
from davit.decoding import SUFFIXES, show_path

Progress = Callable[[int], object]  # is told how many files were looked at
_MASKS = frozenset((".png",))
_SIDEWAYS = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height


@dataclass
class _Part:
    """What lies in the two folders of a part.

    Attributes:
        name: `train`, `val` or `test`.
        folder: the folder of the pictures.
        mask_folder: that of the masks.
        pictures: the pictures.
        pairs: those with a mask, and it.
        facts: what is known of each picture.
        masks: what is known of the mask of each pair.
    """

    name: str
    folder: Path
    mask_folder: Path
    pictures: list[Path] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    facts: list[ImageFacts] = field(default_factory=list)
    masks: list[MaskFacts] = field(default_factory=list)

    def measure(self, decode: bool, workers: int, progress: Progress) -> None:
        """Look into the files."""
        for fact in measure(PictureFiles(self.pictures), decode=decode, workers=workers):
            self.facts.append(fact)
            progress(1)
        for mask in measure_masks(self.pairs, decode=decode, workers=workers):
            self.masks.append(mask)
            progress(1)

    def labelled(self) -> list[tuple[str, ImageFacts]]:
        """What is known of each picture, with a name for what its mask holds."""
        contents = {path: mask.content for (path, _), mask in zip(self.pairs, self.masks, strict=True)}
        pairs = zip(self.pictures, self.facts, strict=True)
        return [(f"mask {contents.get(path, '')[:8]}", fact) for path, fact in pairs]


def check_masks(
    root: str | Path,
    *,
    class_list: str | Path | None = None,
    ignore: Sequence[int] = (),
    decode: bool = True,
    workers: int = 0,
    started: Callable[[int], object] = lambda _: None,
    progress: Progress = lambda _: None,
) -> CheckReport:
    """Check pictures, their masks, and the classes of the labels.

    Args:
        root: what `mask_parts` takes.
        class_list: names of the labels that lie elsewhere.
        ignore: labels that stand for no class, besides 255.
        decode: decode every picture and mask; otherwise only their bytes and headers are looked at.
        workers: processes that do it; 0 is this one.
        started: told the number of pictures and masks before the first.
        progress: told after each.

    Raises:
        ValueError: no pictures with masks there.
    """
    parts = [_Part(name, *folders) for name, folders in mask_parts(root).items()]
    findings = [*(finding for part in parts for finding in _pair(part)), *_missing_parts(str(root), parts)]
    first = next((part.pictures[0].name for part in parts if part.pictures), "")
    labels, faults = read_labels(Path(root), parts[0].folder, first, class_list, ignore)
    started(sum(len(part.pictures) + len(part.pairs) for part in parts))
    for part in parts:
        part.measure(decode, workers, progress)
        known = dict(zip(part.pictures, part.facts, strict=True))
        for (picture, _), mask in zip(part.pairs, part.masks, strict=True):
            findings += _mask_file(known[picture], mask)
    findings += [*faults, *all_image_findings({part.name: part.labelled() for part in parts})]
    findings += _palette_findings([mask for part in parts for mask in part.masks])
    findings += _copied_masks(parts)
    masks = {part.name: part.masks for part in parts}
    findings += label_findings(masks, labels) if labels else present_labels(str(root), masks)
    return CheckReport.of(str(root), {part.name: len(part.pictures) for part in parts}, findings)


def _pair(part: _Part) -> Iterator[Finding]:
    """Find the mask of each picture, as `MaskFolder` does."""
    pictures, others = _by_stem(part.folder, SUFFIXES)
    masks, strange = _by_stem(part.mask_folder, _MASKS)
    yield from _passed_over([*others, *(path for path in strange if path.suffix.lower() not in SUFFIXES)])
    if not pictures:
        yield _about(part.folder, "error", "no-pictures", "holds no pictures")
    spare = [stem for stem in masks if stem not in pictures]
    in_vain = {path.relative_to(part.mask_folder).with_suffix("").as_posix(): path for path in strange}
    for stem, paths in pictures.items():
        part.pictures += paths
        for path in (*paths[1:], *masks.get(stem, [])[1:]):
            yield _about(path, "error", "same-stem", f"would share its mask with {paths[0].name}: rename one")
        if stem in masks:
            part.pairs += [(path, masks[stem][0]) for path in paths]
            continue
        hint = f"; {show_path(in_vain[stem].name)} is none" if stem in in_vain else _hint(stem, spare)
        message = f"has no PNG mask of its name in {show_path(part.mask_folder)}{hint}"
        yield _about(paths[0], "error", "no-mask", message)
    for stem in spare:
        message = f"is a mask without a picture in {show_path(part.folder)}, so it is passed over"
        yield _about(masks[stem][0], "warning", "no-picture", message)


def _by_stem(folder: Path, suffixes: frozenset[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files by their path without the ending, and those with other endings or hidden."""
    stems, others = defaultdict[str, list[Path]](list), list[Path]()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(piece.startswith(".") for piece in relative.parts) or path.suffix.lower() not in suffixes:
            others += [] if path.is_dir() else [path]
        else:
            stems[relative.with_suffix("").as_posix()].append(path)
    return stems, others


def _passed_over(paths: Sequence[Path]) -> Iterator[Finding]:
    for path in paths:
        if path.name.startswith("."):
            yield _about(path, "note", "hidden", "is hidden, so it is passed over")
        else:
            yield _about(path, "note", "ignored", "is no image by its ending, so it is passed over")


def _hint(stem: str, spare: Sequence[str]) -> str:
    """Name a mask that may be meant: in another folder, with other capitals, or with something behind its name."""
    wanted = PurePosixPath(stem).name.casefold()
    for other in spare:
        name = PurePosixPath(other).name.casefold()
        if name.startswith(wanted) and not name[len(wanted) : len(wanted) + 1].isalnum():
            return f"; is it {show_path(other)}.png?"
    return ""


def _missing_parts(root: str, parts: Sequence[_Part]) -> Iterator[Finding]:
    for name in ("train", "val"):
        if name not in {part.name for part in parts}:
            message = f"has no part {name!r} of pictures beside masks, and training needs one"
            yield Finding(level="warning", kind="missing-part", file=root, message=message)


def _mask_file(picture: ImageFacts, mask: MaskFacts) -> Iterator[Finding]:
    """What is wrong with the file of a mask, beside its picture."""
    file = mask.file
    if file.fault:
        yield Finding(level="error", kind=file.fault, file=file.name, message=file.reason)
    if picture.fault or not picture.width or not file.width:
        return
    sideways = mask.orientation in _SIDEWAYS
    size = (picture.height, picture.width) if sideways else (picture.width, picture.height)
    why = ", turned as its EXIF says" if sideways else ""
    if size != (file.width, file.height):
        message = f"has {file.width}x{file.height} pixels, but its picture {picture.name} {size[0]}x{size[1]}{why}"
        yield Finding(level="error", kind="size-mismatch", file=file.name, message=message)
    elif mask.orientation != 1:
        message = "is turned as its EXIF says, and its mask is not: was it drawn on the turned picture?"
        yield Finding(level="note", kind="turned", file=picture.name, message=message)


def _palette_findings(masks: Sequence[MaskFacts]) -> Iterator[Finding]:
    """Find masks that show a label in another colour than most: programs that save few colours number them anew."""
    usual = defaultdict[int, Counter[tuple[int, int, int]]](Counter)
    for mask in masks:
        for label, colour in mask.palette.items():
            usual[label][colour] += 1
    for mask in masks:
        for label, colour in mask.palette.items():
            (common, count) = usual[label].most_common(1)[0]
            if colour != common:
                message = (
                    f"shows label {label} as {_hex(colour)}, {count:,} others as {_hex(common)}: are labels the same?"
                )
                yield Finding(level="warning", kind="palette-differs", file=mask.file.name, message=message)
                break


def _copied_masks(parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find masks of several classes that are there twice, beside pictures that differ."""
    seen: dict[str, tuple[str, str]] = {}  # content of a mask: the mask, and the content of its picture
    for part in parts:
        known = dict(zip(part.pictures, part.facts, strict=True))
        for (picture, _), mask in zip(part.pairs, part.masks, strict=True):
            if len(mask.labels) < 2:
                continue
            pixels = known[picture].pixels_hash
            name, other = seen.setdefault(mask.content, (mask.file.name, pixels))
            if pixels != other:
                message = f"has the same labels as {name}, beside another picture"
                yield Finding(level="warning", kind="same-mask", file=mask.file.name, message=message)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _about(path: Path, level: Level, kind: str, message: str) -> Finding:
    return Finding(level=level, kind=kind, file=show_path(path), message=message)
