"""`davit data index`: tar files of others."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from typing import Annotated, TypeVar

Part = TypeVar("Part")

_HELP = """Write an index for WebDataset tar files of images (key.jpg) and classes (key.cls), or with --captions of
images and captions (key.txt, one a line), beside them.

Shards that are empty, cut or damaged, members without a partner and unknown classes are refused by name; --skip leaves
them out and counts them.

  davit data index imagenet-train-*.tar --val imagenet-val-*.tar --classes names.txt
  davit data index --captions laion-*.tar --val flickr-*.tar
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    from davit.cli.data_shard import describe, describe_pairs, pair_table, table
    from davit.data.caption_index import caption_index_json
    from davit.data.caption_scan import scan_captions
    from davit.data.shard_index import index_json
    from davit.data.shard_scan import scan_shards

    def index(
        tars: Annotated[Positional[tuple[Path, ...]], arg(metavar="TAR...", help_behavior_hint="(required)")],
        /,
        *,
        val: Annotated[tuple[Path, ...], arg(metavar="TAR...")] = (),
        classes: Annotated[Path | None, arg(metavar="FILE")] = None,
        captions: bool = False,
        skip: bool = False,
        json: bool = False,
    ) -> int:
        """Index.

        Args:
            tars: The shards; with --val those for training.
            val: The shards for validation.
            classes: A text file with the name of each class in a line, in the order of the numbers in .cls members.
            captions: The shards hold captions; what has none is left out, and counted and named. A key.cls beside them
                says which pictures belong together.
            skip: Leave out what is faulty, and count it.
            json: Print what was found as JSON.
        """
        if captions and classes is not None:
            raise ValueError("--classes names the numbers of classes, and --captions takes none")
        shards: dict[str, Sequence[Path]] = {"train": tars, "val": val} if val else {"all": tars}
        if captions:
            pairs, faults = _index(shards, scan_captions, caption_index_json, skip)
            counts, told = describe_pairs(pairs), pair_table(pairs)
            for note in (note for part in pairs.values() for note in part.notes):
                print(f"davit data index: {note}", file=sys.stderr)
        else:
            names = None if classes is None else _names(classes)
            parts, faults = _index(shards, partial(scan_shards, classes=names), index_json, skip)
            counts, told = describe(parts), table(parts)
        for fault in faults:
            print(f"davit data index: left out: {fault}", file=sys.stderr)
        print(dumps({"parts": counts, "left_out": faults}) if json else told)
        return 0

    return tyro.cli(index, prog="davit data index", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _index(
    tars: dict[str, Sequence[Path]],
    scan: "Callable[..., tuple[Part, dict[str, bytes], list[str]]]",
    index_of: "Callable[[dict[str, Part]], bytes]",
    skip: bool,
) -> tuple[dict[str, Part], list[str]]:
    from davit.atomic import atomic_write
    from davit.cli.progress import Progress
    from davit.data.shard_index import INDEX

    root = _common_folder([tar for part in tars.values() for tar in part])
    if (root / INDEX).exists():
        raise ValueError(f"{root / INDEX} exists already: take it away to make another")
    parts: dict[str, Part] = {}
    contents: dict[str, bytes] = {}
    faults: list[str] = []
    with Progress("indexing", "B", sum(tar.stat().st_size for part in tars.values() for tar in part)) as progress:
        for name, shards in tars.items():
            absolute = [tar.absolute() for tar in shards]
            parts[name], files, left_out = scan(name, absolute, root, skip=skip, progress=progress)
            contents |= files
            faults += left_out
    for file, data in (contents | {INDEX: index_of(parts)}).items():  # the index last, for it names the others
        with atomic_write(root / file) as opened:
            opened.write(data)
    return parts, faults


def _names(path: Path) -> list[str]:
    names = [line.strip() for line in path.read_text("utf-8").splitlines()]
    twice = sorted({name for name in names if names.count(name) > 1 or not name})
    if twice:
        raise ValueError(
            f"{path}: every class needs its own name, {', '.join(map(repr, twice[:5]))} is none of one class"
        )
    return names


def _common_folder(tars: Sequence[Path]) -> Path:
    if not tars:
        raise ValueError("name at least one tar file")
    for tar in tars:
        if not tar.is_file():
            raise ValueError(f"{tar}: {'is a folder, name the tar files in it' if tar.is_dir() else 'no such file'}")
    return Path(os.path.commonpath([tar.absolute().parent for tar in tars]))
