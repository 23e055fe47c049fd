"""Labelled images in folders, `root/<class>/**/*.jpg`; and how to split them."""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch.utils.data import Dataset

from davit.data.matching import match_classes
from davit.decoding import SUFFIXES, read_image, show_path

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "val", "test")


class ClassFolder(Dataset[tuple["Image", int]]):
    """Images whose class is the name of the folder they lie in, however deep.

    Attributes:
        root: the folder of the class folders.
        classes: class names, in the order of the indices.
        paths: the images, sorted by class folder and path.
        labels: class index of each.
        missing: classes that no image has.
        empty: class folders without images.
        skipped: number of files that are no images by their ending, or lie beside the class folders.
        hidden: number of files and folders passed over because their name begins with a dot.
        note: how folders were matched with classes, where that needs saying.
    """

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str] | None = None,
        *,
        num_classes: int | None = None,
        allow_missing: bool = False,
    ) -> None:
        """List the images.

        Args:
            root: a folder with one folder for each class.
            classes: class names of a model, to be matched by name (see `match_classes`); None takes the folders' own
                names, sorted.
            num_classes: number of logits, for a model without class names (`classes=()`).
            allow_missing: accept classes without images.

        Raises:
            ValueError: not such a folder, or one that does not fit the classes.
        """
        self.root = Path(root)
        self.skipped = self.hidden = 0
        images = {name: self._images(self.root / name) for name in self._class_folders()}
        filled = [name for name in images if images[name]]
        self.empty = tuple(name for name in images if not images[name])
        if not filled:
            raise ValueError(f"{self.root} holds no images in class folders ({self.root}/<class>/<image>.jpg)")
        if classes is None:
            indices = {name: index for index, name in enumerate(images)}
            self.classes, self.missing, self.note = tuple(images), self.empty, ""
        else:
            matching = match_classes(
                filled, classes, num_classes=num_classes, allow_missing=allow_missing, where=str(self.root)
            )
            indices, self.classes = matching.indices, matching.names
            self.missing, self.note = matching.missing, matching.note
        self.paths = tuple(path for name in filled for path in images[name])
        self.labels = tuple(indices[name] for name in filled for _ in images[name])

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple["Image", int]:
        """Return a picture and its class index.

        Raises:
            ImageError: the file cannot be decoded; it is never replaced by another.
        """
        return read_image(self.paths[index]), self.labels[index]

    def file(self, index: int) -> tuple[str, bytes]:
        """Return what errors call an image, and the bytes of its file."""
        return self.name(index), self.encoded(index)

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            OSError: it cannot be read.
        """
        return file_bytes(self.paths[index])

    def name(self, index: int) -> str:
        """Return what errors call an image: its path."""
        return show_path(self.paths[index])

    def names(self) -> list[str]:
        """Return the paths of all images under the root, with slashes on every system."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]

    def _class_folders(self) -> list[str]:
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is {'a file' if self.root.exists() else 'not there'}, expected a folder")
        names = []
        for entry in self.root.iterdir():
            if entry.name.startswith("."):
                self.hidden += 1
            elif entry.is_dir():
                names.append(entry.name)
            else:
                self.skipped += 1
        return sorted(names)

    def _images(self, folder: Path) -> list[Path]:
        found: list[Path] = []
        for parent, folders, files in os.walk(folder):
            visible = [name for name in folders if not name.startswith(".")]
            self.hidden += len(folders) - len(visible) + sum(name.startswith(".") for name in files)
            folders[:] = visible  # tells os.walk where to go on
            shown = [name for name in files if not name.startswith(".")]
            images = [name for name in shown if Path(name).suffix.lower() in SUFFIXES]
            self.skipped += len(shown) - len(images)
            found += [Path(parent, name) for name in images]
        return sorted(found)


def split_roots(root: str | Path) -> dict[str, Path]:
    """Return the folder of each split, where `root` holds splits instead of classes; otherwise `root`, as `all`."""
    root = Path(root)
    if not (root / "val").is_dir():
        return {"all": root}
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    return {name: root / name for name in SPLITS if name in folders} if folders <= set(SPLITS) else {"all": root}


def validation_root(root: str | Path) -> Path:
    """Return `root/val` where `root` holds splits instead of classes, and `root` otherwise."""
    return split_roots(root).get("val", Path(root))


class NamedImages(Protocol):
    """Images with class indices and paths."""

    @property
    def labels(self) -> Iterable[int]:
        """Class index of each."""
        ...

    def names(self) -> list[str]:
        """Path of each, the same wherever the images lie."""
        ...


def split_folder(folder: NamedImages, share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Split into indices for training and for validation, where a folder brings no split of its own.

    The side of an image follows from the seed and its path under the root alone. So it is the same on every machine,
    and stays when images are added. Each class gives about `share` of its images to validation, and at least one to
    each side if it has two.

    Args:
        folder: what to split.
        share: share of the images for validation, between 0 and 1.
        seed: another seed is another split.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    ranks = [_rank(name, seed) for name in folder.names()]
    members: dict[int, list[int]] = {}
    for index, label in enumerate(folder.labels):
        members.setdefault(label, []).append(index)
    chosen: set[int] = set()
    for indices in members.values():
        ordered = sorted(indices, key=ranks.__getitem__)
        taken = sum(ranks[index] < share for index in indices)
        taken = min(max(taken, 1), len(indices) - 1)
        chosen.update(ordered[:taken])
    return [i for i in range(len(ranks)) if i not in chosen], sorted(chosen)


def _rank(name: str, seed: int) -> float:
    """A number in [0, 1), the same on every system: one spells accents in file names differently from another."""
    text = unicodedata.normalize("NFC", name)
    digest = hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def file_bytes(path: Path) -> bytes:
    """Read a file whole.

    Raises:
        OSError: it cannot be read, or is a pipe or device, of which there may be no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{show_path(path)} is not a regular file")
    return path.read_bytes()
