"""AdamW or Muon over groups of parameters: no weight decay on biases and norms, lower rates for lower layers."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW as the paper's recipe has it, or Muon.

    Attributes:
        kind: "adamw", or "muon", which orthogonalises the updates of matrices: for short trainings from fresh weights.
        learning_rate: peak rate of the top layer.
        matrix_rate: factor on the rate of the matrices of Muon.
        matrix_precision: of the products by which Muon orthogonalises; `auto` is bf16 where the device has instructions
            for it (GPUs, AVX512-BF16), which takes half the time there, and fp32 elsewhere.
        weight_decay: decoupled decay of matrices and convolution kernels.
        betas: decay rates of the two moments.
        eps: floor of the denominator.
        clip_norm: largest norm of the whole gradient; 0 for no clipping.
        layer_decay: factor on the rate from each dual attention block to the one below; 1 for none.
        frozen_epochs: epochs at the start during which the backbone keeps its initial weights.
        frozen_stages: stages of the backbone, from the stem on, that keep them to the end.
        decay_all: let biases and norms decay, too, as the official detection and segmentation do.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    matrix_rate: float = 1.0
    matrix_precision: Literal["fp32", "bf16", "auto"] = "fp32"
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
        if self.matrix_rate <= 0 or (self.matrix_rate != 1 and self.kind != "muon"):
            raise ValueError(f"matrix_rate must be positive, and 1 but for kind=muon, got {self.matrix_rate}")
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


def matrices_of(model: nn.Module) -> set[str]:
    """Names of the parameters that map several inputs to several outputs: linear maps and kernels that mix channels.

    A table of embeddings is none: a step sees few of its rows, and each stands for itself.
    """
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and min(parameter.shape[:2]) > 1 and name not in tables
    }


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups by depth, decay and whether Muon moves them; `scale` is each group's share of the learning rate."""
    depths, known = layer_depths(model), matrices_of(model)
    top = max(depths.values())
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 or config.decay_all
        matrices = config.kind == "muon" and name in known
        depth = depths[name] if config.layer_decay < 1 else top
        group = groups.setdefault(
            (depth, decays, matrices),
            {
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "scale": config.layer_decay ** (top - depth) * (config.matrix_rate if matrices else 1.0),
                "matrices": matrices,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build the optimizer; the trainer sets each group's rate at each step."""
    from davit.train.muon import Muon, multiplies_bf16  # here, for recipes are read where nothing is trained

    optimizer = (Muon if config.kind == "muon" else torch.optim.AdamW)(
        parameter_groups(model, config),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )
    if isinstance(optimizer, Muon):
        device = next(model.parameters()).device
        wanted = config.matrix_precision
        lowered = wanted == "bf16" or (wanted == "auto" and multiplies_bf16(device))
        optimizer.products = torch.bfloat16 if lowered else None
    return optimizer


def count_moments(model: nn.Module, config: OptimizerConfig) -> int:
    """How many numbers the optimizer keeps of all weights: two of each, one of what Muon moves."""
    single = matrices_of(model) if config.kind == "muon" else set()
    return sum(p.numel() * (1 if name in single else 2) for name, p in model.named_parameters())


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
