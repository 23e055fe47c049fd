"""The pictures that paths, folders and patterns stand for, listed anew each time and never all held as paths."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from davit.decoding import SUFFIXES


class PictureFiles:
    """Files in the order that was asked for, those of a folder sorted by name, folder by folder.

    Iterating lists the folders again, and holds the names of one folder and of those above it: some hundred bytes for
    each file of the largest folder.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Check that there is something behind each path.

        Args:
            paths: files, folders (with all folders in them, but for hidden ones) or patterns such as `photos/**/*.jpg`.

        Raises:
            ValueError: no path at all, one that does not exist, or a folder or pattern without images.
        """
        if not paths:
            raise ValueError("name at least one image, folder or quoted pattern")
        self.paths = tuple(paths)
        counts = [sum(1 for _ in _expand(path)) for path in self.paths]
        for path, files in zip(self.paths, counts, strict=True):
            if files == 0:
                raise _nothing(path)
        self._count = sum(counts)

    def __len__(self) -> int:
        """Count the files there were at first."""
        return self._count

    def __iter__(self) -> Iterator[Path]:
        """Yield the files that there are now."""
        for path in self.paths:
            yield from map(Path, _expand(path))


def _nothing(path: str) -> ValueError:
    if Path(path).is_dir():
        endings = " ".join(sorted(SUFFIXES))
        return ValueError(f"{path}: no images in this folder; their names must end in one of {endings}")
    return ValueError(f"{path}: no file matches this pattern")


def _expand(path: str) -> Iterator[str]:
    if Path(path).is_dir():
        yield from _images_under(str(Path(path)))
    elif os.path.lexists(path):  # before patterns: names may hold brackets
        yield path
    elif not glob.has_magic(path):
        raise ValueError(f"{path}: no such file or folder")
    else:
        matches = sorted(glob.iglob(path, recursive=True))  # noqa: PTH207 - absolute patterns
        yield from (match for match in matches if Path(match).is_file())


def _images_under(folder: str) -> Iterator[str]:
    """Files and folders of a level together by name: so all come in the order of their paths, part by part."""
    names: list[str] = []
    folders: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.is_symlink():  # a link may lead back to where it lies
                        folders.add(entry.name)
                        names.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - ten times as fast
                    names.append(entry.name)
    except PermissionError:  # such as the lost+found of a disk
        return
    for name in sorted(names):
        path = os.path.join(folder, name)  # noqa: PTH118
        if name in folders:
            yield from _images_under(path)
        else:
            yield path
