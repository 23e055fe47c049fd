"""The backend that a file asks for."""

from collections.abc import Callable
from pathlib import Path

import torch

from davit.inference.backends import BackendName
from davit.inference.backends.choosing import make_backend
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
    backend: BackendName = "eager",
    tell: Callable[[str], None] | None = None,
) -> Backend:
    """Open a file of `davit export` by its engine, and weights by a backend.

    Args:
        source: a file of `davit export`, or what `davit.load` takes.
        variant: the architecture, for weights that leave it open.
        device: where to compute; None takes the graphics card if there is one.
        backend: what computes weights, see `make_backend`.
        tell: called with one line once "auto" has chosen.

    Raises:
        ValueError: unknown, damaged or unusable weights, a backbone without a head, or a backend that cannot be had.
        OSError: the file cannot be read.
    """
    if is_onnx(source):
        from davit.inference.backends.onnx_runtime import OnnxBackend

        if variant is not None:
            raise ValueError(f"{source} says itself what it is; leave the variant out")
        if backend == "native":
            raise ValueError(f"{source} is computed by ONNX Runtime; the native backend takes a checkpoint")
        return OnnxBackend(source, device=device)
    return make_backend(load_with_head(source, variant), backend, device, tell=tell)


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
