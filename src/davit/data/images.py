"""Labelled images, wherever they lie: class folders, or shards in a folder or under a URL."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from davit.data.folder import SPLITS, ClassFolder, split_roots
from davit.data.ranges import ShardError, is_url, open_store
from davit.data.shard_index import INDEX, read_index
from davit.data.shards import Shards

LabelledImages = ClassFolder | Shards


@dataclass(frozen=True)
class ImageSource:
    """A place with labelled images.

    Attributes:
        root: its path or URL.
        parts: names of the splits it holds; `("all",)` where it is not split.
        sharded: it holds shards, not class folders.
    """

    root: str
    parts: tuple[str, ...]
    sharded: bool

    def open(
        self,
        part: str,
        classes: Sequence[str] | None = None,
        *,
        num_classes: int | None = None,
        allow_missing: bool = False,
    ) -> LabelledImages:
        """Open one part; see `ClassFolder` and `Shards` for the arguments and the errors."""
        if self.sharded:
            return Shards(self.root, part, classes, num_classes=num_classes, allow_missing=allow_missing)
        folder = split_roots(self.root)[part]
        return ClassFolder(folder, classes, num_classes=num_classes, allow_missing=allow_missing)

    @property
    def validation(self) -> str:
        """The part to score on: `val` or, without one, the only part.

        Raises:
            ValueError: there are several others.
        """
        if "val" in self.parts:
            return "val"
        if len(self.parts) > 1:
            raise ValueError(f"{self.root} holds the parts {', '.join(self.parts)} and no val")
        return self.parts[0]


def find_images(root: str | Path) -> ImageSource:
    """Say what a root holds: shards where there is an index.json, or under a URL, and class folders otherwise.

    Raises:
        ShardError: an index that cannot be read, or tar files without one.
    """
    if is_url(root) or (Path(root) / INDEX).is_file():
        return ImageSource(str(root), tuple(read_index(open_store(root))), sharded=True)
    path = Path(root)
    if path.is_dir() and not any(entry.is_dir() for entry in path.iterdir()) and any(path.glob("*.tar")):
        raise ShardError(f"{root} holds tar files without an {INDEX}: make one with `davit data index {root}/*.tar`")
    roots = split_roots(root)
    return ImageSource(str(root), tuple(name for name in (*SPLITS, "all") if name in roots), sharded=False)
