"""The engine in the place of a model: whole classifiers, and the backbones of detectors and segmenters."""

import copy

from torch import Tensor, nn

from davit.inference.backends.eager import EagerBackend
from davit.inference.backends.native.engine import NativeEngine
from davit.inference.backends.native.quantization import Quantization
from davit.models.classifier import Classifier
from davit.models.davit import DaViT


class NativeBackend(EagerBackend):
    """A model computed on the CPU by the engine; the heads of detectors and segmenters stay PyTorch.

    Attributes:
        quantization: what is computed in int8; None where all is float32.
    """

    def __init__(self, model: nn.Module, threads: int | None = None, quantization: Quantization | None = None) -> None:
        """Pack the weights of a model, which is moved to the CPU and into evaluation mode.

        Args:
            model: a classifier, detector or segmenter, with its `config`, `preprocessing` and `classes`.
            threads: of each call; None takes as many as PyTorch.
            quantization: which layers are int8; None for none.

        Raises:
            NativeError: the engine cannot be compiled here.
            ValueError: an architecture that the engine does not know, or a model without preprocessing.
        """
        super().__init__(model, "cpu")
        part = model if isinstance(model, Classifier) else _backbone(model)
        self._compute = with_engine(model, NativeEngine(part, threads, quantization))
        self.quantization = quantization

    @classmethod
    def of_engine(cls, model: nn.Module, engine: NativeEngine, quantization: Quantization | None) -> "NativeBackend":
        """Take an engine for all that it computes of a model, whose weights need not be there.

        Raises:
            ValueError: a model without preprocessing.
        """
        backend = cls.__new__(cls)
        EagerBackend.__init__(backend, with_engine(model, engine), "cpu")
        backend.quantization = quantization
        return backend


class _NativePart(nn.Module):
    """An engine that a model takes for its backbone, or that stands for a whole classifier."""

    def __init__(self, engine: NativeEngine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        return self.engine(images)


def with_engine(model: nn.Module, engine: NativeEngine) -> nn.Module:
    """A classifier that is the engine; a detector or segmenter that shares its head and has it for its backbone."""
    part = _NativePart(engine)
    if not isinstance(model, Classifier):
        twin = copy.copy(model)
        twin._modules = {**model._modules, "backbone": part}
        return twin
    for name in ("config", "preprocessing", "classes"):
        setattr(part, name, getattr(model, name))
    return part.eval()


def with_native_backbone(
    model: nn.Module, threads: int | None = None, quantization: Quantization | None = None
) -> nn.Module:
    """A detector or segmenter that shares its head with `model` and has the engine for its backbone.

    Raises:
        ValueError: a model without a backbone.
    """
    return with_engine(model, NativeEngine(_backbone(model), threads, quantization))


def _backbone(model: nn.Module) -> DaViT:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, DaViT):
        raise ValueError(
            f"{type(model).__name__} is no classifier, detector or segmenter; the native engine has no part in it"
        )
    return backbone
