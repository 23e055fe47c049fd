"""One step of training: gradients of a batch, over micro-batches and processes, then an update or none."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from davit.data.loader import Share
from davit.models.blocks import DropPath, DualAttentionBlock
from davit.models.davit import DaViT
from davit.models.detect_matching import ImageGenerators
from davit.seeding import seed_everything
from davit.structures import Batch
from davit.train.distributed import World
from davit.train.ema import Average
from davit.train.optimizer import count_moments, make_optimizer, set_rate
from davit.train.parallel import exchange, replicate, whole
from davit.train.recipe import Recipe
from davit.train.shrink import shrunk
from davit.train.statistics import Statistics

STEP_STREAM = 1  # separates the randomness of steps from that of samples
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum")  # what AdamW and Muon keep of a parameter
FLOAT = 4  # bytes of a moment


class Task(Protocol):
    """A loss."""

    def losses(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss by name, each a mean over the batch."""
        ...


class Stepper:
    """Holds what a step changes: weights, moments, average, loss scale.

    The update depends on the recipe and the step's number, not on how many processes and micro-batches share the work,
    but for rounding: randomness is drawn for the whole batch everywhere, and each takes its rows.
    """

    def __init__(
        self, recipe: Recipe, model: nn.Module, task: Task, world: World, batch_size: int, precision: torch.dtype
    ) -> None:
        """Prepare for a model that is on its device, and sharded if it is to be."""
        self.recipe, self.model, self.task, self.world, self.batch_size = recipe, model, task, world, batch_size
        self.precision = precision
        share = Share(rank=world.rank, size=world.size, accumulate=recipe.runtime.accumulate)
        self.rows = share.rows(batch_size)
        self.optimizer = make_optimizer(model, recipe.optimizer)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision == torch.float16)
        self.average = Average(model, recipe.runtime.ema) if recipe.runtime.ema else None
        self.statistics = Statistics(model, world)
        self.random = [module for module in model.modules() if isinstance(module, (DropPath, ImageGenerators))]
        self.frozen: bool | None = None
        self.parallel: nn.Module = model
        self.forward: Callable[..., Tensor] = model

    def gradients(
        self, batches: Iterator[Batch], step: int, rate: float, *, frozen: bool, scale: float = 1.0
    ) -> tuple[float, bool]:
        """Compute the gradients of a step; return this process's mean loss, and whether all of it is finite.

        Images are shrunk by `scale` first.
        """
        self._freeze(frozen)
        self.model.train()
        self.statistics.keep()
        set_rate(self.optimizer, rate)
        total = torch.zeros((), device=self.world.device)
        for rows in self.rows:
            batch = shrunk(next(batches).to(self.world.device), scale)
            self._place(step, rows.start)
            with exchange(self.parallel, rows is self.rows[-1]):
                with torch.autocast(self.world.device.type, self.precision, enabled=self.precision != torch.float32):
                    parts = self.task.losses(self.forward, batch)
                    loss = torch.stack(list(parts.values())).sum() / len(self.rows)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm or math.inf)
        loss_value, norm_value = torch.stack([total, whole(norm).to(total)]).tolist()
        return loss_value, math.isfinite(loss_value) and math.isfinite(norm_value)

    def update(self) -> None:
        """Apply the gradients."""
        self.scaler.step(self.optimizer)
        self.statistics.share()
        if self.average:
            self.average.update()
        self._forget()

    def skip(self) -> None:
        """Forget the gradients; weights, moments, average and statistics stay as they are."""
        self.statistics.restore()
        self._forget()

    def _forget(self) -> None:
        self.scaler.update()
        self.optimizer.zero_grad()

    def tensors(self, stored: set[str] | None = None) -> dict[str, Tensor]:
        """Everything to save or to read into, by name; `stored` makes room for the moments that it names."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.model.named_parameters()}
        saved = self.model.state_dict().keys()
        buffers = {f"model.{name}": buffer for name, buffer in self.model.named_buffers() if name in saved}
        tensors |= {name: _with_axes(buffer) for name, buffer in buffers.items()}
        if self.average:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        for name, parameter in self.model.named_parameters():
            kept = [key for key in MOMENTS if f"optimizer.{name}.{key}" in (stored or ())]
            if kept:
                self.optimizer.state[parameter] = _no_moments(parameter, kept)
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = _with_axes(value)
        return tensors

    def bytes_to_save(self) -> int:
        """Size of all tensors, over all processes, once each weight has its moments."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return weights * (2 if self.average else 1) + FLOAT * count_moments(self.model, self.recipe.optimizer)

    def evaluated(self) -> dict[str, Tensor]:
        """The state dict that is scored and published: averages where there are any, weights elsewhere."""
        return self.model.state_dict() | (self.average.tensors if self.average else {})

    def progress(self) -> dict[str, Any]:
        """The numbers that belong to the tensors."""
        values: dict[str, Any] = {"averaged": self.average.updates} if self.average else {}
        return values | ({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def resume(self, progress: dict[str, Any]) -> None:
        """Take up the numbers; the tensors were read in place."""
        if self.average:
            self.average.updates = progress["averaged"]
        self.scaler.load_state_dict(progress.get("scaler", {}))

    def _place(self, step: int, first: int) -> None:
        seed_everything(self.recipe.runtime.seed, STEP_STREAM, step)  # drop path and mixing
        for module in self.random:
            module.place(first, self.batch_size)

    def _freeze(self, frozen: bool) -> None:
        """Freeze or free the backbone; what is wrapped around a model depends on which weights learn."""
        if frozen == self.frozen:
            return
        self.frozen = frozen
        for module in self.model.modules():
            if isinstance(module, DaViT):
                module.requires_grad_(not frozen)
                module.stages[: self.recipe.optimizer.frozen_stages].requires_grad_(False)
        self.forward = self.parallel = replicate(self.model, self.world)
        if not self.recipe.runtime.compile:
            return
        if isinstance(self.model, FSDPModule):
            for module in self.model.modules():
                if isinstance(module, DualAttentionBlock):
                    module.compile()
        else:
            self.forward = torch.compile(self.parallel)


def _with_axes(tensor: Tensor) -> Tensor:
    """The tensor itself, or a view of one axis: checkpoints of several processes know no numbers."""
    return tensor if tensor.ndim else tensor.view(1)


def _no_moments(parameter: Tensor, keys: Iterable[str]) -> dict[str, Tensor]:
    """The state of an optimizer before its first step."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {key: step if key == "step" else torch.zeros_like(parameter) for key in keys}
