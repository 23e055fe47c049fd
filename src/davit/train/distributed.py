"""The processes of a run: one, or as many as torchrun started."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.rendezvous import rendezvous

from davit.train.device import pick_device
from davit.train.recipe import RuntimeRecipe

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # longer than a hung loader process is waited for


class LostProcessError(ConnectionError):
    """Another process of the run ended, so this one cannot go on."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run; alone, every exchange is free.

    Attributes:
        rank: its number.
        size: how many there are.
        device: where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add a CPU tensor up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set anywhere."""
        return bool(self.sum(torch.tensor([float(flag)])) > 0)

    def gather(self, value: T) -> list[T]:
        """What each process gave, by rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def once(self, work: Callable[[], T]) -> T:
        """Do something on the first process, and give its result, or its error, to all."""
        if self.size == 1:
            return work()
        outcome: list[T | Exception | None] = [None]
        if self.first:
            try:
                outcome = [work()]
            except Exception as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return cast("T", outcome[0])

    def all_succeed(self, work: Callable[[], object]) -> None:
        """Do something on every process; where it fails on one, all raise that error."""
        error: Exception | None = None
        try:
            work()
        except Exception as raised:
            error = raised
        for theirs in self.gather(error):
            if theirs is not None:
                raise theirs


@contextmanager
def joined(runtime: RuntimeRecipe) -> Generator[World]:
    """Join the processes that torchrun started, and leave them at the end; inside, joining again changes nothing.

    They can be joined once in the life of a process: several runs in one go inside one `joined`.

    Raises:
        ValueError: `runtime.device` cannot be used here.
        LostProcessError: the others cannot be reached.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(runtime.device)
    if size == 1 and runtime.parallel == "ddp":
        yield World(device=device)
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield World(rank=rank, size=size, device=device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=_meeting_place(), rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:
        raise LostProcessError(
            f"could not meet the other processes of this run: {str(error).splitlines()[0]}"
        ) from error
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        dist.destroy_process_group()


def _meeting_place() -> dist.Store:
    """Where processes find each other; after a restart by torchrun they must not find the addresses of the dead."""
    if "RANK" not in os.environ:
        return dist.HashStore()
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


@contextmanager
def naming_lost_processes(world: World) -> Generator[None]:
    """Turn the many ways in which an exchange with a dead process fails into one error."""
    try:
        yield
    except (RuntimeError, CheckpointException) as error:
        text = str(error)
        if world.size == 1 or not any(word in text for word in ("gloo", "NCCL", "onnection", "Broken pipe")):
            raise
        raise LostProcessError(
            "another process of this run is gone; its own message tells why. The last checkpoint is intact: start the "
            f"same command again to go on ({text.splitlines()[0][:120]})"
        ) from error
