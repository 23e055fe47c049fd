"""Multiply-adds of any model, counted operator by operator."""

import torch
from torch import nn


def count_by_torch(model: nn.Module, channels: int, height: int, width: int) -> int:
    """Multiply-adds of one image through a model on the meta device, as torch.utils.flop_counter counts them.

    It counts matrix products and convolutions, those inside scaled dot-product attention too, and leaves out norms,
    softmax, activations and additions; its two operations of a multiply-add are one here.
    """
    from torch.utils.flop_counter import FlopCounterMode  # its imports would be in what `memory.watch` finds

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, channels, height, width, device="meta"))
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Parameters, each once."""
    return sum(parameter.numel() for parameter in model.parameters())
