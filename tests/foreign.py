"""Helpers of the tests that compare with other people's models."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from davit.weights.convert.rename import Format

WIDTHS, DEPTHS, HEADS = (32, 64, 96, 128), (1, 1, 2, 1), (1, 2, 3, 4)
SIZES = ((224, 224), (384, 384), (200, 260), (97, 131))
GRADIENT_CASES = [  # batch and size; in float64, for a saturated softmax makes float32 gradients noisy
    (3, (97, 131)),
    (1, (200, 260)),
    pytest.param(1, (224, 224), marks=pytest.mark.slow),
    pytest.param(1, (384, 384), marks=pytest.mark.slow),
]


def randomise(module: nn.Module) -> nn.Module:
    """Give every tensor its own values, so that no mix-up goes unseen: no zero bias, no unit norm."""
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.normal_(0.0, 0.2)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1.0)
            else:
                parameter.normal_(0.0, 0.7 * parameter[0].numel() ** -0.5)
    return module.eval()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    assert found.shape == wanted.shape
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def write(tensors: Mapping[str, Tensor], path: Path) -> Path:
    """Write tensors as someone else would."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    return path


def gradient_error(ours: nn.Module, theirs: nn.Module, format: Format, prefix: str = "") -> float:
    """Largest relative difference of any parameter's gradient, matched by the conversion table."""
    mine = format.from_ours({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    other = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert {prefix + name for name in mine} == set(other)
    largest = max(gradient.abs().max() for gradient in other.values())
    errors = []
    for name, gradient in mine.items():
        wanted = other[prefix + name]
        scale = torch.maximum(wanted.abs().max(), 1e-3 * largest)  # a gradient of zero has no relative error
        errors.append(((gradient - wanted).abs().max() / scale).item())
    return max(errors)
