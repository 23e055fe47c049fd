"""`davit data shard`: class folders to tar files."""

import re
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from davit.data.caption_index import CaptionPart
    from davit.data.shard_index import ShardPart

_HELP = """Write class folders, or with --captions pictures with captions, into tar files in the WebDataset format, with
an index.

Image files are copied as they are. Training on the shards gives the same samples in the same order as on the folder.
OUT appears when all is written; nothing is overwritten.

  davit data shard imagenet imagenet-shards
  davit train finetune data.root=imagenet-shards
  davit data shard flickr8k flickr8k-shards --captions
"""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def shard(
        root: Annotated[Positional[Path], arg(metavar="DIR")],
        out: Annotated[Positional[Path], arg(metavar="OUT")],
        /,
        *,
        size: Annotated[str, arg(metavar="BYTES")] = "256MB",
        captions: bool = False,
        json: bool = False,
    ) -> int:
        """Shard.

        Args:
            root: A folder of class folders, or with train/ and val/ of these.
            out: The folder to make.
            size: Size of a shard, such as 64MB or 1GB.
            captions: DIR is a table of captions or holds one (docs/image-text.md); or train/ and val/ of that.
            json: Print what was written as JSON.
        """
        from davit.cli.progress import Progress
        from davit.data.shard_writer import write_shards

        limit = parse_size(size)
        if captions:
            from davit.data.caption_writer import write_caption_shards

            with Progress("writing shards", "B") as progress:
                pairs, notes = write_caption_shards(root, out, limit, started=progress.start, progress=progress)
            for note in notes:
                print(f"davit data shard: {note}", file=sys.stderr)
            print(dumps({"out": str(out), "parts": describe_pairs(pairs)}) if json else pair_table(pairs))
            return 0
        with Progress("writing shards", "B") as progress:
            parts = write_shards(root, out, limit, started=progress.start, progress=progress)
        print(dumps({"out": str(out), "parts": describe(parts)}) if json else table(parts))
        return 0

    return tyro.cli(shard, prog="davit data shard", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def describe(parts: "dict[str, ShardPart]") -> dict[str, dict[str, int]]:
    """Count what parts hold."""
    return {
        name: {
            "images": part.count, "classes": len(part.classes), "shards": len(part.shards),
            "bytes": sum(shard.size for shard in part.shards), "skipped": part.skipped,
        }
        for name, part in parts.items()
    }  # fmt: skip


def describe_pairs(parts: "dict[str, CaptionPart]") -> dict[str, dict[str, int]]:
    """Count what parts with captions hold."""
    return {
        name: {
            "images": part.count, "captions": part.captions, "shards": len(part.shards),
            "bytes": sum(shard.size for shard in part.shards),
        }
        for name, part in parts.items()
    }  # fmt: skip


def pair_table(parts: "dict[str, CaptionPart]") -> str:
    """Return a line for each part with captions."""
    return "\n".join(
        f"{name}: {part['images']:,} images with {part['captions']:,} captions in {part['shards']:,} shards, "
        f"{part['bytes'] / 1e6:,.1f} MB"
        for name, part in describe_pairs(parts).items()
    )


def table(parts: "dict[str, ShardPart]") -> str:
    """Return a line for each part."""
    return "\n".join(
        f"{name}: {part['images']:,} images of {part['classes']:,} classes in {part['shards']:,} shards, "
        f"{part['bytes'] / 1e6:,.1f} MB" + (f", {part['skipped']:,} left out" if part["skipped"] else "")
        for name, part in describe(parts).items()
    )


def parse_size(text: str) -> int:
    """Read a number of bytes such as 256MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B?", text.strip().upper())
    if not match:
        raise ValueError(f"--size {text!r} is no number of bytes; write it like 256MB or 1GB")
    return int(float(match[1]) * _UNITS[match[2]])
