"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) at each of the four maps."""

import torch
from torch import Tensor, nn

from davit.explain.attention import backbone_of
from davit.explain.hooks import differentiable_outputs_of
from davit.explain.targets import Target


def grad_cam(model: nn.Module, pixels: Tensor, target: Target) -> tuple[Tensor, ...]:
    """Where each map speaks for the target: ReLU of its channels, weighed by the mean gradient of each (eq. 1 and 2).

    The gradient is the whole derivative: what a map gives to the head and what it gives to the stages after it.

    Args:
        model: the model of the target, in eval mode; it is left as it was. Other threads may use it meanwhile.
        pixels: (C, height, width), normalised.
        target: what is explained.

    Returns:
        A map (H, W) float32 on the CPU for each stage, in the units of the target; zeros where nothing speaks for it.

    Raises:
        ValueError: a model in training mode.
    """
    if model.training:
        raise ValueError("Grad-CAM explains a model in eval mode: call model.eval() first")
    stages = list(backbone_of(model).stages)
    with torch.inference_mode(False), torch.enable_grad(), differentiable_outputs_of(stages) as outputs:
        image = pixels[None].to(next(model.parameters())).clone()  # a tensor of inference mode takes no part
        value = target.measure(image)[0]
        if not value.requires_grad:  # the object is not there
            return tuple(output.new_zeros(output.shape[1:3], device="cpu") for output in outputs)
        gradients = torch.autograd.grad(value, outputs)
    return tuple(_activation(x.detach()[0], gradient[0]) for x, gradient in zip(outputs, gradients, strict=True))


def _activation(x: Tensor, gradient: Tensor) -> Tensor:  # (H, W, C)
    weights = gradient.float().mean((0, 1))
    return (x.float() @ weights).relu().cpu()
