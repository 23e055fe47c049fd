"""Exponential moving average of the weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Copy the model into its average; `update_parameters(model)` after each step moves it.

    The first steps count more, min(decay, (1 + n) / (10 + n)), so that short runs do not keep their random start.
    """

    def move(averages: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=move)  # type: ignore[arg-type]
