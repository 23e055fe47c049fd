"""Scoring a model on all processes together."""

from collections.abc import Generator, Iterator
from typing import Any

from torch import nn

from davit.evaluation.evaluate import evaluate
from davit.structures import Batch
from davit.train.distributed import World
from davit.train.plan import Metric, Plan
from davit.train.stop import StopRequest, TrainingStoppedError


def score(model: nn.Module, plan: Plan, world: World, stop: StopRequest) -> tuple[dict[str, float], Metric]:
    """Score a model; each process takes its share of the validation batches, and their counts are put together.

    Raises:
        TrainingStoppedError: SIGTERM or SIGINT came meanwhile, to any process.
    """
    metric = plan.metric()
    evaluate(model, _together(model, plan, world, stop), _Counting(metric))
    metric.merge(world)
    return world.once(metric.compute), metric


def _together(model: nn.Module, plan: Plan, world: World, stop: StopRequest) -> Generator[Batch]:
    """Hand on this process's batches; all take part in as many forward passes, for the shards of a model must meet."""
    batches: Iterator[Batch] = plan.validation()
    for _ in range(plan.validation_count):
        if world.any(stop.requested):
            raise TrainingStoppedError("stopped while evaluating; run the same command to go on")
        batch = next(batches, None)
        if batch is None:
            model(plan.blank.to(world.device))
        else:
            yield batch


class _Counting:
    """A metric whose scores wait until the counts of all processes are put together."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def update(self, results: Any, targets: Any, /) -> None:
        self.metric.update(results, targets)

    def compute(self) -> dict[str, float]:
        return {}
