"""What a recipe costs on given hardware: whether it fits, what would make it fit, and for how long it runs."""

from collections.abc import Callable
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
        reached = f"an A100 reached {UTILISATION:.1%} in milabench's training of davit_large"
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


def training_cost(recipe: Recipe, hardware: Hardware, plan_run: Callable[..., DryRun] = report) -> TrainingCost:
    """Plan a recipe; where it does not fit, look for gradient checkpointing and more micro-batches that make it fit.

    Args:
        recipe: what would run.
        hardware: where.
        plan_run: makes a plan, as `dry_run.report` does.

    Raises:
        ValueError: as `dry_run.report`.
    """
    dry = plan_run(recipe, world=hardware.devices, tflops=hardware.tflops)
    cost = TrainingCost(name=recipe.name, hardware=hardware, plan=dry)
    if cost.fits:
        return cost
    tried, settings, memory = recipe, list[str](), dry.memory
    if not recipe.model.backbone.gradient_checkpointing:
        tried, settings, memory = (
            _checkpointing(recipe),
            ["model.backbone.gradient_checkpointing=true"],
            dry.checkpointed,
        )
    now = recipe.runtime.accumulate
    for accumulate in (now * times for times in range(1, dry.micro_batch + 1) if dry.micro_batch % times == 0):
        if not hardware.holds(_smaller(memory, accumulate / now)) or (accumulate == now and not settings):
            continue  # not worth a plan of its own
        runtime = replace(tried.runtime, accumulate=accumulate)
        plan = plan_run(replace(tried, runtime=runtime), world=hardware.devices, tflops=hardware.tflops)
        if hardware.holds(plan.memory):
            more = [f"runtime.accumulate={accumulate}"] if accumulate > now else []
            return replace(cost, remedy=(*settings, *more), remedied=plan)
    return cost


def _smaller(memory: Memory, times: float) -> Memory:
    """About what micro-batches with so many times fewer images take."""
    return replace(
        memory, activations=round(memory.activations / times), workspace=round(memory.workspace / times), gradients=0
    )


def _checkpointing(recipe: Recipe) -> Recipe:
    backbone = replace(recipe.model.backbone, gradient_checkpointing=True)
    return replace(recipe, model=replace(recipe.model, backbone=backbone))
