"""Running statistics of batch norms: the same on all processes, and untouched by a step that is skipped."""

import torch
from torch import Tensor, nn

from davit.train.distributed import World


class Statistics:
    """The buffers of a model that training changes in its forward pass.

    Each process norms by its own part of a batch, as the official segmentation does; what it remembers of that is
    averaged over the processes after each step.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        """Follow the buffers that a model saves."""
        saved = model.state_dict().keys()
        self.buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
        self.world = world
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember them as they are before a step."""
        self._kept = [buffer.clone() for buffer in self.buffers]

    def restore(self) -> None:
        """Undo what the forward passes since then did."""
        for buffer, kept in zip(self.buffers, self._kept, strict=True):
            buffer.copy_(kept)

    def share(self) -> None:
        """Average them over all processes."""
        changing = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        if self.world.size == 1 or not changing:
            return
        together = self.world.sum(torch.cat([buffer.flatten() for buffer in changing])) / self.world.size
        parts = together.split([buffer.numel() for buffer in changing])
        for buffer, part in zip(changing, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
