"""Exponential moving average of the weights, shard by shard where they are sharded."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from davit.train.parallel import local


class Average:
    """The average of a model's parameters, and of the running statistics of its batch norms.

    The first steps count more, min(decay, (1 + n) / (10 + n)), so that short runs do not keep their random start.

    Attributes:
        tensors: the averages by name; sharded as the parameters are.
        updates: how many steps they hold.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the weights of `model`, which is followed from then on."""
        saved = model.state_dict().keys()
        buffers = {name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()}
        followed = dict(model.named_parameters()) | buffers
        self.parameters = [local(tensor.detach()) for tensor in followed.values()]
        self.tensors: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in followed.items()}
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Count a step."""
        n = self.updates
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(self._averages, self.parameters, weight)
        self.updates = n + 1

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Put the averages into the model inside, and the weights back to the bit afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self._averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    @property
    def _averages(self) -> list[Tensor]:
        return [local(tensor) for tensor in self.tensors.values()]
