"""Files of other people to plain tensors. Nothing in a file is ever run."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davit.atomic import atomic_write
from davit.weights.checkpoint import CheckpointError

USUAL = "model.safetensors"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")

# Where training codes keep the tensors, preferred first: smoothed weights give the published scores.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a foreign file holds.

    Attributes:
        tensors: its state dict, freed of wrappers.
        classes: class names, where the training code wrote them down as mmcv's does.
    """

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] = ()


def find_file(source: str | Path) -> Path:
    """The weights file a path means: itself, or in a folder `model.safetensors` or the only one.

    Raises:
        ValueError: a folder with none or several.
    """
    path = Path(source)
    if not path.is_dir():
        return path
    if (path / USUAL).is_file():  # what our runs and most public folders call it
        return path / USUAL
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ValueError(
            f"{path} should hold {USUAL} or exactly one weights file ({', '.join(SUFFIXES)}), found {names}: name one"
        )
    return files[0]


def read_content(path: Path) -> Content:
    """Read a foreign file.

    Raises:
        CheckpointError: damaged, not plain tensors, or not a weights file.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9:
        raise CheckpointError(f"{path}: only {len(start)} bytes long; get the file anew")
    content = _read_safetensors(path) if start[8:9] == b"{" else _read_pickle(path)
    return Content(tensors=clean_names(_unwrap(content, path), path), classes=_classes(content))


def write_plain(path: Path, tensors: Mapping[str, Tensor], note: str, classes: tuple[str, ...] = ()) -> None:
    """Write bare tensors, as safetensors or as a PyTorch file by the ending of the name, atomically.

    Args:
        path: where to.
        tensors: by name.
        note: what their reader must know; safetensors only.
        classes: names that a PyTorch file keeps beside its tensors as mmcv does; without, it holds the tensors alone.

    Raises:
        ValueError: another ending.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        with atomic_write(path) as file:
            file.write(save(tensors, metadata={"format": "pt", "made_by": note}))
    elif path.suffix in (".pth", ".pt", ".bin"):
        state = {name: tensor.clone() for name, tensor in tensors.items()}
        with atomic_write(path) as file:
            torch.save({"meta": {"CLASSES": classes}, "state_dict": state} if classes else state, file)
    else:
        raise ValueError(f"end the name in .safetensors, .pth, .pt or .bin, got {path.name}")


def clean_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take off what torch.compile writes into names."""
    cleaned = {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items()}
    if len(cleaned) < len(tensors):
        raise CheckpointError(f"{path}: holds the same tensors with and without the _orig_mod. of torch.compile")
    return cleaned


def _classes(content: Any) -> tuple[str, ...]:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated, damaged or no safetensors file ({error}); get it anew") from error


def _read_pickle(path: Path) -> Any:
    # argparse.Namespace only holds values; older training codes keep their options in one.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(str(error))}") from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: truncated, damaged or no weights file ({reason})") from error


def _refusal(message: str) -> str:
    if "invalid load key" in message:
        return "damaged, or no weights file"
    named = re.search(r"GLOBAL ([\w.]+)", message)
    what = named[1] if named else "Python objects"
    return (
        f"holds {what}, which only running code from the file could load, and that is not safe. Ask for plain tensors "
        "(safetensors); or, if you trust the file, load it where it was made and save its state_dict alone"
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(4):
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: holds a {type(content).__name__} instead of named tensors")
        if any(isinstance(value, Tensor) for value in content.values()):
            break
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            found = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
            raise CheckpointError(f"{path}: holds no tensors where they are looked for; it holds {found}")
        content = content[wrapper]
    strange = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(f"{path}: {', '.join(strange[:5])} among its tensors is no named tensor")
    return dict(content)
