"""The model itself, operation by operation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from davit.inference.backends.protocol import Config, Kind
from davit.models.clip import ImageTextModel
from davit.models.detector import Detector
from davit.models.upernet import Segmenter, SegmenterOutput
from davit.models.zero_shot import Embedder
from davit.preprocessing import Preprocessing


class EagerBackend:
    """A model in evaluation mode on a device of your choice.

    Attributes:
        config: the model's.
        device: where it computes.
        kind: what the model does.
        preprocessing: the model's.
        classes: the model's; empty where it names none.
    """

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        """Move the model to a device and into evaluation mode.

        Args:
            model: with attributes `config`, `preprocessing` and `classes`, as `davit.load` and `create_model` make it.
            device: None takes the graphics card if there is one, else the CPU.

        Raises:
            ValueError: the model has no preprocessing, gives no results, or the device is not there.
        """
        preprocessing = getattr(model, "preprocessing", None)
        if not isinstance(preprocessing, Preprocessing):
            raise ValueError(
                f"this {type(model).__name__} does not say how images are prepared for it: set its .preprocessing, for "
                "example to davit.preprocessing.Preprocessing.imagenet(224)"
            )
        refuse_image_text(model)
        self.device = choose_device(device)
        self.config: Config = model.config  # type: ignore[bad-assignment]  # modules may have any attribute
        self.preprocessing = preprocessing
        self.classes: tuple[str, ...] = tuple(getattr(model, "classes", ()))
        self.kind: Kind = (
            "detection"
            if isinstance(model, Detector)
            else "segmentation"
            if isinstance(model, Segmenter)
            else "embedding"
            if isinstance(model, Embedder)
            else "classification"
        )
        self._compute: Callable[[Tensor], Any] = model.to(self.device).eval()

    def __call__(self, images: Tensor) -> Any:  # (B, C, H, W)
        """Return the outputs on the device of the images; see `Backend`."""
        with torch.inference_mode():
            outputs = self._compute(images.to(self.device))
        if isinstance(outputs, Tensor):
            return outputs.to(images.device)
        if isinstance(outputs, SegmenterOutput):
            return outputs.logits.to(images.device)
        return [output.to(images.device) for output in outputs]


def refuse_image_text(model: object) -> None:
    """Image-text models give vectors; what is in a picture they name only once they know what to look for.

    Raises:
        ValueError: the model is one.
    """
    if isinstance(model, ImageTextModel):
        raise ValueError(
            "this is an image-text model, which gives vectors and no classes: say what to look for with --labels (from "
            "Python Predictor.load(..., labels=...)), take its vectors with davit embed or embed_images and "
            "embed_texts of davit.load(...), or start a classifier from it, davit train finetune model.init=..."
        )


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device of that name, or for None the best one there is."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device) == "meta":
        raise ValueError("device 'meta' holds no numbers, so nothing can be computed there. Try 'cpu'")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}. Try 'cpu'") from error
    return chosen
