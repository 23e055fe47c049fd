"""AdamW over groups of parameters: no weight decay on biases and norms, lower rates for lower layers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW as the paper's recipe has it.

    Attributes:
        learning_rate: peak rate of the top layer.
        weight_decay: decoupled decay of matrices and convolution kernels.
        betas: decay rates of the two moments.
        eps: floor of the denominator.
        clip_norm: largest norm of the whole gradient; 0 for no clipping.
        layer_decay: factor on the rate from each dual attention block to the one below; 1 for none.
        frozen_epochs: epochs at the start during which the backbone keeps its initial weights.
        frozen_stages: stages of the backbone, from the stem on, that keep them to the end.
        decay_all: let biases and norms decay, too, as the official detection and segmentation do.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    frozen_epochs: float = 0.0
    frozen_stages: int = 0
    decay_all: bool = False

    def __post_init__(self) -> None:
        """Refuse rates that cannot train."""
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError(f"learning_rate must be positive, weight_decay and clip_norm not negative, got {self}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if not 0 <= self.frozen_stages <= 4:
            raise ValueError(f"frozen_stages must lie in 0 to 4, got {self.frozen_stages}")
        if self.frozen_epochs < 0:
            raise ValueError(f"frozen_epochs must not be negative, got {self.frozen_epochs}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")


def layer_depths(model: nn.Module) -> dict[str, int]:
    """How many dual attention blocks lie below each parameter; the stem is 0, what is above the backbone the most.

    A patch merging belongs to the block that follows it.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks: dict[str, int] = {}
    for name in names:
        stage, _, rest = name.partition(".blocks.")
        if rest:
            blocks.setdefault(f"{stage}.{rest.split('.')[0]}", len(blocks) + 1)
    depths = {}
    for name in names:
        stage, _, rest = name.partition(".blocks.")
        if rest:
            depths[name] = blocks[f"{stage}.{rest.split('.')[0]}"]
        elif ".downsample." in name:
            stage = name.split(".downsample.")[0]
            depths[name] = 0 if stage.endswith("stages.0") else blocks[f"{stage}.0"]
        else:
            depths[name] = len(blocks) + 1
    return depths


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups by depth and by whether they decay; `scale` is each group's share of the learning rate."""
    depths = layer_depths(model)
    top = max(depths.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 or config.decay_all
        depth = depths[name] if config.layer_decay < 1 else top
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "scale": config.layer_decay ** (top - depth),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW; the trainer sets each group's rate at each step."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
