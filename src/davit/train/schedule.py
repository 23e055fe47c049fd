"""The learning rate as a pure function of the step: nothing to save, nothing to restore wrongly.

The cosine is timm's, updated at each step. The official `train.py` updates it once an epoch, and holds its start (1e-6)
and its floor (1e-5) as absolute rates; ours are shares of the peak, equal to those at the paper's 1e-3. The other two
shapes are mmcv's, as the paper's detection and segmentation use them: there the warm-up is a factor on the shape.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then the shape down to the floor, then a cool-down at the floor.

    Attributes:
        epochs: epochs of warm-up and shape together.
        steps: the same in optimizer steps, for runs that count these; 0 goes by `epochs`.
        warmup_epochs: epochs of warm-up; may be a fraction.
        warmup_steps: the same in optimizer steps; 0 goes by `warmup_epochs`.
        cooldown_epochs: epochs at the floor after the shape.
        warmup_start: rate at the first step, as a share of the peak.
        shape: `cosine`; `linear`; `drops`: a tenth at each of `drops`.
        drops: epochs after which the rate is a tenth of what it was.
        floor: rate at the end, as a share of the peak; `drops` has none.
    """

    epochs: int = 300
    steps: int = 0
    warmup_epochs: float = 5.0
    warmup_steps: int = 0
    cooldown_epochs: int = 10
    warmup_start: float = 1e-3
    shape: Literal["cosine", "linear", "drops"] = "cosine"
    drops: tuple[float, ...] = ()
    floor: float = 1e-2

    def __post_init__(self) -> None:
        """Refuse a run without epochs, and drops that no shape takes."""
        if self.epochs < 1 or self.cooldown_epochs < 0 or self.steps < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"epochs must be at least 1, cooldown_epochs, steps and warmup_steps at least 0, got {self}"
            )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must lie between 0 and epochs, got {self.warmup_epochs}")
        if bool(self.drops) != (self.shape == "drops"):
            raise ValueError(f"shape=drops and drops=EPOCHS go together, got shape={self.shape} and drops={self.drops}")

    @property
    def total_epochs(self) -> int:
        """Epochs from first to last step, where these are counted."""
        return self.epochs + self.cooldown_epochs

    def total_steps(self, samples: int, batch_size: int) -> int:
        """Optimizer steps of a whole run."""
        cooldown = -int(-self.cooldown_epochs * samples // batch_size)
        return self.steps + cooldown if self.steps else -int(-self.total_epochs * samples // batch_size)


def rate_at(config: ScheduleConfig, step: int, steps_per_epoch: float) -> float:
    """Share of the peak learning rate at `step`, counted from 0; an epoch need not be a whole number of steps."""
    warmup = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    decay = config.steps or config.epochs * steps_per_epoch
    rise = config.warmup_start + (1 - config.warmup_start) * step / warmup if step < warmup else 1.0
    if config.shape == "drops":
        return rise * 0.1 ** sum(step >= drop * steps_per_epoch for drop in config.drops)
    if step >= decay:
        return config.floor
    if config.shape == "linear":
        return rise * (config.floor + (1 - config.floor) * (1 - step / decay))
    if step < warmup:
        return rise
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * step / decay))
