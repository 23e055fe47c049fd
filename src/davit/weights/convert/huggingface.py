"""Folders of Hugging Face's transformers, read and written without it.

`config.json` holds every field of `DaViTConfig` by its own name, `preprocessor_config.json` every field of
`Preprocessing`, `model.safetensors` our tensors: a classifier's as they are, a backbone's below `backbone.`.
`davit.huggingface` has the classes that transformers makes of such a folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from davit.atomic import atomic_write
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.naming import unknown_name
from davit.preprocessing import Preprocessing
from davit.records import from_json, to_json
from davit.weights.checkpoint import CheckpointError, Header, dtype_name
from davit.weights.convert.rename import StateDict
from davit.weights.source import read_content, write_plain

MODEL_TYPE = "davit"
CONFIG, PREPROCESSOR, TENSORS, INDEX = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
CODE = "davit_classes.py"
CLASSIFIER, BACKBONE, MODEL = "DaViTForImageClassification", "DaViTBackbone", "DaViTModel"
PROCESSOR = "DaViTImageProcessor"

# What transformers looks up with trust_remote_code where davit.huggingface.register() was not called.
AUTO_MAP = {
    "AutoConfig": "DaViTPretrainedConfig",
    "AutoModel": MODEL,
    "AutoModelForImageClassification": CLASSIFIER,
    "AutoBackbone": BACKBONE,
    "AutoImageProcessor": PROCESSOR,
}
CODE_TEXT = f'''"""The classes of this model are in the package davit: pip install 'davit[hf]'."""

import davit.huggingface
from davit.huggingface import {", ".join(sorted(AUTO_MAP.values()))}
'''

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers, which transformers saves
_UNNAMED = "LABEL_{}"  # what transformers calls a class without a name


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
    if not config.is_file() or not (path.is_dir() or path.name == TENSORS):
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
    from davit.weights.convert.huggingface_card import model_card

    theirs = to_theirs(header, tensors)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; transformers takes a folder: give the name of one")
    folder.mkdir(parents=True, exist_ok=True)
    write_plain(folder / TENSORS, theirs, "davit")
    dtypes = {dtype_name(tensor): str(tensor.dtype).removeprefix("torch.") for tensor in theirs.values()}
    config = {**to_config(header), "dtype": next(iter(dtypes.values()))} if len(dtypes) == 1 else to_config(header)
    write_json(folder / CONFIG, config)
    if header.preprocessing is not None:
        write_json(folder / PREPROCESSOR, to_processor(header.preprocessing))
    write_code(folder)
    card = model_card(header, sum(tensor.numel() for tensor in theirs.values()))
    write_text(folder / "README.md", card)


def to_theirs(header: Header, tensors: StateDict) -> dict[str, Tensor]:
    """Our tensors by their names in `model.safetensors`.

    Raises:
        ValueError: neither a classifier nor a backbone.
    """
    if header.kind == "classifier":
        return dict(tensors)
    if header.kind != "backbone":
        raise ValueError(
            f"cannot write this model as hf: transformers has classes for a classifier and a backbone, and this is a "
            f"{header.kind}; save its .backbone as a checkpoint and convert that"
        )
    return {f"backbone.{name}": tensor for name, tensor in tensors.items()}


def to_config(header: Header) -> dict[str, Any]:
    """The values of `config.json`."""
    values: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "architectures": [CLASSIFIER if header.kind == "classifier" else BACKBONE],
        "auto_map": auto_map(),
        **to_json(header.backbone),
        "pooled_norm": header.kind == "classifier",
    }
    if isinstance(header.config, ClassifierConfig):
        names = header.classes or tuple(map(_UNNAMED.format, range(header.config.num_classes)))
        values["id2label"] = {str(index): name for index, name in enumerate(names)}
        values["label2id"] = {name: index for index, name in enumerate(names)}
    return values | ({"provenance": header.provenance} if header.provenance else {})


def to_header(config: Mapping[str, Any], preprocessing: Preprocessing | None) -> Header:
    """Undo `to_config`.

    Raises:
        ValueError: another kind of model, or values that make none.
    """
    architecture = (config.get("architectures") or [MODEL])[0]
    if architecture not in (CLASSIFIER, BACKBONE, MODEL):
        raise unknown_name("architecture", str(architecture), (CLASSIFIER, BACKBONE, MODEL))
    known = {field.name for field in fields(DaViTConfig)}
    backbone = from_json(DaViTConfig, {name: value for name, value in config.items() if name in known})
    provenance = config.get("provenance") or {}
    if architecture != CLASSIFIER:
        return Header(kind="backbone", config=backbone, preprocessing=preprocessing, provenance=provenance)
    labels = config.get("id2label") or {"0": _UNNAMED.format(0), "1": _UNNAMED.format(1)}  # theirs, left out of files
    names = tuple(labels[key] for key in sorted(labels, key=int))
    unnamed = all(name == _UNNAMED.format(index) for index, name in enumerate(names))
    return Header(
        kind="classifier",
        config=ClassifierConfig(backbone=backbone, num_classes=len(names)),
        preprocessing=preprocessing,
        classes=() if unnamed else names,
        provenance=provenance,
    )


def to_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The values of `preprocessor_config.json`: their words where they have one.

    It names no class, `config.json` does: transformers would take a class named here for one of videos, too, and ask
    whether to trust it.
    """
    return {
        "size": {"height": preprocessing.size[0], "width": preprocessing.size[1]},
        "crop": preprocessing.crop,
        "fit": preprocessing.fit,
        "resample": _RESAMPLE[preprocessing.interpolation],
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def from_processor(values: Mapping[str, Any]) -> Preprocessing:
    """Undo `to_processor`.

    Raises:
        ValueError: of another processor, or values that make no preprocessing.
    """
    if (kind := values.get("image_processor_type", PROCESSOR)) != PROCESSOR:
        raise ValueError(f"{PREPROCESSOR} is of a {kind}, not of a {PROCESSOR}")
    missing = [name for name in ("size", "image_mean", "image_std") if name not in values]
    if missing:
        raise ValueError(f"{PREPROCESSOR} lacks {', '.join(missing)}")
    names = {number: name for name, number in _RESAMPLE.items()}
    resample = int(values.get("resample", _RESAMPLE["bicubic"]))
    if resample not in names:
        raise ValueError(f"resample must be one of {', '.join(f'{n} ({name})' for n, name in names.items())}")
    return Preprocessing(
        size=_height_width(values["size"]),
        crop=values.get("crop", 1.0),
        fit=values.get("fit", "crop"),
        interpolation=names[resample],  # type: ignore[bad-argument-type]
        mean=tuple(values["image_mean"]),
        std=tuple(values["image_std"]),
    )


def auto_map() -> dict[str, str]:
    """Where transformers finds each class with `trust_remote_code`."""
    return {auto: f"{CODE.removesuffix('.py')}.{name}" for auto, name in AUTO_MAP.items()}


def write_code(folder: Path) -> None:
    """Write the file that `auto_map` names; it only imports davit."""
    write_text(folder / CODE, CODE_TEXT)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0], size[1]
    if isinstance(size, Mapping) and {key for key, value in size.items() if value is not None} == {"height", "width"}:
        return size["height"], size["width"]
    raise ValueError(f"size must be a number, a height and a width, or {{'height': ..., 'width': ...}}, got {size}")


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
    if (folder / TENSORS).is_file() or not (folder / INDEX).is_file():
        if not (folder / TENSORS).is_file():
            raise CheckpointError(f"{folder}: holds no {TENSORS}")
        return read_content(folder / TENSORS).tensors
    try:
        places = dict(_read_json(folder / INDEX)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: {INDEX} makes no sense ({error})") from error
    parts = sorted(set(map(str, places.values())))
    strange = [part for part in parts if Path(part).name != part]
    if strange:
        raise CheckpointError(f"{folder}: {INDEX} names {strange[0]}, which is not beside it")
    tensors = {name: tensor for part in parts for name, tensor in read_content(folder / part).tensors.items()}
    if set(tensors) != set(places):
        raise CheckpointError(f"{folder}: the parts do not hold the tensors that {INDEX} lists; get the folder anew")
    return tensors
