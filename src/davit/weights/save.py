"""A model to a checkpoint."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davit import __version__
from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.models.config import DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.detector import Detector
from davit.models.upernet import Segmenter
from davit.weights.checkpoint import Header, Kind, write_checkpoint
from davit.weights.convert.infer import without_training
from davit.weights.load import LoadedModel


def save(
    model: LoadedModel,
    path: str | Path,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a model into one self-describing safetensors file, atomically.

    The file holds the tensors, `model.config` (without drop path and gradient checkpointing, which only concern
    training), `model.preprocessing` and `model.classes`.

    Args:
        model: what to save.
        path: a name that ends in `.safetensors`.
        provenance: where the weights come from: source, licence, score, command; any JSON values.

    Raises:
        ValueError: another kind of model or ending, or class names that do not fit.
        OSError: the disk is full or refuses; a file that was there stays.
    """
    write_checkpoint(path, header_of(model, provenance or {}), model.state_dict())


def header_of(model: LoadedModel, provenance: Mapping[str, Any]) -> Header:
    """What a checkpoint of this model says about it."""
    kinds: dict[type, Kind] = {
        Classifier: "classifier",
        DaViT: "backbone",
        DenseBackbone: "dense",
        Detector: "detector",
        Segmenter: "segmenter",
        ImageTextModel: "image_text",
    }
    kind = kinds.get(type(model))
    if kind is None:
        raise ValueError(
            f"a checkpoint holds a {', '.join(known.__name__ for known in kinds)}, got {type(model).__name__}; "
            "take the model out of its wrapper (._orig_mod of torch.compile, .module of data parallelism)"
        )
    config = model.config
    return Header(
        kind=kind,
        config=without_training(config)
        if isinstance(config, DaViTConfig)
        else dataclasses.replace(config, backbone=without_training(config.backbone)),
        preprocessing=model.preprocessing,
        classes=() if isinstance(model, (DaViT, DenseBackbone)) else tuple(model.classes),
        provenance={"davit": __version__, **provenance},
    )
