"""What Hugging Face's transformers keeps of a model: names of tensors, `config.json`, `preprocessor_config.json`.

Every field of `DaViTConfig` and of `Preprocessing` is there; tensors have our names, a backbone's below `backbone.`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from davit.models.config import ClassifierConfig, DaViTConfig
from davit.naming import unknown_name
from davit.preprocessing import Preprocessing
from davit.records import from_json, to_json
from davit.weights.checkpoint import Header
from davit.weights.convert.rename import StateDict

MODEL_TYPE = "davit"
CONFIG, PREPROCESSOR, CODE = "config.json", "preprocessor_config.json", "davit_classes.py"
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
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers, which transformers saves
_UNNAMED = "LABEL_{}"  # what transformers calls a class without a name


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


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0], size[1]
    if isinstance(size, Mapping) and {key for key, value in size.items() if value is not None} == {"height", "width"}:
        return size["height"], size["width"]
    raise ValueError(f"size must be a number, a height and a width, or {{'height': ..., 'width': ...}}, got {size}")
