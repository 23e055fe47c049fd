"""What a predictor needs of whatever computes a model's forward."""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from davit.models.config import ClassifierConfig, EmbedderConfig
from davit.models.detector_config import DetectorConfig
from davit.models.segmenter_config import SegmenterConfig
from davit.preprocessing import Preprocessing

Kind = Literal["classification", "detection", "segmentation", "embedding"]
Config = ClassifierConfig | DetectorConfig | SegmenterConfig | EmbedderConfig


class Backend(Protocol):
    """A model's forward, however computed: equal to the model's within a stated tolerance.

    Attributes:
        config: the architecture, with the number of classes where there are any.
        kind: what the model does, and so what its outputs are.
        preprocessing: what images go through before.
        classes: a name for each class; empty where unknown.
    """

    config: Config
    kind: Kind
    preprocessing: Preprocessing
    classes: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where it computes; images may come from any device."""
        ...

    def __call__(self, images: Tensor) -> Any:  # (B, C, H, W)
        """Return the outputs on the device of the images.

        Classification: logits, (B, classes). Detection: a `DetectorOutput` for each image. Segmentation: logits,
        (B, classes, ceil(H / 4), ceil(W / 4)). Embedding: vectors, (B, embedding).
        """
        ...
