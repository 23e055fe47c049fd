"""The learning rate as a pure function of the step: nothing to save, nothing to restore wrongly.

It is timm's cosine schedule, updated at each step. The official `train.py` updates it once an epoch, and holds its
start (1e-6) and its floor (1e-5) as absolute rates; ours are shares of the peak, equal to those at the paper's 1e-3.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, cosine to the floor, then a cool-down at the floor.

    Attributes:
        epochs: epochs of warm-up and cosine together.
        warmup_epochs: epochs of warm-up; may be a fraction.
        cooldown_epochs: epochs at the floor after the cosine.
        warmup_start: rate at the first step, as a share of the peak.
        floor: rate at the end, as a share of the peak.
    """

    epochs: int = 300
    warmup_epochs: float = 5.0
    cooldown_epochs: int = 10
    warmup_start: float = 1e-3
    floor: float = 1e-2

    def __post_init__(self) -> None:
        """Refuse a run without epochs."""
        if self.epochs < 1 or self.cooldown_epochs < 0:
            raise ValueError(f"epochs must be at least 1 and cooldown_epochs at least 0, got {self}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must lie between 0 and epochs, got {self.warmup_epochs}")

    @property
    def total_epochs(self) -> int:
        """Epochs from first to last step."""
        return self.epochs + self.cooldown_epochs


def rate_at(config: ScheduleConfig, step: int, steps_per_epoch: float) -> float:
    """Share of the peak learning rate at `step`, counted from 0; an epoch need not be a whole number of steps."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    decay = config.epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_start + (1 - config.warmup_start) * step / warmup
    if step >= decay:
        return config.floor
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * step / decay))
