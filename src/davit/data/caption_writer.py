"""Captioned pictures to tar shards: for each a `key.jpg`, untouched, its captions in `key.txt`, and a `key.cls`."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from davit.data.caption_files import CaptionFiles, caption_roots, find_captions
from davit.data.caption_index import PAIRS, CaptionPart, caption_index_json, caption_part
from davit.data.caption_scan import scan_captions
from davit.data.folder import file_bytes
from davit.data.shard_index import BLOCK, INDEX
from davit.data.shard_writer import (
    MEMBERS_BYTES,
    add_member,
    appearing,
    keys_of,
    plan_shards,
    refuse_place,
    require_room,
    suffix_of,
    write_new,
)

Progress = Callable[[int], object]


def write_caption_shards(
    root: Path,
    out: Path,
    size: int,
    *,
    started: Progress = lambda _: None,
    progress: Progress = lambda _: None,
) -> tuple[dict[str, CaptionPart], tuple[str, ...]]:
    """Write captioned pictures into shards; `train/` and `val/` become parts, otherwise there is one, `all`.

    Each picture lies there once, with all its captions, in the index in the order of the table. In the tar files they
    lie shuffled, because other readers stream them. The same pictures give the same bytes. `out` appears when all
    is on the disk, or not at all.

    Args:
        root: what `find_captions` reads, or a folder with `train/` and `val/` of that.
        out: folder to make.
        size: bytes that a shard may have; one image makes at least one shard.
        started: called with the number of bytes to come.
        progress: called with the number of bytes of each image.

    Returns:
        The parts, and what was left out of them.

    Raises:
        ValueError: no captions, or `out` exists.
        OSError: no space, or a file cannot be read.
    """
    refuse_place(out, size)
    found = {name: find_captions(folder) for name, folder in caption_roots(root).items()}
    pictures = {name: _pictures(captions) for name, captions in found.items()}
    total = sum(path.stat().st_size for part in pictures.values() for path, _, _ in part)
    require_room(root, out, total + (MEMBERS_BYTES + 2 * BLOCK) * sum(map(len, pictures.values())))
    started(total)
    parts: dict[str, CaptionPart] = {}
    with appearing(out) as temporary:
        for name, part in pictures.items():
            plan = plan_shards([path.stat().st_size for path, _, _ in part], size)
            tars = _write_part(part, plan, name, temporary, progress)
            scanned, files, _ = scan_captions(name, tars, temporary)
            rows = np.frombuffer(files[scanned.samples.file], PAIRS)  # as they lie in the tar files
            rows = rows[np.argsort([index for members in plan for index in members])]
            parts[name], files = caption_part(name, scanned.shards, rows, ())
            for file, data in files.items():
                write_new(temporary / file, data)
        write_new(temporary / INDEX, caption_index_json(parts))
    return parts, tuple(note for captions in found.values() for note in captions.notes)


_Picture = tuple[Path, list[str], str]  # file, captions, class


def _pictures(found: CaptionFiles) -> list[_Picture]:
    """Each picture once, in the order of the table."""
    pictures: dict[int, _Picture] = {}
    for path, caption in zip(found.paths, found.captions, strict=True):
        pictures.setdefault(caption.image, (path, [], caption.class_name))[1].append(" ".join(caption.text.split()))
    return list(pictures.values())


def _write_part(
    pictures: list[_Picture], plan: list[list[int]], name: str, out: Path, progress: Progress
) -> list[Path]:
    base = Path(os.path.commonpath([path.absolute().parent for path, _, _ in pictures]))
    names = [path.absolute().relative_to(base).as_posix() for path, _, _ in pictures]
    keys = keys_of(names)
    (out / name).mkdir()
    tars = []
    for number, members in enumerate(plan):
        tars.append(out / name / f"{number:05d}.tar")
        with tars[-1].open("xb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for index in members:
                path, captions, class_name = pictures[index]
                data = file_bytes(path)
                add_member(tar, keys[index] + suffix_of(names[index]), data)
                add_member(tar, f"{keys[index]}.txt", "\n".join(captions).encode())
                if class_name:
                    add_member(tar, f"{keys[index]}.cls", class_name.encode())
                progress(len(data))
        with tars[-1].open("rb") as raw:
            os.fsync(raw.fileno())
    return tars
