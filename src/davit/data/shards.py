"""Labelled images in tar shards of the WebDataset format, by random access through an index."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from davit.data.matching import match_classes
from davit.data.ranges import Folder, open_store
from davit.data.shard_index import check_sizes, read_index, read_member, read_names, read_samples
from davit.decoding import read_image
from davit.naming import unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image


class Shards(Dataset[tuple["Image", int]]):
    """Images in the tar files of one part, in the order of the folder that was sharded.

    A sample is found by its number, with one read, so order and resume are the same as for a folder. It may be pickled;
    every process opens its own files or connections.

    Attributes:
        root: the folder or URL of index.json.
        part: name of the part.
        classes: class names, in the order of the indices.
        labels: class index of each sample, as an array.
        missing: classes that no sample has.
        empty: classes of the shards without samples.
        skipped: number of samples left out when the shards were indexed.
        note: how the shards' classes were matched with `classes`, where that needs saying.
    """

    def __init__(
        self,
        root: str | Path,
        part: str,
        classes: Sequence[str] | None = None,
        *,
        num_classes: int | None = None,
        allow_missing: bool = False,
    ) -> None:
        """Read the index and, on this machine, compare the sizes of the shards; over HTTP every answer tells its own.

        Args:
            root: a folder, or an http or https URL, with an index.json.
            part: `train`, `val`, or another that the index has.
            classes: class names of a model, to be matched by name (see `match_classes`); None takes the shards' own.
            num_classes: number of logits, for a model without class names (`classes=()`).
            allow_missing: accept classes without samples.

        Raises:
            ShardError: index or shards are missing or damaged.
            ValueError: no such part, no samples, or classes that do not fit.
        """
        self.root, self.part = str(root), part
        self._store = open_store(root)
        parts = read_index(self._store)
        if part not in parts:
            raise unknown_name(f"part of {self.root}", part, parts)
        index = parts[part]
        self._shards, self.skipped = index.shards, index.skipped
        if isinstance(self._store, Folder):
            check_sizes(self._store, index.shards)
        self._samples = read_samples(self._store, index)
        if not len(self._samples):
            raise ValueError(f"{self.root} holds no samples in its part {part!r}")
        counts = np.bincount(self._samples["label"], minlength=len(index.classes))
        self.empty = tuple(name for name, count in zip(index.classes, counts, strict=True) if not count)
        self.classes, self.missing, self.note = index.classes, self.empty, ""
        self.labels = self._samples["label"].astype(np.int64)
        if classes is None:
            return
        filled = [name for name, count in zip(index.classes, counts, strict=True) if count]
        matching = match_classes(
            filled, classes, num_classes=num_classes, allow_missing=allow_missing, where=f"{self.root} ({part})"
        )
        self.classes, self.missing, self.note = matching.names, matching.missing, matching.note
        places = np.array([matching.indices.get(name, -1) for name in index.classes], np.int64)
        self.labels = places[self.labels]

    def __len__(self) -> int:
        """Count the samples."""
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple["Image", int]:
        """Return a picture and its class index.

        Raises:
            ImageError: the sample cannot be decoded; it is never replaced by another.
            ShardError: its bytes cannot be read.
        """
        name, data = self.file(index)
        return read_image(data, name=name), int(self.labels[index])

    def encoded(self, index: int) -> bytes:
        """Return the bytes of a sample's file."""
        return self.file(index)[1]

    def name(self, index: int) -> str:
        """Return what errors call a sample: its shard, and its name in there."""
        return self.file(index)[0]

    def names(self) -> list[str]:
        """Return the paths of all samples in the folder that was sharded."""
        return read_names(self._store, read_index(self._store)[self.part])

    def file(self, index: int) -> tuple[str, bytes]:
        """Return what errors call a sample, and the bytes of its file.

        Raises:
            ShardError: the bytes cannot be read, or they are not those that were indexed.
        """
        sample = self._samples[index]
        return read_member(self._store, self._shards[int(sample["shard"])], int(sample["block"]), int(sample["size"]))
