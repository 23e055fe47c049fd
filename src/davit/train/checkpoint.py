"""Resume folders: everything a run needs to go on, written so that one is either complete or not there.

`step-N.tmp` is filled by all processes (torch's distributed checkpoint in safetensors files, so that another number of
processes can read it), flushed and hashed, its manifest written last, then renamed to `step-N`. Only a folder whose
files match its manifest counts; a damaged one is named and the one before it is used. No file holds code.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from davit import __version__
from davit.atomic import sync_folder
from davit.train.distributed import World

KEPT = 2


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """What a run goes on from.

    Attributes:
        folder: where the tensors are.
        step: steps done.
        progress: counters and best score.
    """

    folder: Path
    step: int
    progress: dict[str, Any]


def save_point(run: Path, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], world: World) -> Path:
    """Write a resume folder, all processes together, and delete all but the newest two.

    Args:
        run: the run folder.
        step: steps done.
        tensors: whole tensors, or this process's shards of them, none without a dimension.
        progress: JSON values.
        world: the processes.

    Raises:
        OSError: a process found no space or no permission; earlier folders are untouched, the unfinished one is gone.
    """
    final = run / f"step-{step:08d}"
    unfinished = final.with_suffix(".tmp")
    try:
        world.once(lambda: _make_empty(unfinished))
        world.all_succeed(lambda: _write_shards(unfinished, tensors, world))
        files = [entry for entries in world.gather(_my_files(unfinished, world)) for entry in entries]
        body = {"step": step, "world": world.size, "versions": _versions(), "files": files, "progress": progress}
        world.once(lambda: _finish(unfinished, final, body))
    except OSError as error:
        if world.first:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"could not save {final}: {error.strerror or error}") from error
    if world.first:
        for old in _folders(run)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def latest_point(run: Path, world: World | None = None) -> ResumePoint | None:
    """Find the newest complete resume folder; damaged ones are named on stderr and passed over."""
    world = world or World()
    for folder in world.once(lambda: _tidy(run)):
        try:
            manifest = world.once(lambda folder=folder: _read_manifest(folder))
            mine = manifest["files"][world.rank :: world.size]
            world.all_succeed(lambda folder=folder, mine=mine: _verify(folder, mine))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if world.first:
                print(f"davit: checkpoint {folder} is damaged ({error}); trying the one before it", file=sys.stderr)
            continue
        return ResumePoint(folder=folder, step=manifest["step"], progress=manifest["progress"])
    return None


def stored_names(point: ResumePoint) -> set[str]:
    """Names of the tensors of a resume folder."""
    return set(HuggingFaceStorageReader(str(point.folder)).read_metadata().state_dict_metadata)


def read_tensors(point: ResumePoint, tensors: Mapping[str, Tensor], world: World) -> None:
    """Read a resume folder into tensors, or shards of them, of the same names.

    Raises:
        ValueError: the names or shapes are not those that were saved.
    """
    stored = stored_names(point)
    if stored != tensors.keys():
        odd = sorted(stored ^ tensors.keys())
        raise ValueError(
            f"{point.folder} does not fit this run: {len(odd)} tensors differ, such as {', '.join(odd[:3])}"
        )
    reader = HuggingFaceStorageReader(str(point.folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        try:
            dcp.load(dict(tensors), storage_reader=reader, no_dist=world.size == 1)
        except CheckpointException as error:
            raise ValueError(f"{point.folder} does not fit this run: {_cause(error)}") from error


def require_space(run: Path, size: int) -> None:
    """See that two resume folders of `size` bytes fit on the disk, those that are there included.

    Raises:
        OSError: they do not.
    """
    there = sum(file.stat().st_size for folder in _folders(run) for file in folder.iterdir())
    if (free := shutil.disk_usage(run).free) + there < KEPT * size:
        raise OSError(
            f"{run} has {free / 1e6:,.1f} MB free, but two resume folders of {size / 1e6:,.1f} MB must fit: "
            "make space or choose another --out"
        )


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")  # alone is how most people train
        try:
            dcp.save(dict(tensors), storage_writer=writer, no_dist=world.size == 1)
        except CheckpointException as error:
            raise OSError(_cause(error)) from error


def _cause(error: CheckpointException) -> str:
    causes = [str(wrapped[0]) for wrapped in error.failures.values()]
    return causes[0].splitlines()[0] if causes and causes[0] else str(error)


def _my_files(folder: Path, world: World) -> list[dict[str, Any]]:
    """Flush and hash what this process wrote."""
    return [_sealed(path) for path in sorted(folder.glob(f"shard-{world.rank + 1:05d}-*"))]


def _sealed(path: Path) -> dict[str, Any]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "size": path.stat().st_size, "sha256": digest}


def _finish(unfinished: Path, final: Path, body: dict[str, Any]) -> None:
    content = {"manifest": body, "sha256": _hash_of(body)}
    with (unfinished / "manifest.json").open("w") as file:
        file.write(json.dumps(content, indent=1))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(unfinished)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    sync_folder(final.parent)


def _tidy(run: Path) -> list[Path]:
    """Delete what a crash left unfinished, and list the resume folders, newest first."""
    for leftover in run.glob("step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in run.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    return _folders(run)


def _read_manifest(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "manifest.json").read_bytes())
    if content["sha256"] != _hash_of(content["manifest"]):
        raise ValueError("manifest.json does not match its hash")
    return content["manifest"]


def _verify(folder: Path, files: list[dict[str, Any]]) -> None:
    for entry in files:
        with (folder / entry["name"]).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise ValueError(f"{entry['name']} does not match the manifest")


def _hash_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _folders(run: Path) -> list[Path]:
    """Finished resume folders, newest first."""
    return sorted((f for f in run.glob("step-*") if f.suffix != ".tmp"), reverse=True)


def _versions() -> dict[str, str]:
    return {"davit": __version__, "torch": torch.__version__}
