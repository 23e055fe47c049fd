"""Resume folders: everything a run needs to go on, written so that one is either complete or not there.

`step-N.tmp` is filled, flushed and hashed, its manifest written last, then renamed to `step-N`. Only a folder whose
files match its manifest counts; a damaged one is named and the one before it is used.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from davit.weights.atomic import sync_folder

KEPT = 2


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """What a run goes on from.

    Attributes:
        step: steps done.
        tensors: state dicts by name: model, optimizer, average.
        progress: counters and best score.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    progress: dict[str, Any]


def save_point(run: Path, point: ResumePoint) -> Path:
    """Write a resume folder and delete all but the newest two.

    Raises:
        OSError: no space, or no permission; earlier folders are untouched and the unfinished one is gone.
    """
    final = run / f"step-{point.step:08d}"
    unfinished = final.with_suffix(".tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        files = {}
        for name, tensors in point.tensors.items():
            content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
            files[f"{name}.safetensors"] = _write(unfinished / f"{name}.safetensors", content)
        manifest = {"step": point.step, "files": files, "progress": point.progress}
        _write(unfinished / "manifest.json", json.dumps(manifest, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        sync_folder(run)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"could not save {final}: {error.strerror or error}") from error
    for old in _folders(run)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_point(run: Path) -> ResumePoint | None:
    """Read the newest complete resume folder; damaged ones are named on stderr and passed over."""
    for leftover in run.glob("step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in _folders(run):
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError) as error:
            print(f"davit: checkpoint {folder} is damaged ({error}); trying the one before it", file=sys.stderr)
    return None


def _read(folder: Path) -> ResumePoint:
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors = {}
    for name, expected in manifest["files"].items():
        content = (folder / name).read_bytes()
        if len(content) != expected["size"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise ValueError(f"{name} does not match the manifest")
        tensors[name.removesuffix(".safetensors")] = load(content)
    return ResumePoint(step=manifest["step"], tensors=tensors, progress=manifest["progress"])


def _folders(run: Path) -> list[Path]:
    """Finished resume folders, newest first."""
    return sorted((f for f in run.glob("step-*") if f.suffix != ".tmp"), reverse=True)


def _write(path: Path, content: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by "parameter index.name"."""
    state: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Invert `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
