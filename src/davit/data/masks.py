"""Pictures with index masks, for semantic segmentation: ADE20K, and any folder with a list of classes.

Pictures and masks lie side by side, each part (`train`, `val`, `test`) in its own two folders, paired by their path
without the ending:

| Pictures | Masks |
| --- | --- |
| `train/` | `train_masks/`, `trainannot/` (as CamVid) or `masks/train/` |
| `images/train/` | `masks/train/` or `annotations/train/` |
| `images/training/` | `annotations/training/` (as ADE20K; its other part is `validation`) |

A mask is a PNG as large as its picture whose values, grey or palette indices, are labels. `classes.txt` beside the
folders has one class a line: the first is label 0. A folder without it is ADE20K if it has `objectInfo150.txt` or its
pictures are called `ADE_...`: there label 0 means no class, and class k is label k + 1. That shift is made here and
nowhere else: what leaves this file is class indices from 0, and 255 where no class counts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from davit.class_names import ADE20K
from davit.data.folder import SPLITS, file_bytes
from davit.data.index_png import read_mask
from davit.decoding import QUIET, SUFFIXES, ImageError, read_image, show_path
from davit.models.segmenter_config import IGNORED
from davit.naming import unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_LIST = "classes.txt"
ADE20K_LIST = "objectInfo150.txt"
_SPELLINGS = {"train": ("train", "training"), "val": ("val", "validation"), "test": ("test", "testing")}
_LAYOUTS = (
    ("{}", "{}_masks"),
    ("{}", "{}annot"),
    ("{}", "masks/{}"),
    ("images/{}", "masks/{}"),
    ("images/{}", "annotations/{}"),
)
_LISTED = 5


class MaskFolder(Dataset["tuple[Image.Image, NDArray[np.uint8]]"]):
    """Pictures with the class of each pixel.

    Attributes:
        root: the folder that holds the parts.
        part: "train", "val" or "test".
        classes: class names, in the order of the indices.
        missing: classes of the model that the folder does not name.
        paths: the pictures, sorted.
        masks: the mask of each.
        unpaired: masks without a picture.
        is_ade20k: labels count from 1, and 0 is no class.
    """

    def __init__(
        self,
        root: str | Path,
        part: str,
        classes: Sequence[str] | None = None,
        *,
        class_list: str | Path | None = None,
        ignore: Sequence[int] = (),
    ) -> None:
        """List the pictures and their masks.

        Args:
            root: the folder that holds the parts; see the top of this file.
            part: which of them.
            classes: class names of a model: the folder's are matched with them by name. None takes the folder's own.
            class_list: a list of the folder's classes that lies elsewhere; labels then count from 0.
            ignore: labels that stand for no class, besides 255; CamVid's void is 11.

        Raises:
            ValueError: no such part, pictures without masks, no list of classes or a faulty one, or a class that the
                model does not know.
        """
        self.root, self.part = Path(root), part
        parts = mask_parts(root)
        if part not in parts:
            raise ValueError(f"{root} has no part {part!r} with masks; it has {', '.join(parts)}")
        pictures, masks = parts[part]
        self.paths, self.masks, self.unpaired = _paired(pictures, masks)
        names, self.is_ade20k = _class_names(self.root, pictures, self.paths[0], class_list)
        self.classes = names if classes is None else tuple(classes)
        for name in names:
            if name not in self.classes:
                raise unknown_name(f"class (of {self.root}, for this model)", name, self.classes)
        self.missing = tuple(name for name in self.classes if name not in names)
        self._table = _table([self.classes.index(name) for name in names], int(self.is_ade20k), ignore)

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> "tuple[Image.Image, NDArray[np.uint8]]":
        """Return a picture and the class index of each of its pixels, (height, width), 255 where none counts.

        Raises:
            ImageError: a file cannot be decoded, or the two differ in size.
            ValueError: a label that is no class.
        """
        picture, labels = read_image(self.paths[index]), self.labels(index)
        if labels.shape != (picture.height, picture.width):
            raise ImageError(
                f"{self.name(index)} has {picture.width}x{picture.height} pixels, "
                f"its mask {show_path(self.masks[index])} {labels.shape[1]}x{labels.shape[0]}"
            )
        return picture, labels

    def labels(self, index: int) -> "NDArray[np.uint8]":
        """Return the class indices of one mask, likewise, without its picture."""
        values = read_mask(self.masks[index])
        classes = self._table[values]
        if classes.min() < 0:
            wrong = ", ".join(map(str, np.unique(values[classes < 0]).tolist()[:_LISTED]))
            known = np.flatnonzero((self._table >= 0) & (self._table < IGNORED))
            raise ValueError(
                f"{show_path(self.masks[index])} has the label {wrong}, the classes have {known[0]} to {known[-1]}: "
                f"name it in the list of classes, or ignore it (ignore={wrong})"
            )
        return classes.astype(np.uint8)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, from the header of its mask.

        Raises:
            ImageError: the mask cannot be read.
        """
        path = self.masks[index]
        try:
            with QUIET(), Image.open(path, formats=("PNG",)) as mask:
                return mask.height, mask.width
        except Exception as error:  # of any type, as in `read_image`
            raise ImageError(f"{show_path(path)}: is no PNG, or its header is damaged") from error

    def name(self, index: int) -> str:
        """Return what errors call a picture: its path."""
        return show_path(self.paths[index])

    def file(self, index: int) -> tuple[str, bytes]:
        """Return what errors call a picture, and the bytes of its file."""
        return self.name(index), file_bytes(self.paths[index])

    def histogram(self, most: int | None = None) -> "NDArray[np.int64]":
        """Count the pixels of each class index, (256,); the last entry counts those of no class.

        Args:
            most: look at this many masks only, evenly spread.
        """
        step = 1 if most is None else -(-len(self) // most)
        counts = np.zeros(256, np.int64)
        for index in range(0, len(self), step):
            counts += np.bincount(self.labels(index).ravel(), minlength=256)
        return counts


def find_masks(
    root: str | Path, ignore: Sequence[int] = (), *, class_list: str | Path | None = None
) -> tuple[MaskFolder, MaskFolder]:
    """Return the parts to learn from and to be scored on, `train` and `val`; see `MaskFolder`."""
    train = MaskFolder(root, "train", class_list=class_list, ignore=ignore)
    return train, MaskFolder(root, "val", class_list=class_list, ignore=ignore)


def mask_parts(root: str | Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of pictures and of masks, for each part that has both.

    Raises:
        ValueError: there is none.
    """
    root, parts, lonely = Path(root), dict[str, tuple[Path, Path]](), dict[Path, list[str]]()
    for part in SPLITS:
        for spelling in _SPELLINGS[part]:
            for picture_layout, mask_layout in _LAYOUTS:
                pictures, masks = root / picture_layout.format(spelling), root / mask_layout.format(spelling)
                if pictures.is_dir() and masks.is_dir():
                    parts.setdefault(part, (pictures, masks))
                elif pictures.is_dir():
                    lonely.setdefault(pictures, []).append(str(masks))
    if not parts:
        told = "; ".join(f"{pictures} has no masks in {' or '.join(masks)}" for pictures, masks in lonely.items())
        ways = "train/ with train_masks/, trainannot/ or masks/train/, or images/train/ with masks/train/"
        raise ValueError(f"{root} holds no pictures with masks: {told or f'expected {ways}'}")
    return parts


def has_masks(root: str | Path) -> bool:
    """Whether a folder holds pictures beside masks."""
    try:
        return bool(mask_parts(root))
    except ValueError:
        return False


def _paired(pictures: Path, masks: Path) -> tuple[tuple[Path, ...], tuple[Path, ...], tuple[Path, ...]]:
    """Pictures, the mask of each, and masks without a picture."""
    found, known = _by_stem(pictures, SUFFIXES), _by_stem(masks, frozenset((".png",)))
    if not found:
        raise ValueError(f"{pictures} holds no pictures")
    bare = [found[stem] for stem in found if stem not in known]
    if bare:
        listed = ", ".join(show_path(path.relative_to(pictures)) for path in bare[:_LISTED])
        raise ValueError(f"{len(bare)} of {len(found)} pictures in {pictures} have no PNG mask in {masks}: {listed}")
    spare = tuple(known[stem] for stem in known if stem not in found)
    return tuple(found.values()), tuple(known[stem] for stem in found), spare


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(piece.startswith(".") for piece in relative.parts):
            continue
        stem = relative.with_suffix("").as_posix()
        if stem in stems:
            raise ValueError(f"{show_path(stems[stem])} and {show_path(path)} would share one mask: rename one")
        stems[stem] = path
    return stems


def _class_names(
    root: Path, pictures: Path, first: Path, class_list: str | Path | None
) -> tuple[tuple[str, ...], bool]:
    """Names of the classes, and whether the folder is ADE20K."""
    listed = root / ADE20K_LIST
    if listed.is_file() and class_list is None:  # its columns: number, three counts, all names of the class
        lines = _lines(listed)[1:]
        return _checked(listed, [line.split("\t")[-1].split(",")[0].strip() for line in lines]), True
    listed = root / CLASS_LIST if class_list is None else Path(class_list)
    if listed.is_file():
        return _checked(listed, _lines(listed)), False
    if class_list is None and pictures.parent.name == "images" and first.name.startswith("ADE_"):
        return ADE20K, True
    raise ValueError(f"{listed} is missing: write one class name a line, the first for label 0")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error


def _checked(path: Path, names: list[str]) -> tuple[str, ...]:
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            raise ValueError(f"{path}: line {number} {'repeats ' + repr(name) if name else 'is empty'}")
    if not 1 <= len(names) <= IGNORED:
        raise ValueError(f"{path} names {len(names)} classes, expected 1 to {IGNORED}")
    return tuple(names)


def _table(indices: list[int], first: int, ignore: Sequence[int]) -> "NDArray[np.int16]":
    """Class index of each of the 256 labels; -1 for those that are none."""
    table = np.full(256, -1, np.int16)
    table[first : first + len(indices)] = indices
    table[[IGNORED, *range(first)]] = IGNORED
    for label in ignore:
        if not 0 <= label <= IGNORED:
            raise ValueError(f"ignore holds {label}; labels are 0 to {IGNORED}")
        table[label] = IGNORED
    return table
