"""WebDataset shards of others: find their samples, and make the index that was never written."""

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from davit.data.ranges import ShardError
from davit.data.shard_index import (
    BLOCK,
    MOST_CLASSES,
    SAMPLE,
    ShardPart,
    StoredFile,
    digest,
    part_files,
    refuse_uncountable,
)
from davit.decoding import SUFFIXES, show_path

LABEL = "cls"
LONGEST_LABEL = 1 << 12
_LARGEST = 1 << 32
_LISTED = 5
Members = dict[str, tarfile.TarInfo]  # of one key, by their endings
Add = Callable[[tarfile.TarFile, Path, int, str, Members], None]


@dataclass
class _Scan:
    """What tar files were found to hold."""

    rows: list[tuple[int, int, int]] = field(default_factory=list)  # shard, block, size
    texts: list[str] = field(default_factory=list)  # the content of each sample's .cls
    names: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def scan_shards(
    name: str,
    tars: Sequence[Path],
    root: Path,
    classes: Sequence[str] | None = None,
    *,
    skip: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[ShardPart, dict[str, bytes], list[str]]:
    """Index tar files of `key.jpg` and `key.cls` members.

    Args:
        name: name of the part.
        tars: the shards, in the order that the samples are to have.
        root: the folder under which all of them lie, where the index will be.
        classes: class names; without them, numbers in `.cls` members are the classes' names, or else their texts.
        skip: leave faulty samples, and what follows a cut, out and count them, instead of refusing.
        progress: called with the bytes of each shard.

    Returns:
        The part, its files by their paths under `root`, and what was left out.

    Raises:
        ShardError: a shard is missing, empty, cut or damaged, a member has no partner, or a class is unknown. It names
            the first of them.
    """
    found = _Scan()
    shards = walk_tars(tars, root, found.faults, partial(_add, found=found), progress)
    kept, labels, known = _label(found, classes)
    if not skip:
        refuse_faults(found.faults)
    if not kept:
        raise ShardError(
            f"{', '.join(map(str, tars[:_LISTED]))}: no samples (an image and a .{LABEL} of the same name)"
        )
    refuse_uncountable(len(known), len(shards))
    samples = np.zeros(len(kept), SAMPLE)
    rows = np.array([found.rows[index] for index in kept], np.int64)
    samples["shard"], samples["block"], samples["size"] = rows.T
    samples["label"] = labels
    names = [found.names[index] for index in kept]
    part, files = part_files(name, known, shards, samples, names, len(found.faults))
    return part, files, found.faults


def refuse_faults(faults: Sequence[str]) -> None:
    """Raise an error that names the first of them, if there are any."""
    if faults:
        more = f"\n... and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise ShardError("; ".join(faults[:_LISTED]) + more + ". --skip leaves what is faulty out, and counts it")


def walk_tars(
    tars: Sequence[Path], root: Path, faults: list[str], add: Add, progress: Callable[[int], object]
) -> tuple[StoredFile, ...]:
    """Call `add` with each key of tar files, its members and the file's number; return the files as indexed.

    Whatever is wrong with a file becomes a fault that names it.
    """
    shards = []
    for number, tar in enumerate(tars):
        _walk(tar, number, faults, add)
        shards.append(StoredFile(file=tar.relative_to(root).as_posix(), size=tar.stat().st_size, sha256=digest(tar)))
        progress(shards[-1].size)
    return tuple(shards)


def _walk(path: Path, number: int, faults: list[str], add: Add) -> None:
    try:
        if not path.stat().st_size:
            faults.append(f"{path} is empty")
            return
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in _grouped(tar):
                add(tar, path, number, key, members)
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):  # tarfile takes a damaged header for the end
                faults.append(f"{path} is cut or damaged at byte {tar.offset:,}")
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        faults.append(f"{path} is cut or damaged, or no tar file ({reason})")


def _grouped(tar: tarfile.TarFile) -> Iterator[tuple[str, Members]]:
    """Members that follow each other and share the key: the path up to the first dot of its last part."""
    key = ""
    members: Members = {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[missing-attribute] - which would grow with every member
        if not member.isreg():
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        its_key = f"{folder}/{stem}" if folder else stem
        if its_key != key or ending.lower() in members:
            if members:
                yield key, members
            key = its_key
            members = {}
        members[ending.lower()] = member
    if members:
        yield key, members


def images_of(members: Members) -> list[tarfile.TarInfo]:
    """Those that are pictures, by their endings."""
    return [member for ending, member in members.items() if f".{ending}" in SUFFIXES]


def text_of(tar: tarfile.TarFile, member: tarfile.TarInfo, longest: int) -> str:
    """The beginning of a member's content as text."""
    stream = tar.extractfile(member)
    assert stream is not None  # it is a regular file
    return stream.read(longest).decode("utf-8", "replace").strip()


def unusable(tar: tarfile.TarFile, image: tarfile.TarInfo) -> str:
    """Why the bytes of an image cannot be read; empty where they can."""
    if image.offset_data + image.size > os.fstat(tar.fileobj.fileno()).st_size:  # type: ignore[union-attr]
        return "is cut short"
    return f"has {image.size:,} bytes, too many for an image" if image.size >= _LARGEST else ""


def _add(tar: tarfile.TarFile, path: Path, number: int, key: str, members: Members, *, found: _Scan) -> None:
    images = images_of(members)
    label = members.get(LABEL)
    where = f"{path}: {show_path(key)}"
    if label is None or len(images) != 1:
        lacking = f"no .{LABEL}" if label is None else "no image" if not images else f"{len(images)} images"
        if label is not None or images:  # members of other kinds only, such as a note, are no sample
            found.faults.append(f"{where} has {lacking}")
        return
    text = text_of(tar, label, LONGEST_LABEL)
    image = images[0]
    if reason := unusable(tar, image):
        found.faults.append(f"{where} {reason}")
        return
    found.rows.append((number, image.offset_data // BLOCK, image.size))
    found.texts.append(text)
    found.names.append(str(PurePosixPath(image.name)))


def _label(found: _Scan, classes: Sequence[str] | None) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Samples whose class is known, its index, and the names of the classes."""
    numbers = all(text.isascii() and text.isdigit() for text in found.texts)
    if classes is None and numbers:
        highest = max((int(text) for text in found.texts if int(text) < MOST_CLASSES), default=-1)
        known = tuple(str(index) for index in range(highest + 1))
    else:
        known = tuple(classes) if classes is not None else tuple(sorted(set(found.texts)))
    places = {name: index for index, name in enumerate(known)}
    if numbers:
        places = {str(index): index for index in range(len(known))}
    kept: list[int] = []
    labels: list[int] = []
    for index, text in enumerate(found.texts):
        place = places.get(str(int(text)) if numbers else text)
        if place is None:
            found.faults.append(f"{found.names[index]} is of the unknown class {text[:40]!r}")
        else:
            kept.append(index)
            labels.append(place)
    return kept, labels, known
