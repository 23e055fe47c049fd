"""The one loop that scores anything: models, backends, exported files."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from davit.structures import Batch

T = TypeVar("T")


class Metric(Protocol):
    """What adds up results."""

    def update(self, results: Any, targets: Any, /) -> None:
        """Count the results of a batch."""
        ...

    def compute(self) -> dict[str, float]:
        """Return the scores of all that was counted."""
        ...


class Exchange(Protocol):
    """What processes tell one another when they score together."""

    def sum(self, values: Tensor, /) -> Tensor:
        """Add a CPU tensor up over all processes, in place."""
        ...

    def gather(self, value: T, /) -> list[T]:
        """What each process gave, by rank."""
        ...


def evaluate(model: Callable[..., Any], batches: Iterable[Batch], metric: Metric) -> dict[str, float]:
    """Score a model, or a backend, on batches of images and targets.

    A model computes on its own device, in evaluation mode and without gradients; the mode it was in is restored.
    """
    # Not inference mode: a sharded model that is first used in it could never be trained.
    with _evaluating(model) as device, torch.no_grad():
        for batch in batches:
            inputs = [batch.images] if batch.texts is None else [batch.images, batch.texts]
            metric.update(model(*inputs if device is None else (part.to(device) for part in inputs)), batch.targets)
    return metric.compute()


@contextmanager
def _evaluating(model: Callable[..., Any]) -> Generator[torch.device | None]:
    """Yield the device of the model, None for what looks after that itself."""
    if not isinstance(model, nn.Module):
        yield None
        return
    modes = [(module, module.training) for module in model.modules()]  # parts may be frozen in evaluation mode
    parameter = next(model.parameters(), None)
    model.eval()
    try:
        yield None if parameter is None else parameter.device
    finally:
        for module, training in modes:
            module.training = training
