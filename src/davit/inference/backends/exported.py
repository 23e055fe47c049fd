"""What exported files have in common, whatever their format and engine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davit.inference.backends.protocol import Config, Kind
from davit.models.clip_config import ImageTextConfig
from davit.models.config import DaViTConfig
from davit.models.detections import DetectorOutput
from davit.preprocessing import Preprocessing
from davit.records import from_json, to_json
from davit.weights.checkpoint import CONFIGS, CheckpointError, Header

VERSION = "1"

_KINDS: dict[str, Kind] = {
    "classifier": "classification",
    "detector": "detection",
    "segmenter": "segmentation",
}


class ExportedModel(Protocol):
    """An exported file of any kind of model, ready to run.

    Attributes:
        path: the file.
        header: what it says about itself.
    """

    path: Path
    header: Header

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def __call__(self, images: Tensor) -> list[Tensor]:  # (B, C, H, W)
        """Return the outputs in order, on the CPU: logits, or what makes up detections, or maps.

        Raises:
            ValueError: images of another number of channels or dimensions.
        """
        ...


class ExportedBackend:
    """An exported file in the place of a model.

    Attributes:
        config: the architecture that it was made from.
        device: where it computes.
        kind: what the model does.
        preprocessing: the model's.
        classes: the model's; empty where it names none.
    """

    def __init__(self, model: ExportedModel) -> None:
        """Put a file behind the face of a backend.

        Raises:
            ValueError: a backbone without a head or a model without preprocessing.
        """
        self._model = model
        header = model.header
        if header.kind not in _KINDS:
            raise ValueError(
                f"{model.path} is a backbone without a head; it gives features, not classes, boxes or masks"
            )
        if header.preprocessing is None:
            raise ValueError(f"{model.path} does not say how images are prepared for it; export a model that does")
        self.kind: Kind = _KINDS[header.kind]
        assert not isinstance(header.config, DaViTConfig | ImageTextConfig)
        self.config: Config = header.config
        self.device = model.device
        self.preprocessing: Preprocessing = header.preprocessing
        self.classes = header.classes

    def __call__(self, images: Tensor) -> Any:  # (B, C, H, W)
        """Return the outputs on the device of the images; see `Backend`."""
        outputs = [output.to(images.device) for output in self._model(images)]
        return read_outputs(self._model.header.kind, outputs)


def read_outputs(kind: str, outputs: Sequence[Tensor]) -> Any:
    """What a model of that kind returns: logits, four maps, or the objects of each image.

    In the file those of all images follow each other: boxes, scores, indices, counts by image, and perhaps masks.
    """
    if kind != "detector":
        return outputs[0] if kind in _KINDS else list(outputs)
    boxes, scores, indices, counts, *masks = outputs
    parts = [part.split(counts.tolist()) for part in (boxes, scores, indices, *masks)]
    return [DetectorOutput(*of_image) for of_image in zip(*parts, strict=True)]


def as_array(images: Tensor, model: ExportedModel) -> NDArray[np.float32]:
    """Images as engines outside PyTorch take them.

    Raises:
        ValueError: images of another number of channels or dimensions.
    """
    return check_images(images, model).detach().float().cpu().contiguous().numpy()


def check_images(images: Tensor, model: ExportedModel) -> Tensor:
    """Refuse what the model was not made for.

    Raises:
        ValueError: images of another number of channels or dimensions.
    """
    channels = model.header.backbone.in_channels
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"{model.path} takes images (B, {channels}, H, W), got {tuple(images.shape)}")
    return images


def to_metadata(header: Header) -> dict[str, str]:
    """Return what goes into a file: kind, config, preprocessing, class names, provenance."""
    return {
        "davit_version": VERSION,
        "kind": header.kind,
        "config": json.dumps(to_json(header.config)),
        "preprocessing": json.dumps(to_json(header.preprocessing) if header.preprocessing else None),
        "classes": json.dumps(list(header.classes), ensure_ascii=False),
        "provenance": json.dumps(header.provenance, ensure_ascii=False, sort_keys=True),
    }


def from_metadata(path: Path, metadata: Mapping[str, str]) -> Header:
    """Undo `to_metadata`.

    Raises:
        CheckpointError: no file of ours, of a newer version, or one that makes no sense.
    """
    version = metadata.get("davit_version")
    if version is None:
        raise CheckpointError(
            f"{path}: not written by `davit export`: it does not say how images are prepared for it and what its "
            "outputs mean"
        )
    if version != VERSION:
        raise CheckpointError(f"{path}: written by a newer davit (format {version}, known is {VERSION}); upgrade davit")
    try:
        kind = metadata["kind"]
        preprocessing = json.loads(metadata["preprocessing"])
        return Header(
            kind=kind,  # type: ignore[bad-argument-type]  # Header refuses other words
            config=from_json(CONFIGS[kind], json.loads(metadata["config"])),
            preprocessing=from_json(Preprocessing, preprocessing) if preprocessing else None,
            classes=tuple(json.loads(metadata["classes"])),
            provenance=json.loads(metadata["provenance"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its metadata make no sense: {error}") from error
