"""Models of ours and of timm measured side by side: parameters, multiply-adds, speed in turns, memory."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from davit.inference.backends import BackendName
from davit.inference.backends.eager import choose_device
from davit.inference.backends.opening import exported_format, open_exported
from davit.inference.backends.protocol import Backend
from davit.inference.counting import count_by_torch, count_parameters
from davit.inference.memory import Memory, answer, ask, watch
from davit.inference.peers import build_peer, count_peer, own_size, short_name, size_is_fixed
from davit.inference.timing import Speed, call_on_noise, open_candidates, open_model, summarise, take_turns
from davit.models.config import ClassifierConfig
from davit.models.create import make_model

TIMM = "timm"
COMPILED = "compiled"  # what torch.compile makes of a model of ours
TIMM_COMPILED = "timm compiled"

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model and what computes it; enough for a fresh process to open the same.

    Attributes:
        model: a name of `davit models`, a file, or an architecture of timm.
        engine: a backend of `make_backend`, the format of an exported file, "compiled" for PyTorch's compiler, "timm"
            or "timm compiled".
    """

    model: str
    engine: str

    @property
    def is_peer(self) -> bool:
        """Whether timm builds it."""
        return self.engine in (TIMM, TIMM_COMPILED)

    @property
    def name(self) -> str:
        """The model as a table has it."""
        return short_name(self.model) if self.is_peer else self.model


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model has whoever computes it.

    Attributes:
        parameters: of all its weights.
        macs: multiply-adds of one image.
    """

    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An entry at one size.

    Attributes:
        entry: what was measured.
        height: of the images.
        width: of the images.
        counts: parameters and multiply-adds.
        speed: how fast; `times_first` compares with the first entry of the same size.
        memory: of a fresh process; None where it was not asked for or the system does not tell.
        rebuilt: whether it was built for this size, and weights of its own size do not fit as they are.
    """

    entry: Entry
    height: int
    width: int
    counts: Counts
    speed: Speed
    memory: Memory | None
    rebuilt: bool = False


@dataclass(frozen=True, kw_only=True)
class Unable:
    """An entry that cannot compute a size, and why."""

    entry: Entry
    height: int
    width: int
    reason: str


class Models:
    """Opens entries and counts them, each architecture once."""

    def __init__(self, device: torch.device) -> None:
        """Open on a device."""
        self.device = device
        self._computes: dict[object, Callable[[Tensor], object]] = {}
        self._configs: dict[str, ClassifierConfig] = {}
        self._counts: dict[tuple[str, Size], Counts] = {}

    def open(self, entry: Entry, size: Size) -> Callable[[Tensor], object]:
        """What computes images of a size (B, channels, height, width) on the device.

        Raises:
            ValueError: unusable weights, a model that does not classify, or a size that it cannot compute.
            OSError: the file cannot be read.
        """
        varies = entry.is_peer and size_is_fixed(entry.model)
        key = (entry, size if varies else None)
        if key not in self._computes:
            self._computes[key] = self._peer(entry, size) if entry.is_peer else self._own(entry)
        return self._computes[key]

    def close_fixed(self, size: Size) -> None:
        """Let go of what was built for a size alone."""
        for key in [key for key in self._computes if isinstance(key, tuple) and key[1] == size]:
            del self._computes[key]

    def channels(self, entry: Entry) -> int:
        """Of its images."""
        return 3 if entry.is_peer else self.config(entry).backbone.in_channels

    def config(self, entry: Entry) -> ClassifierConfig:
        """Of a model of ours, which was opened."""
        return self._configs[entry.model]

    def count(self, entry: Entry, size: Size) -> Counts:
        """Parameters and multiply-adds at a size.

        Raises:
            ValueError: the model does not compute it.
        """
        key = (entry.model, size)
        if key not in self._counts:
            if entry.is_peer:
                parameters, macs = count_peer(entry.model, *size)
            else:
                config = self.config(entry)
                with torch.device("meta"):
                    model = make_model(config)
                parameters = count_parameters(model)
                macs = count_by_torch(model, config.backbone.in_channels, *size)
            self._counts[key] = Counts(parameters=parameters, macs=macs)
        return self._counts[key]

    def rebuilt(self, entry: Entry, size: Size) -> bool:
        """Whether an entry at this size has other parameters than at its own."""
        if not entry.is_peer or not size_is_fixed(entry.model) or size == own_size(entry.model):
            return False
        return self.count(entry, size).parameters != self.count(entry, own_size(entry.model)).parameters

    def _own(self, entry: Entry) -> Callable[[Tensor], object]:
        if entry.engine == COMPILED:
            model = open_model(entry.model)
            self._keep(entry, model.config)
            return torch.compile(model.to(self.device))
        (backend,) = open_own(entry, self.device).values()
        self._keep(entry, backend.config)
        return backend

    def _keep(self, entry: Entry, config: object) -> None:
        if not isinstance(config, ClassifierConfig):
            raise ValueError(
                f"{entry.model} is no classifier, and these peers are: davit benchmark models measures it alone"
            )
        self._configs[entry.model] = config

    def _peer(self, entry: Entry, size: Size) -> Callable[[Tensor], object]:
        model = build_peer(entry.model, *size).to(self.device)
        return torch.compile(model) if entry.engine == TIMM_COMPILED else model


def open_own(entry: Entry, device: torch.device) -> dict[str, Backend]:
    """Open a model of ours by its engine."""
    if format := exported_format(entry.model):
        return {format: open_exported(entry.model, format, device)}
    name: BackendName = entry.engine  # type: ignore[bad-assignment]  # the command line has checked it
    return open_candidates(entry.model, (name,), device)


def measure(
    models: Models,
    entries: Sequence[Entry],
    size: Size,
    batch: int,
    *,
    seconds: float,
    memory: bool,
    tell: Callable[[], None] = lambda: None,
) -> Iterator[Measured | Unable]:
    """Measure entries at a size: first their speed, in turns, then the memory of each in a process of its own.

    Args:
        models: opens them.
        entries: the first is what the others are compared with.
        size: height and width.
        batch: images in a call.
        seconds: how long the turns go on at least, see `take_turns`.
        memory: whether to ask for it.
        tell: called when a stage of an entry is done: once it has been counted and opened, and once it is measured.

    Raises:
        ValueError: as `Models.open`; a size alone that a peer cannot compute is yielded as `Unable`.
    """
    shape = (batch, 3, *size)
    calls: dict[Entry, Callable[[], object]] = {}
    for entry in entries:
        try:
            compute = models.open(entry, size)
            models.count(entry, size)
        except ValueError as error:
            if not entry.is_peer:
                raise
            yield Unable(entry=entry, height=size[0], width=size[1], reason=str(error))
        else:
            calls[entry] = call_on_noise(compute, models.device, (shape[0], models.channels(entry), *size))
        tell()
    if not calls:
        return
    rounds = take_turns(calls, models.device, seconds)
    first = next(iter(calls))
    for entry in calls:
        counts = models.count(entry, size)
        yield Measured(
            entry=entry,
            height=size[0],
            width=size[1],
            counts=counts,
            speed=summarise(rounds, entry, first, batch, counts.macs),
            memory=measure_memory(entry, models.device, batch, size) if memory else None,
            rebuilt=models.rebuilt(entry, size),
        )
        tell()


def measure_memory(entry: Entry, device: torch.device, batch: int, size: Size) -> Memory | None:
    """Open an entry in a fresh process, compute a batch three times, and ask the system; see `memory.ask`."""
    question = [entry.model, entry.engine, str(device), torch.get_num_threads(), batch, *size]
    what = f"{entry.name} by {entry.engine}, {batch} x {size[0]}x{size[1]}"
    return ask("davit.inference.side_by_side", question, what)


def _answer(model: str, engine: str, device: str, threads: int, batch: int, height: int, width: int) -> Memory | None:
    """What `measure_memory` asks, in the fresh process."""
    torch.set_num_threads(threads)
    entry, size, models = Entry(model=model, engine=engine), (height, width), Models(choose_device(device))

    def opened() -> Callable[[], object]:
        compute = models.open(entry, size)
        call = call_on_noise(compute, models.device, (batch, models.channels(entry), *size))
        if engine in (COMPILED, TIMM_COMPILED):
            call()  # compiles; what that takes is not what computing takes
        return call

    return watch(opened, models.device)


if __name__ == "__main__":
    answer(_answer(*json.loads(sys.argv[1])))
