"""The index of a set of shards: which bytes of which tar file are which sample.

`index.json` names the parts, their classes and, with size and SHA-256, their files. For each part one of these holds
12 bytes for each sample (`SAMPLE`), in the order of the samples: 15 MB for 1.28 million. Another holds their names.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from davit.data.ranges import Folder, ShardError, Store
from davit.records import from_json, to_json

INDEX = "index.json"
FORMAT = "davit-shards-1"
BLOCK = 512  # tar files are made of these, and each member begins at one
SAMPLE = np.dtype([("shard", "<u2"), ("label", "<u2"), ("block", "<u4"), ("size", "<u4")])
MOST_CLASSES = MOST_SHARDS = 1 << 16
Samples = np.ndarray[Any, Any]  # of SAMPLE
Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of the set: its path under the root, and what it must be."""

    file: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Refuse files outside the root, and what is no size or hash."""
        path = PurePosixPath(self.file) if isinstance(self.file, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{self.file!r} is no path under the folder of the index")
        if not isinstance(self.size, int) or self.size < 0 or not isinstance(self.sha256, str):
            raise ValueError(f"size and sha256 of {self.file} must be a number and a text")


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """One side of the set, such as `train`.

    Attributes:
        classes: class names, in the order of the labels.
        shards: the tar files.
        samples: the file of `SAMPLE` records.
        names: the file of names, each ended by a zero byte, compressed with gzip.
        skipped: number of samples left out when the shards were indexed.
    """

    classes: tuple[str, ...]
    shards: tuple[StoredFile, ...]
    samples: StoredFile
    names: StoredFile
    skipped: int = 0

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.samples.size // SAMPLE.itemsize


def read_index(store: Store) -> dict[str, ShardPart]:
    """Read the parts of a set.

    Raises:
        ShardError: no index.json, or one that is damaged or of another format.
    """
    return read_parts(store, ShardPart, FORMAT, "davit data index")


def read_parts(store: Store, kind: type[Part], format: str, command: str) -> dict[str, Part]:
    """Read the parts of index.json, of whatever kind.

    Args:
        store: where it lies.
        kind: the record of a part.
        format: what the file must call its format.
        command: what makes such an index.

    Raises:
        ShardError: no index.json, or one that is damaged, of another format, or without parts.
    """
    where = store.where(INDEX)
    try:
        values = json.loads(store.whole(INDEX))
    except ValueError as error:
        raise ShardError(f"{where} is no JSON ({error}): make it again with `{command}`") from error
    if not isinstance(values, dict) or values.get("format") != format or not isinstance(values.get("parts"), dict):
        raise ShardError(f"{where} is no index of its kind ({format}): make one with `{command}`")
    try:
        parts = {name: from_json(kind, part, f"part {name!r}") for name, part in values["parts"].items()}
    except (ValueError, TypeError) as error:
        raise ShardError(f"{where}: {error}") from error
    if not parts:
        raise ShardError(f"{where} holds no part")
    return parts


def read_samples(store: Store, part: ShardPart) -> Samples:
    """Read where the samples are.

    Raises:
        ShardError: the file is not the one that index.json describes, or points outside the shards.
    """
    where = store.where(part.samples.file)
    data = verified(store, part.samples)
    if len(data) % SAMPLE.itemsize:
        raise ShardError(f"{where} is damaged: it does not hold records of {SAMPLE.itemsize} bytes")
    samples = np.frombuffer(data, SAMPLE)
    sizes = np.array([shard.size for shard in part.shards], np.int64)
    if len(samples) and (samples["shard"].max() >= len(sizes) or samples["label"].max() >= len(part.classes)):
        raise ShardError(f"{where} names shards or classes that index.json does not have")
    ends = samples["block"].astype(np.int64) * BLOCK + samples["size"]
    if len(samples) and ((ends > sizes[samples["shard"]]).any() or samples["block"].min() < 1):
        raise ShardError(f"{where} points outside the shards")
    return samples


def read_names(store: Store, part: ShardPart) -> list[str]:
    """Read the names of the samples: their paths in the folder that was sharded, or in the tar files."""
    try:
        data = gzip.decompress(verified(store, part.names))
    except (OSError, EOFError) as error:
        raise ShardError(f"{store.where(part.names.file)}: {error}") from error
    return data.decode("utf-8", "surrogateescape").split("\0")[:-1]


def verified(store: Store, stored: StoredFile) -> bytes:
    """Content of a file, after its hash was compared."""
    data = store.whole(stored.file)
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise ShardError(f"{store.where(stored.file)} is damaged: its SHA-256 is not the one in {INDEX}")
    return data


def part_files(
    name: str,
    classes: Sequence[str],
    shards: Sequence[StoredFile],
    samples: Samples,
    names: Sequence[str],
    skipped: int,
) -> tuple[ShardPart, dict[str, bytes]]:
    """Make a part and the files, by their paths, that go with it."""
    content = {
        f"{name}.samples": samples.astype(SAMPLE).tobytes(),
        f"{name}.names.gz": gzip.compress(
            b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in names), mtime=0
        ),
    }
    files = [
        StoredFile(file=file, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for file, data in content.items()
    ]
    part = ShardPart(classes=tuple(classes), shards=tuple(shards), samples=files[0], names=files[1], skipped=skipped)
    return part, content


def index_json(parts: Mapping[str, object], format: str = FORMAT) -> bytes:
    """Content of index.json; write it last, for it names the others."""
    values = {"format": format, "parts": {name: to_json(part) for name, part in parts.items()}}
    return (json.dumps(values, indent=1) + "\n").encode()


def refuse_uncountable(classes: int, shards: int) -> None:
    """Refuse what the records have no bits for."""
    if classes > MOST_CLASSES or shards > MOST_SHARDS:
        raise ValueError(
            f"{classes:,} classes in {shards:,} shards: an index holds {MOST_CLASSES:,} of each; choose larger shards"
        )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sizes(store: Folder, shards: Sequence[StoredFile]) -> None:
    """Compare the sizes of tar files on this machine with the index.

    Raises:
        ShardError: one is not there, or of another size.
    """
    for shard in shards:
        try:
            size = (store.root / shard.file).stat().st_size
        except OSError as error:
            raise ShardError(f"{store.where(shard.file)}: {error.strerror}; the index names it") from error
        if size != shard.size:
            raise ShardError(
                f"{store.where(shard.file)} has {size:,} bytes, the index says {shard.size:,}: it was cut or replaced"
            )


def read_member(store: Store, shard: StoredFile, block: int, size: int) -> tuple[str, bytes]:
    """What errors call a member of a tar file, and its bytes.

    Its header comes along, to tell whether index and file agree.

    Raises:
        ShardError: the bytes cannot be read, or they are not those that were indexed.
    """
    data = store.piece(shard.file, (block - 1) * BLOCK, BLOCK + size, shard.size)
    header = data[:BLOCK]
    told = header[124:136].rstrip(b"\0 ")
    if not told.isdigit() or int(told, 8) != size:
        raise ShardError(f"{store.where(shard.file)} is damaged, or not the file that was indexed")
    names = [field.partition(b"\0")[0] for field in (header[345:500], header[:100])]
    name = b"/".join(field for field in names if field).decode("utf-8", "replace")
    return f"{store.where(shard.file)}: {name}", data[BLOCK:]
