"""A model made fast on this machine: the same call, the same outputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from davit.inference.backends import BackendName
from davit.inference.backends.choosing import NAMES, Choice, add_native, choose
from davit.inference.backends.native.backend import with_native_backbone
from davit.inference.backends.native.engine import NativeEngine
from davit.models.classifier import Classifier
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.naming import unknown_name
from davit.records import to_json


class Optimized:
    """A model's forward, without gradients, by the backend that was asked for or found fastest.

    Attributes:
        choice: which backend and why; None until the first call of "auto".
    """

    def __init__(self, model: nn.Module, backend: BackendName, threads: int | None) -> None:
        """Prepare; see `optimize`."""
        self.choice: Choice | None = None
        self._model, self._threads = model, threads
        self._candidates: dict[str, Callable[..., Any]] = {}
        self._missing = ""
        if backend != "native":
            self._candidates["eager"] = _eager(model)
        if backend == "native":
            self._candidates["native"] = _native(model, threads)
        elif backend == "auto" and _on_cpu(model):
            self._missing = add_native(self._candidates, lambda: _native(model, threads))
        if len(self._candidates) == 1:
            (name,) = self._candidates
            reason = self._missing or ("as asked for" if backend != "auto" else "the model is not on the CPU")
            self.choice = Choice(backend=name, seconds={}, reason=f"computing with {name}: {reason}")

    def __call__(self, images: Tensor, *others: Any, **named: Any) -> Any:
        """Return what the model returns."""
        if self.choice is None:
            about = (type(self._model).__name__, to_json(self._model.config), self._threads)
            self.choice = choose(self._candidates, images, about, self._missing)
        return self._candidates[self.choice.backend](images, *others, **named)

    def __repr__(self) -> str:
        """Tell what computes and why."""
        return f"Optimized({self.choice.reason if self.choice else 'not called yet'})"


def optimize(model: nn.Module, backend: BackendName = "auto", *, threads: int | None = None) -> Optimized:
    """Make a model fast for inference.

    The engine takes the weights as they are now: change the model afterwards, and optimize it again.

    Args:
        model: a classifier, backbone, detector or segmenter; it is put into evaluation mode.
        backend: "native" is the engine for CPUs, "eager" PyTorch, "auto" the faster of the two, measured on the first
            batch and remembered on this machine.
        threads: of the engine; None takes as many as PyTorch.

    Returns:
        A callable with the model's inputs and outputs, which says in `.choice` what computes and why.

    Raises:
        ValueError: an unknown backend; for "native" also an architecture that it does not know, or no compiler.
    """
    if backend not in NAMES:
        raise unknown_name("backend", backend, NAMES)
    return Optimized(model.eval(), backend, threads)


def _eager(model: nn.Module) -> Callable[..., Any]:
    def run(*inputs: Any, **named: Any) -> Any:
        with torch.inference_mode():
            return model(*inputs, **named)

    return run


def _native(model: nn.Module, threads: int | None) -> Callable[..., Any]:
    if isinstance(model, (Classifier, DaViT, DenseBackbone)):
        return NativeEngine(model, threads)
    return _eager(with_native_backbone(model, threads))


def _on_cpu(model: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in model.parameters())
