"""Weights of any source to a model: our file, someone else's, a folder, or a name of the catalogue."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.create import make_model
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.detector import Detector
from davit.models.upernet import Segmenter
from davit.models.variants import IMAGE_SIZES, VARIANTS
from davit.naming import unknown_name
from davit.preprocessing import Preprocessing
from davit.weights.catalog import WEIGHTS, WeightEntry, class_names
from davit.weights.checkpoint import Header, Kind, is_checkpoint, read_checkpoint
from davit.weights.convert.heads import head_classes, official_preprocessing, whole_config
from davit.weights.convert.infer import choose, read_shapes, without_training
from davit.weights.convert.recognise import locate
from davit.weights.convert.rename import StateDict, describe
from davit.weights.download import download
from davit.weights.huggingface_folder import is_folder, read_folder
from davit.weights.source import SUFFIXES, find_file, read_content

LoadedModel = Classifier | Detector | Segmenter | ImageTextModel | DaViT | DenseBackbone


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors in our spelling, in the precision of their file, with what is known about them.

    Attributes:
        header: kind, config, preprocessing, classes, provenance.
        tensors: by our names.
        format: the format they were in; `davit` is ours.
        left: names of other tensors in the file, which were not read.
    """

    header: Header
    tensors: dict[str, Tensor]
    format: str
    left: tuple[str, ...] = ()


def load(source: str | Path, *, variant: str | None = None, **fields: Any) -> LoadedModel:
    """Load a model, in evaluation mode and float32, with its `config`, `preprocessing` and `classes`.

    Args:
        source: a checkpoint of ours, a file in a format of docs/weights.md, a folder with one such file or of
            transformers, or a name of `davit models`.
        variant: the architecture, for files that leave it open.
        **fields: fields of `DaViTConfig`: what the file leaves open (`window`, `channel_scale`), or settings for
            training (`drop_path`, `gradient_checkpointing`).

    Raises:
        ValueError: a damaged or unknown file, or one that does not fit the architecture; it says which and what to do.
        OSError: the file cannot be read or downloaded.
    """
    return build(read(source, variant=variant, **fields))


def read(source: str | Path, *, variant: str | None = None, **fields: Any) -> Weights:
    """Read weights without building a model; see `load`."""
    entry = WEIGHTS.get(str(source))
    if entry is not None:
        return _read_entry(entry, variant, fields)
    if not Path(source).exists():
        raise _not_there(str(source))
    if is_folder(Path(source)):
        content = read_folder(Path(source))
        weights = Weights(header=content.header, tensors=content.tensors, format="hf", left=content.left)
        return _adjusted(weights, Path(source), variant, fields)
    path = find_file(source)
    if is_checkpoint(path):
        header, tensors = read_checkpoint(path)
        return _adjusted(Weights(header=header, tensors=tensors, format="davit"), path, variant, fields)
    return read_foreign(path, variant, fields)


def read_foreign(path: Path, variant: str | None, fields: Mapping[str, Any]) -> Weights:
    """Read a file in someone else's format."""
    try:
        content = read_content(path)
        found = locate(content.tensors)
        tensors = found.format.to_ours(found.tensors)
        shapes = read_shapes(tensors)
        # X-Decoder shares format and shapes with Florence-2, but not the window; it alone calls the tower "backbone".
        certain = not (found.format.name == "florence2" and found.prefix.endswith("backbone."))
        config, name = choose(shapes, found.format, variant, fields, certain)
        whole = whole_config(shapes, tensors, config)
        classes = head_classes(whole, content.classes)
        assumed = {"classes": "assumed from their number"} if classes and not content.classes else {}
        header = Header(
            kind=shapes.kind,
            config=whole,
            preprocessing=_usual_preprocessing(shapes.kind, name, config),
            classes=classes,
            provenance={"source": path.name, "format": found.format.name, **assumed},
        )
        check_tensors(header, tensors)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
    return Weights(header=header, tensors=tensors, format=found.format.name, left=found.left)


def build(weights: Weights) -> LoadedModel:
    """Make the model of some weights, in evaluation mode and float32."""
    header = weights.header
    model = _skeleton(header)
    tensors = {
        key: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for key, tensor in weights.tensors.items()
    }
    model.load_state_dict(tensors, strict=True, assign=True)
    model.preprocessing = header.preprocessing
    if isinstance(model, (Classifier, Detector, Segmenter)):
        model.classes = header.classes
    return model.eval()


def check_tensors(header: Header, tensors: StateDict) -> None:
    """Refuse tensors that are not exactly those of the architecture.

    Raises:
        ValueError: missing, unexpected, of a wrong shape, or no floating point numbers.
    """
    wanted = _skeleton(header).state_dict()
    missing = [key for key in wanted if key not in tensors]
    unexpected = [key for key in tensors if key not in wanted]
    if missing or unexpected:
        told = [f"{len(missing)} tensors missing: {describe(missing)}"] if missing else []
        told += [f"{len(unexpected)} unexpected: {describe(unexpected)}"] if unexpected else []
        raise ValueError(f"not the tensors of this architecture (our names): {'; '.join(told)}")
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            shapes = f"{tuple(tensor.shape)}, wanted {tuple(wanted[key].shape)}"
            raise ValueError(f"tensor {key} (our name) has shape {shapes}")
        if tensor.is_floating_point() != wanted[key].is_floating_point():
            kind = "floating point numbers" if wanted[key].is_floating_point() else "whole numbers"
            raise ValueError(f"tensor {key} (our name) has type {tensor.dtype}, wanted {kind}")


def _skeleton(header: Header) -> LoadedModel:
    with torch.device("meta"):  # no memory and no initialisation: the tensors take these places
        match header.config:
            case DaViTConfig():
                return DenseBackbone(header.config) if header.kind == "dense" else DaViT(header.config)
            case config:
                return make_model(config)


def _adjusted(weights: Weights, path: Path, variant: str | None, fields: Mapping[str, Any]) -> Weights:
    """Change what may be changed of weights that say themselves what they are, and check their tensors."""
    header = weights.header
    if variant is not None and not _same(header.backbone, variant):
        raise ValueError(f"{path}: says itself what it is, and that is not {variant}; leave the variant out")
    changed = header.backbone.override(**fields)
    whole = header.config
    whole = changed if isinstance(whole, DaViTConfig) else dataclasses.replace(whole, backbone=changed)
    header = dataclasses.replace(header, config=whole)
    try:
        check_tensors(header, weights.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dataclasses.replace(weights, header=header)


def _same(config: DaViTConfig, variant: str) -> bool:
    if variant not in VARIANTS:
        raise unknown_name("variant", variant, VARIANTS)
    return without_training(config) == VARIANTS[variant].override(in_channels=config.in_channels)


def _read_entry(entry: WeightEntry, variant: str | None, fields: Mapping[str, Any]) -> Weights:
    if variant is not None and variant != entry.variant:
        raise ValueError(f"{entry.name} is a {entry.variant}, not a {variant}; leave the variant out")
    weights = read_foreign(download(entry), entry.variant, fields)
    logits = weights.header.config.num_classes if isinstance(weights.header.config, ClassifierConfig) else None
    if logits != entry.num_classes:
        raise ValueError(f"{entry.name}: the download has {logits} classes, the catalogue says {entry.num_classes}")
    header = dataclasses.replace(
        weights.header,
        preprocessing=entry.preprocessing,
        classes=class_names(entry),
        provenance={**weights.header.provenance, **entry.provenance()},
    )
    return dataclasses.replace(weights, header=header)


def _usual_preprocessing(kind: Kind, name: str | None, config: DaViTConfig) -> Preprocessing:
    if kind in ("detector", "segmenter"):
        return official_preprocessing(kind, config.in_channels)
    size = IMAGE_SIZES[name] if name else 224
    usual = Preprocessing.imagenet(size, config.in_channels)
    florence = name is not None and VARIANTS[name].channel_scale == "tokens"
    return dataclasses.replace(usual, fit="squash", crop=1.0) if florence else usual


def _not_there(source: str) -> Exception:
    looks_like_a_path = "/" in source or "\\" in source or source.endswith(SUFFIXES)
    if looks_like_a_path:
        return FileNotFoundError(f"no file or folder {source}")
    return unknown_name("weights", source, WEIGHTS)
