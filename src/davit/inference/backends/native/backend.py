"""The engine in the place of a model: whole classifiers, and the backbones of detectors and segmenters."""

import copy

from torch import Tensor, nn

from davit.inference.backends.eager import EagerBackend
from davit.inference.backends.native.engine import NativeEngine
from davit.models.classifier import Classifier
from davit.models.davit import DaViT


class NativeBackend(EagerBackend):
    """A model computed on the CPU by the engine; the heads of detectors and segmenters stay PyTorch."""

    def __init__(self, model: nn.Module, threads: int | None = None) -> None:
        """Pack the weights of a model, which is moved to the CPU and into evaluation mode.

        Args:
            model: a classifier, detector or segmenter, with its `config`, `preprocessing` and `classes`.
            threads: of each call; None takes as many as PyTorch.

        Raises:
            NativeError: the engine cannot be compiled here.
            ValueError: an architecture that the engine does not know, or a model without preprocessing.
        """
        super().__init__(model, "cpu")
        native = isinstance(model, Classifier)
        self._compute = NativeEngine(model, threads) if native else with_native_backbone(model, threads)


class _NativeBackbone(nn.Module):
    """An engine that a model takes for its backbone."""

    def __init__(self, engine: NativeEngine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        return self.engine(images)


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
