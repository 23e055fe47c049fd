"""What a run will take, before it runs: memory of each device, communication of each step, days."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from davit.data.loader import Share
from davit.models.config import DaViTConfig
from davit.models.variants import variant
from davit.train.build import architecture, whole_config
from davit.train.device import pick_precision
from davit.train.device_memory import GIB, Memory, Planner
from davit.train.planned_step import count_flops
from davit.train.recipe import Recipe
from davit.train.sides import list_images
from davit.weights.catalog import WEIGHTS
from davit.weights.checkpoint import is_checkpoint, read_header
from davit.weights.source import find_file

SUSTAINED_TFLOPS = 64.0  # reached per A100 in milabench's fp16 training of davit_large: 308 images/s x 6 x 34.6 GMACs
KNOWN = {  # training images and classes
    "imagenet": (1_281_167, 1000),
    "imagenet22k": (14_197_122, 21_841),
    "coco": (117_266, 80),
    "ade20k": (20_210, 150),
    "image_text": (1_500_000_000, 0),  # the pairs of the paper's Giant (section 4.1)
}


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A plan of a run.

    Attributes:
        recipe: what would run.
        world: devices.
        precision: of autocast.
        parameters: of the model.
        images: training images of an epoch.
        batch_size: images of a step, over all devices.
        micro_batch: images that a device computes at once.
        steps: of the run.
        plain: memory without gradient checkpointing.
        checkpointed: memory with it.
        communication: bytes that each device sends in a step; it receives as many.
        flops: floating-point operations for each image.
        tflops: sustained per device, in 1e12 a second.
        notes: what was assumed.
    """

    recipe: Recipe
    world: int
    precision: torch.dtype
    parameters: int
    images: int
    batch_size: int
    micro_batch: int
    steps: int
    plain: Memory
    checkpointed: Memory
    communication: int
    flops: int
    tflops: float
    notes: tuple[str, ...]

    @property
    def memory(self) -> Memory:
        """With or without checkpointing, as the recipe says."""
        return self.checkpointed if self.recipe.model.backbone.gradient_checkpointing else self.plain

    @property
    def days(self) -> float:
        """Of arithmetic alone: no evaluation, no waiting for data or for other devices."""
        return self.flops * self.steps * self.batch_size / (self.world * self.tflops * 1e12) / 86400

    def lines(self) -> list[str]:
        """The plan to read."""
        recipe, checkpointing = self.recipe, self.recipe.model.backbone.gradient_checkpointing
        other = self.plain if checkpointing else self.checkpointed
        shared = f"{self.world} x {recipe.runtime.accumulate} x {self.micro_batch}"
        how = f"{recipe.runtime.parallel} on {self.world} devices" if self.world > 1 else "one device"
        parts = [f"  {name:<14}{_gib(size):>9}" for name, size in self.memory.parts().items() if size]
        return [
            f"{recipe.name}: {recipe.model.variant}, {self.parameters:,} parameters, {_name(self.precision)}, {how}",
            f"steps: {self.steps:,} of {self.batch_size:,} images ({shared}: devices x micro-batches x images), "
            f"{recipe.schedule.total_epochs} epochs of {self.images:,} images",
            f"memory per device, {'with' if checkpointing else 'without'} gradient checkpointing:",
            *parts,
            f"  {'total':<14}{_gib(self.memory.total):>9}   fits {_fits(self.memory)}",
            f"  {'without' if checkpointing else 'with'} checkpointing {_gib(other.total)}, fits {_fits(other)}",
            f"communication per step and device: {_gib(self.communication)} sent, as much received"
            if self.world > 1
            else "communication: none",
            f"arithmetic: {self.flops / 1e9:,.1f} GFLOP an image; at {self.tflops:g} TFLOP/s sustained per device "
            f"{show_duration(self.days)}, {show_duration(self.days * self.world)} on one device",
            *(f"note: {note}" for note in self.notes),
        ]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; sizes in bytes."""
        runtime, checkpointing = self.recipe.runtime, self.recipe.model.backbone.gradient_checkpointing
        memory: dict[str, Any] = {"gradient_checkpointing": checkpointing, "parts": self.memory.parts()}
        for name, each in (("without_checkpointing", self.plain), ("with_checkpointing", self.checkpointed)):
            memory[name] = {"total": each.total, "fits": each.fits()}
        return {
            "recipe": self.recipe.name,
            "variant": self.recipe.model.variant,
            "world": self.world,
            "parallel": runtime.parallel,
            "precision": _name(self.precision),
            "parameters": self.parameters,
            "images": self.images,
            "epochs": self.recipe.schedule.total_epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "accumulate": runtime.accumulate,
            "micro_batch": self.micro_batch,
            "memory": memory | {"total": self.memory.total},
            "communication_per_step": self.communication,
            "flops_per_image": self.flops,
            "tflops": self.tflops,
            "days": self.days,
            "notes": list(self.notes),
        }


def report(recipe: Recipe, *, world: int = 1, tflops: float | None = None) -> DryRun:
    """Plan a run on `world` devices, in this process, without its data, its weights or its devices.

    Args:
        recipe: what would run. Where its images cannot be listed, the known sizes of ImageNet, COCO and ADE20K are
            taken.
        world: devices, with a process each.
        tflops: sustained by one device, in 1e12 floating-point operations a second; by default 64.

    Raises:
        ValueError: the batch cannot be shared evenly, the images are neither there nor known, or the initial weights
            take images of other channels.
    """
    if world < 1 or (tflops is not None and tflops <= 0):
        raise ValueError(f"world must be at least 1 and tflops positive, got {world} and {tflops}")
    images, classes, notes = _count_images(recipe)
    config, more = _architecture(recipe)
    recipe = replace(recipe, model=replace(recipe.model, backbone=config))
    batch_size = min(recipe.data.batch_size, images)
    rows = Share(size=world, accumulate=recipe.runtime.accumulate).rows(batch_size)
    gpu = recipe.runtime.device != "cpu"
    precision = pick_precision(recipe.runtime.precision, torch.device("cuda" if gpu else "cpu"))
    model = whole_config(recipe, config, classes)
    planner = Planner(recipe, model, world=world, precision=precision, micro_batch=len(rows[0]), gpu=gpu)
    return DryRun(
        recipe=recipe,
        world=world,
        precision=precision,
        parameters=planner.weights,
        images=images,
        batch_size=batch_size,
        micro_batch=len(rows[0]),
        steps=recipe.schedule.total_steps(images, batch_size),
        plain=planner.memory(checkpointing=False),
        checkpointed=planner.memory(checkpointing=True),
        communication=planner.communication(),
        flops=count_flops(recipe, model, planner.step.size),
        tflops=tflops or SUSTAINED_TFLOPS,
        notes=(*notes, *more, *planner.step.notes, *_assumptions(recipe, tflops)),
    )


def _count_images(recipe: Recipe) -> tuple[int, int, list[str]]:
    """Training images, classes, and what to say about them."""
    try:
        images = list_images(recipe)
    except (ValueError, OSError) as error:
        known = KNOWN.get(recipe.name.partition(".")[0])
        if known is None:
            raise
        count, classes = known
        why = str(error) if recipe.data.root else "data.root is not set"
        of = f" of {classes:,} classes" if classes else ""
        return count, classes, [f"{count:,} training images{of} are assumed: {why}"]
    return len(images.train), len(images.train.classes), list(images.notes)


def _architecture(recipe: Recipe) -> tuple[DaViTConfig, list[str]]:
    """The backbone as `build_model` will make it, without reading weights where their header or name says enough."""
    init = recipe.model.init
    notes: list[str] = []
    given: DaViTConfig | None = None
    if init in WEIGHTS:
        given = variant(WEIGHTS[init].variant)
    elif init and Path(init).exists() and is_checkpoint(find_file(init)):
        known = read_header(find_file(init)).config
        given = known if isinstance(known, DaViTConfig) else known.backbone
    elif init:
        notes.append(f"{init} was not read: planned as {recipe.model.variant}")
    return architecture(recipe, given), notes


def _assumptions(recipe: Recipe, tflops: float | None) -> list[str]:
    notes = []
    if recipe.optimizer.frozen_stages:
        notes.append("memory and arithmetic are those of a run without frozen stages, which takes more")
    if recipe.data.first_size:
        notes.append("memory and arithmetic are those of a step with images of data.image_size, not data.first_size")
    if recipe.runtime.compile:
        notes.append("memory is that of the model before compilation, which keeps less")
    if tflops in (None, SUSTAINED_TFLOPS):
        notes.append("64 TFLOP/s is what an A100 sustained in fp16 (milabench, davit_large); say yours with --tflops")
    return notes


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB // 10 else f"{size / 2**20:.1f} MiB"


def _name(precision: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[precision]


def _fits(memory: Memory) -> str:
    return "devices of " + ", ".join(memory.fits()) if memory.fits() else "no device of 141 GB"


def show_duration(days: float) -> str:
    """In days, hours or minutes."""
    if days >= 2:
        return f"{days:,.1f} days"
    if days >= 1 / 12:
        return f"{24 * days:.1f} hours"
    return f"{1440 * days:.0f} minutes" if days >= 2 / 1440 else "under two minutes"
