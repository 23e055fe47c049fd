"""Our models to those of transformers, and back."""

from pathlib import Path
from typing import NamedTuple

import torch

from davit.huggingface.configuration import DaViTPretrainedConfig
from davit.huggingface.image_processor import DaViTImageProcessor
from davit.huggingface.models import DaViTBackbone, DaViTForImageClassification, DaViTPreTrainedModel
from davit.models.classifier import Classifier
from davit.models.davit import DaViT
from davit.weights.checkpoint import Header
from davit.weights.convert.huggingface import to_config, to_theirs
from davit.weights.load import LoadedModel, Weights, build, read
from davit.weights.save import header_of


class Converted(NamedTuple):
    """A model of transformers and what prepares pictures for it.

    Attributes:
        model: in evaluation mode and float32.
        processor: None where the weights do not say how pictures are prepared.
    """

    model: DaViTPreTrainedModel
    processor: DaViTImageProcessor | None


def from_davit(
    source: LoadedModel | str | Path,
    model_class: type[DaViTPreTrainedModel] | None = None,
    *,
    variant: str | None = None,
) -> Converted:
    """Make a model of transformers; its weights are copies.

    Args:
        source: a model of ours, or whatever `davit.load` takes: a file, a folder, a name of `davit models`.
        model_class: `DaViTForImageClassification` (of a classifier, by default), `DaViTModel` or `DaViTBackbone` (of a
            backbone, by default).
        variant: the architecture, for files that leave it open.

    Raises:
        ValueError: a model that transformers has no class for, or a class that the model has no head for.
        OSError: the file cannot be read or downloaded.
    """
    weights = _weights(source) if isinstance(source, torch.nn.Module) else read(source, variant=variant)
    theirs = to_theirs(weights.header, weights.tensors)
    classifier = weights.header.kind == "classifier"
    chosen = model_class or (DaViTForImageClassification if classifier else DaViTBackbone)
    if issubclass(chosen, DaViTForImageClassification) and not classifier:
        raise ValueError("these weights have no classifier head: take DaViTModel or DaViTBackbone")
    values = {key: value for key, value in to_config(weights.header).items() if key != "architectures"}
    with torch.device("meta"):  # no memory and no initialisation: the tensors take these places
        model = chosen(DaViTPretrainedConfig(**values))
    wanted = set(model.state_dict())
    tensors = {name: tensor.float().clone() for name, tensor in theirs.items() if name in wanted}
    model.load_state_dict(tensors, strict=True, assign=True)
    preprocessing = weights.header.preprocessing
    return Converted(model.eval(), DaViTImageProcessor.from_davit(preprocessing) if preprocessing else None)


def to_davit(model: DaViTPreTrainedModel, processor: DaViTImageProcessor | None = None) -> Classifier | DaViT:
    """Make a model of ours, in evaluation mode and float32; its weights are copies.

    Args:
        model: a `DaViTForImageClassification` becomes a classifier, any other the backbone.
        processor: what becomes `.preprocessing`.
    """
    header = model.header(processor.preprocessing if processor else None)
    tensors = model.state_dict() if header.kind == "classifier" else model.backbone.state_dict()
    ours = build(Weights(header=header, tensors=dict(tensors), format="hf"))
    assert isinstance(ours, Classifier | DaViT)
    return ours


def _weights(model: LoadedModel) -> Weights:
    """A model's weights, with the fields that only concern training, which checkpoints leave out."""
    saved = header_of(model, {})
    header = Header(
        kind=saved.kind,
        config=model.config,
        preprocessing=saved.preprocessing,
        classes=saved.classes,
    )
    return Weights(header=header, tensors=dict(model.state_dict()), format="davit")
