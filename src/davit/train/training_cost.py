"""What a recipe costs on given hardware: whether it fits, what would make it fit, and for how long it runs."""

from dataclasses import dataclass, replace
from typing import Any

from davit.train.device_memory import CONTEXT, FRAGMENTED, Memory
from davit.train.dry_run import SUSTAINED_TFLOPS, DryRun, report
from davit.train.recipe import Recipe

A100_TFLOPS = 312.0  # dense fp16 and bf16, as its maker states
UTILISATION = SUSTAINED_TFLOPS / A100_TFLOPS  # what an A100 reached in milabench's training of davit_large


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Equal devices.

    Attributes:
        devices: how many, with a process each.
        memory: bytes of one; None for any.
        flops: operations a second that its maker states for one; None where it is not said.
        utilisation: the share of them that training reaches.
    """

    devices: int = 1
    memory: int | None = None
    flops: float | None = None
    utilisation: float = UTILISATION

    def __post_init__(self) -> None:
        """Refuse what no hardware is."""
        if self.devices < 1:
            raise ValueError(f"--devices must be at least 1, got {self.devices}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"--utilisation must lie between 0 and 1, got {self.utilisation:g}")

    @property
    def tflops(self) -> float:
        """Sustained by one device, in 1e12 a second; where nothing is said of it, an A100's."""
        return SUSTAINED_TFLOPS if self.flops is None else self.flops * self.utilisation / 1e12

    @property
    def assumption(self) -> str:
        """Where that is from."""
        reached = (
            f"an A100 reached {UTILISATION:.1%} of its {A100_TFLOPS:g} TFLOP/s in milabench's training of davit_large"
        )
        if self.flops is None:
            return f"estimated: {SUSTAINED_TFLOPS:g} TFLOP/s sustained by a device, what an A100 reached; say --flops"
        share = f"{self.utilisation:.1%} of {self.flops / 1e12:g} TFLOP/s"
        return f"estimated: {self.tflops:.3g} TFLOP/s sustained by a device, {share} ({reached})"

    def holds(self, memory: Memory) -> bool:
        """Whether a device holds a step."""
        return self.memory is None or needed(memory) <= self.memory


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """A recipe on hardware.

    Attributes:
        name: of the recipe.
        hardware: what it would run on.
        plan: as the recipe says.
        remedy: settings that make it fit where it does not; empty where none are needed, or none were found.
        remedied: the plan with them; None likewise.
    """

    name: str
    hardware: Hardware
    plan: DryRun
    remedy: tuple[str, ...] = ()
    remedied: DryRun | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits as the recipe says."""
        return self.hardware.holds(self.plan.memory)

    @property
    def best(self) -> DryRun:
        """What would run: as the recipe says, or with the settings that make it fit."""
        return self.remedied or self.plan

    def to_json(self) -> dict[str, Any]:
        """JSON values; sizes in bytes."""
        return {
            **self.plan.to_json(),
            "recipe": self.name,
            "needed": needed(self.plan.memory),
            "fits": self.fits,
            "device_hours": 24 * self.plan.days * self.hardware.devices,
            "remedy": list(self.remedy),
            "remedied": self.remedied and {**self.remedied.to_json(), "needed": needed(self.remedied.memory)},
        }


def needed(memory: Memory) -> int:
    """Bytes that a device must have for a step, with its context and the allocator's fragments."""
    return round(memory.total * FRAGMENTED + CONTEXT)


def training_cost(recipe: Recipe, hardware: Hardware) -> TrainingCost:
    """Plan a recipe; where it does not fit, look for gradient checkpointing and more micro-batches that make it fit.

    Raises:
        ValueError: as `dry_run.report`.
    """
    dry = report(recipe, world=hardware.devices, tflops=hardware.tflops)
    cost = TrainingCost(name=recipe.name, hardware=hardware, plan=dry)
    if cost.fits:
        return cost
    remedied, settings = recipe, list[str]()
    if not recipe.model.backbone.gradient_checkpointing:
        remedied = _checkpointing(recipe)
        settings = ["model.backbone.gradient_checkpointing=true"]
        if hardware.holds(dry.checkpointed):
            return _with(cost, remedied, settings)
    per_device, accumulate = dry.micro_batch * recipe.runtime.accumulate, recipe.runtime.accumulate
    while accumulate < per_device:
        accumulate = min(2 * accumulate, per_device)
        tried = replace(remedied, runtime=replace(remedied.runtime, accumulate=accumulate))
        if per_device % accumulate == 0:
            found = _with(cost, tried, [*settings, f"runtime.accumulate={accumulate}"])
            if found.remedied and hardware.holds(found.remedied.memory):
                return found
    return cost


def _checkpointing(recipe: Recipe) -> Recipe:
    backbone = replace(recipe.model.backbone, gradient_checkpointing=True)
    return replace(recipe, model=replace(recipe.model, backbone=backbone))


def _with(cost: TrainingCost, recipe: Recipe, settings: list[str]) -> TrainingCost:
    plan = report(recipe, world=cost.hardware.devices, tflops=cost.hardware.tflops)
    return replace(cost, remedy=tuple(settings), remedied=plan)
