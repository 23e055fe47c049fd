"""Memory of one device and its messages, from a recipe and the number of devices."""

from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from davit.models.blocks import DualAttentionBlock
from davit.models.clip_config import ImageTextHead
from davit.models.create import WholeConfig, make_model
from davit.tasks.contrastive import ContrastiveConfig
from davit.train.footprint import Moment, footprint
from davit.train.optimizer import count_moments
from davit.train.planned_step import plan_step
from davit.train.recipe import Recipe

GIB = 2**30
DEVICES = {"24 GB": 23, "40 GB": 39, "80 GB": 79, "141 GB": 139}  # GiB that such a device has, rounded down
CONTEXT = GIB  # what a process takes on a GPU before the first tensor: an assumption
FRAGMENTED = 1.05  # what the allocator reserves over what is in use: an assumption
FLOAT = 4  # bytes of a weight, a gradient, a moment, an average


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device where a step needs most.

    Attributes:
        parameters: weights, or this device's shard of them.
        moments: what the optimizer keeps: two numbers of each weight under AdamW.
        average: the averaged weights, where `runtime.ema` is on.
        gradients: those that are there at that point.
        activations: what the forward pass kept for the backward pass.
        copies: 16-bit copies of weights, made by autocast.
        workspace: what operators made and nobody keeps.
        communication: gathered weights and gradients to be scattered.
        pairs: the other devices' vectors and similarities with them, in image-text training.
    """

    parameters: int
    moments: int
    average: int
    gradients: int
    activations: int
    copies: int
    workspace: int
    communication: int
    pairs: int = 0

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """The parts by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def fits(self) -> list[str]:
        """Names of the devices that hold it, with room for the context and for fragments."""
        needed = self.total * FRAGMENTED + CONTEXT
        return [name for name, size in DEVICES.items() if needed <= size * GIB]


class Planner:
    """Counts what one of `world` devices holds and sends in a step of a recipe."""

    def __init__(
        self, recipe: Recipe, config: WholeConfig, *, world: int, precision: torch.dtype, micro_batch: int, gpu: bool
    ) -> None:
        """Plan for a model of `config` and `micro_batch` images at once."""
        self.config, self.step = config, plan_step(recipe, config)
        self.recipe, self.world, self.precision, self.gpu = recipe, world, precision, gpu
        size = self.step.padded if micro_batch > 1 else self.step.size
        self.shape = (micro_batch, recipe.data.channels, *size)
        self.sharded = world > 1 and recipe.runtime.parallel == "fsdp"
        with torch.device("meta"):
            model = make_model(config)
        self.weights, self.moments = _count(model), count_moments(model, recipe.optimizer)
        self.blocks = [_count(module) for module in model.modules() if isinstance(module, DualAttentionBlock)]

    def memory(self, *, checkpointing: bool) -> Memory:
        """Count a step, with or without gradient checkpointing."""
        backbone = replace(self.config.backbone, gradient_checkpointing=checkpointing)
        config = replace(self.config, backbone=backbone)
        counted = footprint(
            lambda: make_model(config), self.step.loss, self.shape, precision=self.precision, gpu=self.gpu
        )
        if self.sharded:
            return self._of_shards(counted.beside_weights)
        whole = self.weights * FLOAT
        lasting = self.world > 1 or self.recipe.runtime.accumulate > 1  # buckets of DDP, sums over micro-batches
        moment = counted.beside_gradients if lasting else counted.peak
        return Memory(
            parameters=whole,
            moments=self.moments * FLOAT,
            average=whole if self.recipe.runtime.ema else 0,
            gradients=whole if lasting else moment.gradients,
            activations=moment.activations,
            copies=moment.copies,
            workspace=moment.workspace,
            communication=0,  # the buckets of DDP are the gradients
            pairs=self._pairs(),
        )

    def communication(self) -> int:
        """Bytes that a device sends in a step, by ring algorithms; it receives as many."""
        if self.world == 1:
            return 0
        others = (self.world - 1) / self.world
        head = self.recipe.model.head
        vectors = 2 * head.embedding if isinstance(head, ImageTextHead) else 0
        pairs = 3 * others * self.recipe.data.batch_size * vectors * FLOAT  # gathered, and their gradients summed
        if not self.sharded:
            return round(2 * others * self.weights * FLOAT + pairs)
        root = self.weights - sum(self.blocks)
        gathered = self.recipe.runtime.accumulate * (2 * sum(self.blocks) + root) * self.precision.itemsize
        return round(others * (gathered + self.weights * FLOAT) + pairs)

    def _of_shards(self, moment: Moment) -> Memory:
        """Gathered weights are 16-bit already; sums over micro-batches are whole and in fp32 until the last one."""
        share = -(-self.weights // self.world) * FLOAT
        summed = self.weights * FLOAT if self.recipe.runtime.accumulate > 1 else 0
        return Memory(
            parameters=share,
            moments=-(-self.moments // self.world) * FLOAT,
            average=share if self.recipe.runtime.ema else 0,
            gradients=share + summed,
            activations=moment.activations,
            copies=0,
            workspace=moment.workspace,
            communication=self._gathered(),
            pairs=self._pairs(),
        )

    def _pairs(self) -> int:
        """What `unicl_loss` holds beyond this device's own pairs: four copies each of vectors and similarities."""
        task, head = self.recipe.task, self.recipe.model.head
        if not isinstance(task, ContrastiveConfig) or not isinstance(head, ImageTextHead):
            return 0
        own = self.shape[0]
        return 4 * FLOAT * (self.recipe.data.batch_size - own) * (2 * head.embedding + min(task.rows, own))

    def _gathered(self) -> int:
        """The rest of the model, two blocks (this one and the next), and two blocks of gradients on their way."""
        block, root = max(self.blocks), self.weights - sum(self.blocks)
        return (2 * block + root) * self.precision.itemsize + 2 * block * FLOAT


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
