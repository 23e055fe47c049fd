"""The index of tar shards with captions: which bytes of which file are the image and the captions of a sample.

`index.json` names the parts and, with size and SHA-256, their files. For each part one of these holds 30 bytes for each
sample (`PAIRS`). It is mapped into memory, not read, where it lies on this machine: that of 1.5 billion has 45 GB.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from davit.data.ranges import Folder, ShardError, Store
from davit.data.shard_index import BLOCK, Samples, StoredFile, index_json, read_parts, verified

FORMAT = "davit-captions-1"
PAIRS = np.dtype(
    [
        ("shard", "<u4"),
        ("block", "<u4"),  # at which the image begins
        ("size", "<u4"),  # its bytes
        ("text", "<u4"),  # block at which the captions begin
        ("length", "<u4"),  # their bytes
        ("captions", "<u2"),  # lines that are not empty
        ("label", "<u8"),
    ]
)
VERIFIED = 1 << 26  # bytes; a larger file is mapped, and each sample compared with its tar header when it is read


@dataclass(frozen=True, kw_only=True)
class CaptionPart:
    """One side of a set, such as `train`.

    Attributes:
        shards: the tar files.
        samples: the file of `PAIRS` records.
        captions: number of captions; the samples may have several.
        notes: what was left out when the shards were indexed, with its count.
    """

    shards: tuple[StoredFile, ...]
    samples: StoredFile
    captions: int
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.samples.size // PAIRS.itemsize


def read_caption_index(store: Store) -> dict[str, CaptionPart]:
    """Read the parts of a set.

    Raises:
        ShardError: no index.json, or one that is damaged or of another kind.
    """
    return read_parts(store, CaptionPart, FORMAT, "davit data index --captions")


def caption_index_json(parts: dict[str, CaptionPart]) -> bytes:
    """Content of index.json; write it last, for it names the others."""
    return index_json(parts, FORMAT)


def caption_part(
    name: str, shards: tuple[StoredFile, ...], samples: Samples, notes: tuple[str, ...]
) -> tuple[CaptionPart, dict[str, bytes]]:
    """Make a part and the files, by their paths, that go with it."""
    data = samples.astype(PAIRS).tobytes()
    stored = StoredFile(file=f"{name}.pairs", size=len(data), sha256=hashlib.sha256(data).hexdigest())
    part = CaptionPart(shards=shards, samples=stored, captions=int(samples["captions"].sum()), notes=notes)
    return part, {stored.file: data}


def read_pairs(store: Store, part: CaptionPart) -> Samples:
    """Read, or map, where the samples are.

    Raises:
        ShardError: the file is not the one that index.json describes, or points outside the shards.
    """
    where = store.where(part.samples.file)
    if part.samples.size % PAIRS.itemsize:
        raise ShardError(f"{where} is damaged: it does not hold records of {PAIRS.itemsize} bytes")
    if isinstance(store, Folder) and part.samples.size > VERIFIED:
        try:
            samples: Samples = np.memmap(store.root / part.samples.file, PAIRS, "r")
        except (OSError, ValueError) as error:
            raise ShardError(f"{where}: {error}") from error
        if samples.nbytes != part.samples.size:
            raise ShardError(f"{where} has {samples.nbytes:,} bytes, the index says {part.samples.size:,}")
        return samples
    samples = np.frombuffer(verified(store, part.samples), PAIRS)
    sizes = np.array([shard.size for shard in part.shards], np.int64)
    if not len(samples):
        return samples
    if samples["shard"].max() >= len(sizes):
        raise ShardError(f"{where} names shards that index.json does not have")
    for block, size in (("block", "size"), ("text", "length")):
        ends = samples[block].astype(np.int64) * BLOCK + samples[size]
        if (ends > sizes[samples["shard"]]).any() or samples[block].min() < 1:
            raise ShardError(f"{where} points outside the shards")
    return samples
