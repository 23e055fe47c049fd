"""What a recipe was built into: where batches come from, how a model is scored and saved."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from davit.evaluation.evaluate import Exchange
from davit.structures import Batch


class Metric(Protocol):
    """What adds up results over batches, and its counters over processes."""

    def update(self, results: Any, targets: Any, /) -> None:
        """Count a batch."""
        ...

    def merge(self, exchange: Exchange, /) -> None:
        """Put together what all processes counted; every process calls it."""
        ...

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the recipe was built into.

    Attributes:
        samples: training samples in an epoch.
        batch_size: samples in a step, over all processes.
        batches: makes this process's micro-batches of the steps given.
        validation: this process's share of the validation batches.
        validation_count: batches of the largest share.
        blank: a batch of one empty image, for a process whose share is smaller.
        metric: makes a fresh metric.
        save_model: writes the weights file of a whole state, with its scores; on the first process.
        score: key of the metric that chooses the best model.
    """

    samples: int
    batch_size: int
    batches: Callable[[range], DataLoader[Batch]]
    validation: Callable[[], Iterator[Batch]]
    validation_count: int
    blank: Tensor
    metric: Callable[[], Metric]
    save_model: Callable[[dict[str, Tensor], Path, dict[str, float]], None]
    score: str

    def epochs(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step * self.batch_size / self.samples
