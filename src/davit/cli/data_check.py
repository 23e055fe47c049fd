"""`davit data check`: find what would spoil training or scores."""

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from davit.cpus import usual_workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from davit.data.findings import CheckReport, Finding

_HELP = """Find what would spoil training or scores, in class folders, shards, COCO annotations, pictures beside index
masks, or pictures with captions.

Errors: files that cannot be decoded, classes that training does not know, the same picture on both sides of a split or
with two labels, masks of another size than their pictures. Warnings: copies, wrong file endings, odd sizes. Notes: what
is handled, but worth knowing.
The exit code is 0 without errors, and 1 with some.

  davit data check flowers
  davit data check flowers --write-manifest flowers.sha256
  davit data check flowers --verify flowers.sha256 --quick
  davit data check camvid --class-list names.txt --ignore 11
"""
_LISTED = 10  # findings of a kind


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def check(
        root: Annotated[Positional[str], arg(metavar="DIR")],
        /,
        *,
        verify: Annotated[Path | None, arg(metavar="FILE")] = None,
        write_manifest: Annotated[Path | None, arg(metavar="FILE")] = None,
        class_list: Annotated[Path | None, arg(metavar="FILE")] = None,
        ignore: Annotated[tuple[int, ...], arg(metavar="LABEL...")] = (),
        quick: bool = False,
        workers: Annotated[int | None, arg(metavar="N")] = None,
        all: bool = False,
        json: bool = False,
    ) -> int:
        """Check.

        Args:
            root: Class folders, train/ and val/ with them, shards (a URL too), COCO's layout, pictures and index
                masks, or pictures with captions: a folder, shards or a table.
            verify: A manifest; files that changed, vanished or came since it was written are found.
            write_manifest: Write SHA-256 hashes of all files of DIR there, in the format of sha256sum.
            class_list: Names of the labels of index masks, a line each, where no classes.txt lies in DIR.
            ignore: Labels of index masks that stand for no class, beside 255.
            quick: Do not decode images; look at their bytes and headers only.
            workers: Processes that decode; by default one per CPU, 8 at most.
            all: List every finding, instead of the first of each kind.
            json: Print all findings as JSON.
        """
        check = _check_of(root, class_list, ignore)
        report = _check(root, check, verify, quick, usual_workers() if workers is None else workers)
        if write_manifest is not None:
            _write(root, write_manifest)
        print(dumps(report.to_json(), indent=2) if json else _table(report, sys.maxsize if all else _LISTED))
        return 1 if report.count("error") else 0

    return tyro.cli(check, prog="davit data check", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _check_of(root: str, class_list: Path | None, ignore: tuple[int, ...]) -> "Callable[..., CheckReport]":
    """The check of such data."""
    from functools import partial

    from davit.data.check import check_classification
    from davit.data.check_captions import check_captions, is_captions
    from davit.data.check_coco import check_coco
    from davit.data.check_masks import check_masks
    from davit.data.coco import is_coco
    from davit.data.masks import has_masks

    if not is_coco(root) and has_masks(root):
        return partial(check_masks, class_list=class_list, ignore=ignore)
    if class_list is not None or ignore:
        raise ValueError(f"--class-list and --ignore are for index masks, and {root} holds none beside pictures")
    if is_coco(root):
        return check_coco
    return check_captions if is_captions(root) else check_classification


def _check(
    root: str, check: "Callable[..., CheckReport]", verify: Path | None, quick: bool, workers: int
) -> "CheckReport":
    from davit.cli.progress import Progress
    from davit.data.findings import CheckReport
    from davit.data.manifest import compare_manifest

    if workers < 0:
        raise ValueError(f"--workers must be at least 0, got {workers}")
    changes: list[Finding] = []
    if verify is not None:
        with Progress("comparing hashes", "files") as progress:
            changes = compare_manifest(_folder(root), verify, progress)
    with Progress("checking", "images") as progress:
        report = check(root, decode=not quick, workers=workers, started=progress.start, progress=progress)
    return CheckReport.of(report.root, report.images, [*report.findings, *changes])


def _write(root: str, target: Path) -> None:
    from davit.atomic import atomic_write
    from davit.cli.progress import Progress
    from davit.data.manifest import files_under, manifest_lines

    folder = _folder(root)
    if target.exists():
        raise ValueError(f"{target} exists already: take it away, or choose another name")
    with Progress("hashing", "files", len(files_under(folder))) as progress:
        lines = list(manifest_lines(folder, progress))
    with atomic_write(target) as file:
        file.writelines(lines)
    print(f"davit data check: wrote hashes of {len(lines)} files to {target}", file=sys.stderr)


def _folder(root: str) -> Path:
    if not Path(root).is_dir():
        raise ValueError(f"{root} is no folder on this machine, so it has no manifest")
    return Path(root)


def _table(report: "CheckReport", listed: int) -> str:
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for found in report.findings:
        kinds.setdefault((found.level, found.kind), []).append(found)
    lines = [f"{report.root}: " + ", ".join(f"{count:,} images in {part}" for part, count in report.images.items())]
    for (level, kind), findings in kinds.items():
        lines += ["", f"{level}: {kind}, {len(findings)} found"]
        lines += [f"  {found.file}: {found.message}" for found in findings[:listed]]
        if len(findings) > listed:
            lines.append(f"  ... and {len(findings) - listed:,} more; --all lists them")
    counts = [f"{report.count('error')} errors", f"{report.count('warning')} warnings", f"{report.count('note')} notes"]
    return "\n".join([*lines, "", ", ".join(counts)])
