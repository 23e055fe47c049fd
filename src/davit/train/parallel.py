"""One model on many processes: replicated (DDP) or sharded (FSDP2), behind one face."""

import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from davit.models.blocks import DualAttentionBlock
from davit.train.distributed import World


def shard(model: nn.Module, world: World, precision: torch.dtype) -> None:
    """Shard a model over all processes, a group for each dual attention block and one for the rest (FSDP2).

    Weights travel in `precision`; gradients are summed in fp32.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == torch.float32 else precision, reduce_dtype=torch.float32
    )
    for module in list(model.modules()):
        if isinstance(module, DualAttentionBlock):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def replicate(model: nn.Module, world: World) -> nn.Module:
    """Wrap a model so that gradients are averaged over all processes; alone, there is nothing to wrap."""
    if world.size == 1 or isinstance(model, FSDPModule):
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # (C, 1, 3, 3): no difference
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def reshard(model: nn.Module) -> None:
    """Leave only this process's shards in a sharded model: after an evaluation, its outermost weights are whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def exchange(model: nn.Module, wanted: bool) -> Generator[None]:
    """Whether the backward pass inside averages gradients; only the last micro-batch of a step needs it."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
        yield
    elif isinstance(model, DistributedDataParallel) and not wanted:
        with model.no_sync():
            yield
    else:
        yield


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole value, known to every process, into a parameter or its shards."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.device)
        part = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(value)


def whole_state(named: Iterable[tuple[str, Tensor]], world: World) -> dict[str, Tensor] | None:
    """Gather tensors, one after the other, into the memory of the first process; the others get None."""
    state: dict[str, Tensor] = {}
    for name, tensor in named:
        value = whole(tensor.detach())
        if world.first:
            state[name] = value.cpu()
    return state if world.first else None
