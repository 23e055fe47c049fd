"""The engine in the place of a model: whole classifiers, and the backbones of detectors and segmenters."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from davit.inference.backends.eager import EagerBackend
from davit.inference.backends.native.build import NativeError
from davit.inference.backends.native.engine import NativeEngine
from davit.inference.backends.protocol import Backend, Config, Kind
from davit.models.classifier import Classifier
from davit.models.davit import DaViT
from davit.preprocessing import Preprocessing


class NativeBackend:
    """A model computed on the CPU by the engine; the heads of detectors and segmenters stay PyTorch.

    Attributes:
        config: the model's.
        device: the CPU.
        kind: what the model does.
        preprocessing: the model's.
        classes: the model's; empty where it names none.
    """

    def __init__(self, model: nn.Module, threads: int | None = None) -> None:
        """Pack the weights of a model, which is moved to the CPU and into evaluation mode.

        Args:
            model: a classifier, detector or segmenter, with its `config`, `preprocessing` and `classes`.
            threads: of each call; None takes as many as PyTorch.

        Raises:
            NativeError: the engine cannot be compiled here.
            ValueError: an architecture that the engine does not know, or a model without preprocessing.
        """
        eager = EagerBackend(model, "cpu")
        self.config: Config = eager.config
        self.kind: Kind = eager.kind
        self.preprocessing: Preprocessing = eager.preprocessing
        self.classes = eager.classes
        self.device = eager.device
        self._run = NativeEngine(model, threads) if isinstance(model, Classifier) else hybrid(model, threads)

    def __call__(self, images: Tensor) -> Any:  # (B, C, H, W)
        """Return the outputs on the device of the images; see `Backend`."""
        outputs = self._run(images.detach().to("cpu", torch.float32))
        if isinstance(outputs, Tensor):
            return outputs.to(images.device)
        return [output.to(images.device) for output in outputs]


class _NativeBackbone(nn.Module):
    """An engine that a model takes for its backbone."""

    def __init__(self, engine: NativeEngine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        return self.engine(images)


def hybrid(model: nn.Module, threads: int | None = None) -> EagerBackend:
    """A detector or segmenter with the engine under its head; `model` itself keeps its backbone.

    Raises:
        ValueError: a model without a backbone and preprocessing.
    """
    return EagerBackend(with_native_backbone(model, threads), "cpu")


def with_native_backbone(model: nn.Module, threads: int | None = None) -> nn.Module:
    """A detector or segmenter that shares its head with `model` and has the engine for its backbone.

    Raises:
        ValueError: a model without a backbone.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, DaViT):
        raise ValueError(
            f"{type(model).__name__} is no classifier, detector or segmenter; the native engine has no part in it"
        )
    twin = copy.copy(model)
    twin._modules = {**model._modules, "backbone": _NativeBackbone(NativeEngine(backbone, threads))}
    return twin


def native_or_eager(model: nn.Module, threads: int | None = None) -> Backend:
    """Compute by the engine, or where it cannot be had on this machine by PyTorch, with a warning that says why.

    Raises:
        ValueError: an architecture that the engine does not know, or a model without preprocessing.
    """
    try:
        return NativeBackend(model, threads)
    except NativeError as error:
        warnings.warn(f"{error}. Computing with PyTorch instead", UserWarning, stacklevel=2)
        return EagerBackend(model, "cpu")
