"""Folders of Hugging Face's transformers, read and written without it.

`davit.huggingface` has the classes that transformers makes of such a folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from davit.atomic import atomic_write
from davit.weights.checkpoint import CheckpointError, Header, dtype_name
from davit.weights.convert.huggingface import (
    AUTO_MAP,
    CODE,
    CONFIG,
    MODEL_TYPE,
    PREPROCESSOR,
    from_processor,
    to_config,
    to_header,
    to_processor,
    to_theirs,
)
from davit.weights.convert.rename import StateDict
from davit.weights.huggingface_card import model_card
from davit.weights.source import USUAL, read_content, write_plain

CARD = "README.md"
_INDEX = f"{USUAL}.index.json"
_CODE_TEXT = f'''"""The classes of this model are in the package davit: pip install 'davit[hf]'."""

import davit.huggingface
from davit.huggingface import {", ".join(sorted(AUTO_MAP.values()))}
'''


@dataclass(frozen=True, kw_only=True)
class FolderContent:
    """What a folder holds.

    Attributes:
        header: what its tensors are.
        tensors: in our spelling.
        left: names of other tensors, which a bare backbone has no place for.
    """

    header: Header
    tensors: dict[str, Tensor]
    left: tuple[str, ...]


def is_folder(path: Path) -> bool:
    """Whether a path is such a folder, or the weights in one."""
    config = (path if path.is_dir() else path.parent) / CONFIG
    if not config.is_file() or not (path.is_dir() or path.name == USUAL):
        return False
    raw = config.read_bytes()
    try:
        values = json.loads(raw)
    except ValueError:
        return f'"{MODEL_TYPE}"'.encode() in raw  # damaged; reading it says so
    return isinstance(values, dict) and values.get("model_type") == MODEL_TYPE and "widths" in values


def read_folder(path: Path) -> FolderContent:
    """Read a folder that `is_folder` knows.

    Raises:
        CheckpointError: damaged, or its files contradict each other.
        OSError: a file cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    try:
        config = _read_json(folder / CONFIG)
        preprocessor = folder / PREPROCESSOR
        preprocessing = from_processor(_read_json(preprocessor)) if preprocessor.is_file() else None
        header = to_header(config, preprocessing)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    tensors = _read_tensors(folder)
    if header.kind == "classifier":
        return FolderContent(header=header, tensors=tensors, left=())
    prefix = "backbone."
    kept = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    left = tuple(name for name in tensors if not name.startswith(prefix))
    return FolderContent(header=header, tensors=kept, left=left)


def write_folder(folder: Path, header: Header, tensors: StateDict) -> None:
    """Write a folder that transformers loads.

    Args:
        folder: made if it is not there; files of the same names in it are replaced, each whole or not at all.
        header: what the tensors are.
        tensors: in our spelling.

    Raises:
        ValueError: neither a classifier nor a backbone, or the name of a file.
        OSError: the disk is full or refuses.
    """
    theirs = to_theirs(header, tensors)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; transformers takes a folder: give the name of one")
    folder.mkdir(parents=True, exist_ok=True)
    write_plain(folder / USUAL, theirs, "davit")
    dtypes = {dtype_name(tensor): str(tensor.dtype).removeprefix("torch.") for tensor in theirs.values()}
    config = {**to_config(header), "dtype": next(iter(dtypes.values()))} if len(dtypes) == 1 else to_config(header)
    write_json(folder / CONFIG, config)
    if header.preprocessing is not None:
        write_json(folder / PREPROCESSOR, to_processor(header.preprocessing))
    write_code(folder)
    card = model_card(header, sum(tensor.numel() for tensor in theirs.values()))
    write_text(folder / CARD, card)


def write_code(folder: Path) -> None:
    """Write the file that `auto_map` names; it only imports davit."""
    write_text(folder / CODE, _CODE_TEXT)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds a {type(values).__name__} instead of an object")
    return values


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of one file, or of the parts that an index names."""
    if (folder / USUAL).is_file() or not (folder / _INDEX).is_file():
        if not (folder / USUAL).is_file():
            raise CheckpointError(f"{folder}: holds no {USUAL}")
        return read_content(folder / USUAL).tensors
    try:
        places = dict(_read_json(folder / _INDEX)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: {_INDEX} makes no sense ({error})") from error
    parts = sorted(set(map(str, places.values())))
    strange = [part for part in parts if Path(part).name != part]
    if strange:
        raise CheckpointError(f"{folder}: {_INDEX} names {strange[0]}, which is not beside it")
    tensors = {name: tensor for part in parts for name, tensor in read_content(folder / part).tensors.items()}
    if set(tensors) != set(places):
        raise CheckpointError(f"{folder}: the parts do not hold the tensors that {_INDEX} lists; get the folder anew")
    return tensors
