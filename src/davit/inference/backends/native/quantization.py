"""Linear layers in int8: which, and their weights as whole numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_CODE = 127


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What the engine computes in int8.

    Weights are whole numbers from -127 to 127 with a scale for each output. Activations are, too, with a scale for each
    token, which is found while computing: so the choice of layers is all there is to keep. `davit.records.to_json` and
    `from_json` store it.

    Attributes:
        layers: names of linear layers and merging convolutions, as the modules are named inside the backbone.
        kept: those that stay float32 because they cost too much accuracy, the worst first.
        errors: of each layer, in the order of `layers` and then `kept`, when it alone is int8: the root mean square
            error of the outputs over their standard deviation.
        error: the same with all `layers` in int8.
        images: how many were measured on.
    """

    layers: tuple[str, ...]
    kept: tuple[str, ...] = ()
    errors: tuple[float, ...] = ()
    error: float = 0.0
    images: int = 0


def code_weights(weight: Tensor) -> tuple[Tensor, Tensor]:  # (outputs, inputs)
    """Return whole numbers, int8 (outputs, inputs), and scales (outputs,): weight = scale * number, to half a step."""
    if weight.is_meta:  # only shapes count; to compute with them, PyTorch would load its compiler
        return weight.to(torch.int8), weight[:, 0]
    scales = weight.abs().amax(1) / LARGEST_CODE
    steps = torch.where(scales > 0, scales, 1.0)
    return (weight / steps[:, None]).round().to(torch.int8), scales
