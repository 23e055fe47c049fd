"""Captioned pictures in tar shards of the WebDataset format, by random access through an index."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from davit.data.caption_index import read_caption_index, read_pairs
from davit.data.captions import Caption
from davit.data.ranges import Folder, ShardError, is_url, open_store
from davit.data.shard_index import INDEX, Samples, check_sizes, read_member
from davit.decoding import read_image
from davit.naming import unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


class CaptionShards:
    """Pictures and captions in the tar files of one part, as many pairs as there are captions.

    A pair is found by its number, with two reads, so that order and resume are those of any other data set. It may be
    pickled; every process opens its own files or connections.

    Attributes:
        root: the folder or URL of index.json.
        part: name of the part.
        classes: none: captions say what is there.
        notes: what was left out when the shards were indexed.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, root: str | Path, part: str) -> None:
        """Read the index and, on this machine, compare the sizes of the shards.

        Args:
            root: a folder, or an http or https URL, with an index.json.
            part: `train`, `val`, or another that the index has.

        Raises:
            ShardError: index or shards are missing or damaged.
            ValueError: no such part, or no captions.
        """
        self.root, self.part = str(root), part
        self._store = open_store(root)
        parts = read_caption_index(self._store)
        if part not in parts:
            raise unknown_name(f"part of {self.root}", part, parts)
        self._index = parts[part]
        if not self._index.captions:
            raise ValueError(f"{self.root} holds no captions in its part {part!r}")
        self.notes = self._index.notes
        if isinstance(self._store, Folder):
            check_sizes(self._store, self._index.shards)
        self._samples = read_pairs(self._store, self._index)
        self._first = self._first_pairs()

    def __getstate__(self) -> dict[str, Any]:
        """Travel without what is mapped into memory."""
        mapped = isinstance(self._samples, np.memmap)
        return {**self.__dict__, "_samples": None if mapped else self._samples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map it again."""
        self.__dict__.update(state)
        if self._samples is None:
            self._samples: Samples = read_pairs(self._store, self._index)

    def __len__(self) -> int:
        """Count the captions."""
        return self._index.captions

    def __getitem__(self, index: int) -> "tuple[Image, Caption]":
        """Return a picture and its caption.

        Raises:
            ImageError: the picture cannot be decoded.
            ShardError: its bytes cannot be read, or are not those that were indexed.
        """
        row, _ = self._place(index)
        sample = self._samples[row]
        name, data = self.picture(row)
        text = self.caption(index)
        return read_image(data, name=name), Caption(text=text, label=int(sample["label"]), image=row)

    def name(self, index: int) -> str:
        """Return what errors call a picture: its shard, and its name in there."""
        return self.picture(self._place(index)[0])[0]

    @property
    def pictures(self) -> int:
        """Number of pictures, which may have several captions."""
        return self._index.count

    def picture(self, row: int) -> tuple[str, bytes]:
        """Return what errors call a picture, and the bytes of its file."""
        return self._member(self._samples[row], "block", "size")

    def caption(self, index: int) -> str:
        """The caption of a pair."""
        row, line = self._place(index)
        name, data = self._member(self._samples[row], "text", "length")
        lines = caption_lines(data)
        if line >= len(lines):
            raise ShardError(f"{name} has {len(lines)} captions, not those that were indexed")
        return lines[line]

    def _first_pairs(self) -> "NDArray[np.int64] | None":
        """Number of the first pair of each sample; nothing where every sample has one caption, as on the web."""
        if self._index.captions == self._index.count:
            return None
        counts = self._samples["captions"].astype(np.int64)
        return np.cumsum(counts) - counts

    def _place(self, index: int) -> tuple[int, int]:
        """Row of a pair's sample, and which of its captions it is."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        if self._first is None:
            return index, 0
        row = int(np.searchsorted(self._first, index, side="right")) - 1
        return row, index - int(self._first[row])

    def _member(self, sample: Any, block: str, size: str) -> tuple[str, bytes]:
        """See `read_member`."""
        number, length = int(sample["shard"]), int(sample[size])
        if number >= len(self._index.shards):
            raise ShardError(f"{self._store.where(self._index.samples.file)} names shards that {INDEX} does not have")
        return read_member(self._store, self._index.shards[number], int(sample[block]), length)


def caption_parts(root: str | Path) -> tuple[str, ...]:
    """Names of the parts of shards with captions; none where a root holds no such index.

    Raises:
        ShardError: an index that cannot be read, or one of classes.
    """
    if is_url(root) or (Path(root) / INDEX).is_file():
        return tuple(read_caption_index(open_store(root)))
    path = Path(root)
    if path.is_dir() and any(path.glob("*.tar")):
        raise ShardError(f"{root} holds tar files without an {INDEX}: `davit data index --captions {root}/*.tar`")
    return ()


def caption_lines(data: bytes) -> list[str]:
    """The captions of a `.txt` member: one a line, without blanks around them."""
    lines = data.decode("utf-8-sig", "replace").splitlines()
    return [text for line in lines if (text := " ".join(line.split()))]
