"""The backend that a file asks for."""

from pathlib import Path

import torch

from davit.inference.backends.eager import EagerBackend
from davit.inference.backends.onnx_header import is_onnx
from davit.inference.backends.protocol import Backend
from davit.models.create import Model
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.weights.load import load


def open_backend(
    source: str | Path,
    *,
    variant: str | None = None,
    device: str | torch.device | None = None,
) -> Backend:
    """Open a file of `davit export` by its engine, and weights as the model itself.

    Args:
        source: a file of `davit export`, or what `davit.load` takes.
        variant: the architecture, for weights that leave it open.
        device: where to compute; None takes the graphics card if there is one.

    Raises:
        ValueError: unknown, damaged or unusable weights, or a backbone without a head.
        OSError: the file cannot be read.
    """
    if is_onnx(source):
        from davit.inference.backends.onnx_runtime import OnnxBackend

        if variant is not None:
            raise ValueError(f"{source} says itself what it is; leave the variant out")
        return OnnxBackend(source, device=device)
    return EagerBackend(load_with_head(source, variant), device)


def load_with_head(source: str | Path, variant: str | None = None) -> Model:
    """Load weights that give answers.

    Raises:
        ValueError: as `davit.load`, or a backbone without a head.
        OSError: the file cannot be read.
    """
    model = load(source, variant=variant)
    if isinstance(model, (DaViT, DenseBackbone)):
        raise ValueError(f"{source} is a backbone without a head; it gives features, not classes, boxes or masks")
    return model
