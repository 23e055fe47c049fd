"""`davit plan --train`: what recipes cost on given hardware."""

from collections.abc import Sequence
from json import dumps
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from davit.train.training_cost import Hardware, TrainingCost


def plan_training(words: Sequence[str], hardware: "Hardware", *, json: bool) -> int:
    """Tell memory, steps and days of recipes.

    Args:
        words: names of recipes, by default all, and FIELD=VALUE for all of them.
        hardware: what they would run on.
        json: whether to print JSON.

    Returns:
        0, or 1 where none of the recipes fits.

    Raises:
        ValueError: an unknown name or setting, or the one recipe that was named cannot be planned.
    """
    from davit.cli.progress import Progress
    from davit.cli.train import recipe_with
    from davit.recipes import RECIPES
    from davit.train.training_cost import training_cost

    settings = [word for word in words if "=" in word]
    named = [word for word in words if "=" not in word]
    costs: list[TrainingCost] = []
    left_out: dict[str, str] = {}
    with Progress("planning", "recipes", len(named or RECIPES)) as progress:
        for name in named or RECIPES:
            try:
                costs.append(training_cost(recipe_with(name, settings), hardware))
            except (ValueError, OSError) as error:
                if len(named) == 1 or name not in RECIPES:
                    raise
                left_out[name] = str(error)
            progress(1)
    if json:
        print(dumps(_report(costs, left_out, hardware), indent=2))
    else:
        print("\n".join(_lines(costs, left_out, hardware)))
    return 0 if any(cost.fits or cost.remedied for cost in costs) else 1


def _report(costs: "Sequence[TrainingCost]", left_out: dict[str, str], hardware: "Hardware") -> dict[str, object]:
    return {
        "devices": hardware.devices,
        "device_memory": hardware.memory,
        "flops": hardware.flops,
        "utilisation": hardware.utilisation if hardware.flops is not None else None,
        "tflops_sustained": hardware.tflops,
        "assumption": hardware.assumption,
        "recipes": [cost.to_json() for cost in costs],
        "left_out": left_out,
    }


def _lines(costs: "Sequence[TrainingCost]", left_out: dict[str, str], hardware: "Hardware") -> list[str]:
    from davit.explain.tables import aligned

    memory = "" if hardware.memory is None else f" of {hardware.memory / 2**30:.1f} GiB"
    lines = [f"{hardware.devices} device{'s' if hardware.devices > 1 else ''}{memory}", ""]
    head = ["recipe", "variant", "memory/device", "fits", "batch", "steps", "time", "device hours"]
    lines += aligned([head, *(_row(cost) for cost in costs)], left={0, 1, 3}) if costs else []
    lines += ["", "batch: devices x micro-batches x images of one"] if costs else []
    for cost in costs:
        if not cost.fits:
            lines += ["", _remedy(cost)]
    if left_out:
        lines += ["", "left out:", *(f"  {name}: {reason}" for name, reason in left_out.items())]
    lines += ["", hardware.assumption]
    return [*lines, "The parts of the memory and all assumptions: davit train RECIPE --dry-run --world N"]


def _row(cost: "TrainingCost") -> list[str]:
    from davit.train.dry_run import show_duration
    from davit.train.training_cost import needed

    plan = cost.plan
    memory, hours = needed(plan.memory) / 2**30, 24 * plan.days * plan.world
    shared = f"{plan.world}x{plan.recipe.runtime.accumulate}x{plan.micro_batch}"
    told = "yes" if cost.fits else "no, see below"
    return [
        cost.name,
        plan.recipe.model.variant,
        f"{memory:.1f} GiB",
        told if cost.hardware.memory is not None else "-",
        shared,
        f"{plan.steps:,}",
        show_duration(plan.days),
        f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}",
    ]


def _remedy(cost: "TrainingCost") -> str:
    from davit.train.dry_run import show_duration
    from davit.train.training_cost import needed

    if cost.remedied is None:
        sharding = "" if cost.plan.recipe.runtime.parallel == "fsdp" else ", or runtime.parallel=fsdp on more devices"
        return (
            f"{cost.name} does not fit, not even an image at a time with gradient checkpointing: take larger "
            f"devices{sharding}"
        )
    memory = needed(cost.remedied.memory) / 2**30
    days = show_duration(cost.remedied.days)
    return f"{cost.name} fits with {' '.join(cost.remedy)}: {memory:.1f} GiB a device, {days}"
