"""WebDataset shards with captions, ours or others': find their samples, and make the index."""

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from davit.data.caption_index import PAIRS, CaptionPart, caption_part
from davit.data.caption_shards import caption_lines
from davit.data.captions import label_of
from davit.data.ranges import ShardError
from davit.data.shard_index import BLOCK
from davit.data.shard_scan import (
    LABEL,
    LONGEST_LABEL,
    Members,
    images_of,
    refuse_faults,
    text_of,
    unusable,
    walk_tars,
)
from davit.decoding import show_path

CAPTION = "txt"
_LONGEST = 1 << 20  # bytes of captions
_NAMED = 3


@dataclass
class _Scan:
    """What tar files were found to hold."""

    rows: list[tuple[int, ...]] = field(default_factory=list)  # as `PAIRS`
    faults: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)  # what is no pair, by why
    counts: dict[str, int] = field(default_factory=dict)


def scan_captions(
    name: str,
    tars: Sequence[Path],
    root: Path,
    *,
    skip: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[CaptionPart, dict[str, bytes], list[str]]:
    """Index tar files of `key.jpg` and `key.txt` members, whose lines are captions; a `key.cls` says the class.

    Images without captions, or with empty ones, are left out, and counted and named in the notes of the part.

    Args:
        name: name of the part.
        tars: the shards, in the order that the samples are to have.
        root: the folder under which all of them lie, where the index will be.
        skip: leave faulty samples, and what follows a cut, out, instead of refusing.
        progress: called with the bytes of each shard.

    Returns:
        The part, its files by their paths under `root`, and the faults that were passed over.

    Raises:
        ShardError: a shard is missing, empty, cut or damaged, or holds nothing to learn from. It names the first.
    """
    found = _Scan()
    shards = walk_tars(tars, root, found.faults, partial(_add, found=found), progress)
    if not skip:
        refuse_faults(found.faults)
    if not found.rows:
        raise ShardError(f"{', '.join(map(str, tars[:_NAMED]))}: no pairs (an image and a .{CAPTION} of the same name)")
    notes = tuple(
        f"{name}: {found.counts[why]:,} pictures {why} are left out: {', '.join(names)}"
        + (" and others" if found.counts[why] > len(names) else "")
        for why, names in found.left.items()
    )
    part, files = caption_part(name, shards, np.array(found.rows, PAIRS), notes)
    return part, files, found.faults


def _add(tar: tarfile.TarFile, path: Path, number: int, key: str, members: Members, *, found: _Scan) -> None:
    images, text = images_of(members), members.get(CAPTION)
    where = f"{path}: {show_path(key)}"
    if len(images) != 1:
        if images or text is not None:
            found.faults.append(f"{where} has {f'{len(images)} images' if images else 'no image'}")
        return
    image = images[0]
    if reason := unusable(tar, image):
        found.faults.append(f"{where} {reason}")
        return
    if text is not None and text.size >= _LONGEST:
        found.faults.append(f"{where} has {text.size:,} bytes of captions")
        return
    lines = caption_lines(b"" if text is None else text_of(tar, text, _LONGEST).encode())
    if text is None or not lines:
        why = "without a caption" if text is None else "with an empty caption"
        found.counts[why] = found.counts.get(why, 0) + 1
        if found.counts[why] <= _NAMED:
            found.left.setdefault(why, []).append(show_path(key))
        return
    label = members.get(LABEL)
    whose = f"image {number} {key}" if label is None else f"class {text_of(tar, label, LONGEST_LABEL)}"
    if len(lines) >= 1 << 16:
        found.faults.append(f"{where} has {len(lines):,} captions")
        return
    places = (image.offset_data // BLOCK, image.size, text.offset_data // BLOCK, text.size)
    found.rows.append((number, *places, len(lines), label_of(whose)))
