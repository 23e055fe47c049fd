"""Class folders to tar shards in the WebDataset format: for each image a `key.jpg`, untouched, and a `key.cls`."""

import hashlib
import io
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from davit.atomic import sync_folder
from davit.data.folder import ClassFolder, split_roots
from davit.data.shard_index import (
    BLOCK,
    INDEX,
    SAMPLE,
    ShardPart,
    StoredFile,
    index_json,
    part_files,
    refuse_uncountable,
)

SHUFFLE_SEED = 0
MEMBERS_BYTES = 4 * BLOCK  # headers and padding of an image and its class, about
_JPEGS = frozenset((".jpeg", ".jpe", ".jfif"))
Progress = Callable[[int], object]  # is told a number of bytes


def write_shards(
    root: Path,
    out: Path,
    size: int,
    *,
    started: Progress = lambda _: None,
    progress: Progress = lambda _: None,
) -> dict[str, ShardPart]:
    """Write the images of class folders into shards; `train/` and `val/` become parts, otherwise there is one, `all`.

    Samples keep the order of the folder in the index. In the tar files they lie shuffled, because other readers stream
    them. The same folder gives the same bytes. `out` appears when everything is on the disk, or not at all.

    Args:
        root: what `ClassFolder` reads, or a folder with `train/` and `val/` of that.
        out: folder to make.
        size: bytes that a shard may have; one image makes at least one shard.
        started: called with the number of bytes to come.
        progress: called with the number of bytes of each image.

    Raises:
        ValueError: not such a folder, or `out` exists.
        OSError: no space, or a file cannot be read.
    """
    refuse_place(out, size)
    folders = {name: ClassFolder(folder) for name, folder in split_roots(root).items()}
    sizes = {name: [path.stat().st_size for path in folder.paths] for name, folder in folders.items()}
    needed = sum(sum(found) + MEMBERS_BYTES * len(found) for found in sizes.values())
    require_room(root, out, needed)
    started(sum(sum(found) for found in sizes.values()))
    with appearing(out) as temporary:
        parts = {
            name: _write_part(folder, plan_shards(sizes[name], size), name, temporary, progress)
            for name, folder in folders.items()
        }
        write_new(temporary / INDEX, index_json(parts))
    return parts


def refuse_place(out: Path, size: int) -> None:
    """Refuse a folder that is there, and shards that hold nothing.

    Raises:
        ValueError: says which.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder, nothing is overwritten")
    if size < 10 * BLOCK:
        raise ValueError(f"shards must have at least {10 * BLOCK} bytes, got {size}")


def require_room(root: Path, out: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        OSError: it has less left.
    """
    free = shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        raise OSError(f"the shards of {root} take {needed:,} bytes, {out.absolute().parent} has {free:,} left")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder under another name, which it loses at the end; it vanishes if that is not reached."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(folder)
        sync_folder(folder.absolute().parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def plan_shards(sizes: list[int], limit: int) -> list[list[int]]:
    """Which samples go into which shard, shuffled."""
    shards: list[list[int]] = [[]]
    filled = 0
    for index in np.random.default_rng(SHUFFLE_SEED).permutation(len(sizes)):
        taken = sizes[index] + MEMBERS_BYTES
        if shards[-1] and filled + taken > limit:
            shards.append([])
            filled = 0
        shards[-1].append(int(index))
        filled += taken
    return shards


def _write_part(folder: ClassFolder, plan: list[list[int]], name: str, out: Path, progress: Progress) -> ShardPart:
    refuse_uncountable(len(folder.classes), len(plan))
    names = folder.names()
    keys = keys_of(names)
    (out / name).mkdir()
    samples = np.zeros(len(folder), SAMPLE)
    shards = []
    for number, members in enumerate(plan):
        file = f"{name}/{number:05d}.tar"
        with (out / file).open("xb") as raw:
            hashing = _Hashing(raw)
            with tarfile.open(fileobj=hashing, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for index in members:
                    data = folder.encoded(index)
                    block = add_member(tar, keys[index] + suffix_of(names[index]), data)
                    samples[index] = (number, folder.labels[index], block, len(data))
                    add_member(tar, keys[index] + ".cls", str(folder.labels[index]).encode())
                    progress(len(data))
            raw.flush()
            os.fsync(raw.fileno())
        shards.append(StoredFile(file=file, size=hashing.size, sha256=hashing.hash.hexdigest()))
    part, files = part_files(name, folder.classes, shards, samples, names, 0)
    for file, data in files.items():
        write_new(out / file, data)
    return part


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member and return the block at which its content begins."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))
    return tar.offset // BLOCK - -(-len(data) // BLOCK)


def keys_of(names: list[str]) -> list[str]:
    """A key for each image: its path without dots, which would end the key in this format, and made unique."""
    taken: set[str] = set()
    keys = []
    for name in names:
        plain = re.sub(r"\.", "_", str(Path(name).with_suffix("")))
        key, number = plain, 1
        while key in taken:
            number += 1
            key = f"{plain}-{number}"
        taken.add(key)
        keys.append(key)
    return keys


def suffix_of(name: str) -> str:
    """The ending of an image in the shards: one for all of JPEG's."""
    suffix = Path(name).suffix.lower()
    return ".jpg" if suffix in _JPEGS else suffix


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, onto the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class _Hashing(io.RawIOBase):
    """A file that is hashed and counted while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size
