"""The fastest way to compute a model on this machine: measured once, then remembered."""

import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from davit.inference.backends import BackendName
from davit.inference.backends.eager import EagerBackend, choose_device
from davit.inference.backends.native.backend import NativeBackend
from davit.inference.backends.native.build import NativeError, cache_folder, source_key
from davit.inference.backends.protocol import Backend
from davit.inference.backends.remembered import read_remembered, remember
from davit.naming import unknown_name
from davit.records import to_json

NAMES: tuple[BackendName, ...] = get_args(BackendName)
ROUNDS = 3  # of each candidate in turns, after one that does not count
LONGEST = 5.0  # seconds; slower candidates are compared by a single round


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which backend computes, and why.

    Attributes:
        backend: its name.
        seconds: median time of each candidate on the batch that was measured; empty where there was nothing to measure.
        reason: in words.
    """

    backend: str
    seconds: dict[str, float]
    reason: str


def make_backend(
    model: nn.Module,
    name: BackendName = "eager",
    device: str | torch.device | None = None,
    *,
    tell: Callable[[str], None] | None = None,
) -> Backend:
    """Put a model behind a backend.

    Args:
        model: a classifier, detector or segmenter with its preprocessing.
        name: "eager" is PyTorch, "native" the engine for CPUs, "auto" the faster of the two on this machine.
        device: where to compute; None takes the graphics card if there is one, and for "native" the CPU.
        tell: called with one line once "auto" has chosen.

    Raises:
        ValueError: an unknown name or device, a model without preprocessing, or the engine cannot be had or does not
            know the architecture.
    """
    if name not in NAMES:
        raise unknown_name("backend", name, NAMES)
    if name == "native" and device is not None and choose_device(device).type != "cpu":
        raise ValueError(
            f"the native backend computes on the CPU, not on {device}: leave the device out, or take eager"
        )
    if name == "native":
        return NativeBackend(model)
    if name == "eager" or choose_device(device).type != "cpu":
        return EagerBackend(model, device)
    return AutoBackend(model, tell)


class AutoBackend(EagerBackend):
    """PyTorch or the native engine on the CPU, whichever was faster on the first batch.

    What was chosen for a model, batch shape and number of threads is kept in the user's cache folder, so that the next
    process does not measure again.

    Attributes:
        choice: what was chosen; None before the first batch.
    """

    def __init__(self, model: nn.Module, tell: Callable[[str], None] | None = None) -> None:
        """Prepare both.

        Raises:
            ValueError: a model without preprocessing.
        """
        super().__init__(model, "cpu")
        self.choice: Choice | None = None
        self._tell = tell
        self._candidates: dict[str, Callable[[Tensor], Any]] = {"eager": super().__call__}
        self._missing = add_native(self._candidates, lambda: NativeBackend(model))

    def __call__(self, images: Tensor) -> Any:  # (B, C, H, W)
        """Return the outputs on the device of the images; see `Backend`."""
        if self.choice is None:
            self.choice = choose(self._candidates, images, to_json(self.config), self._missing)
            if self._tell:
                self._tell(self.choice.reason)
        return self._candidates[self.choice.backend](images)


def add_native(candidates: dict[str, Callable[..., Any]], make: Callable[[], Callable[..., Any]]) -> str:
    """Add the engine to the candidates; where it cannot be had, return why, and warn if it is the machine's fault."""
    try:
        candidates["native"] = make()
    except NativeError as error:
        warnings.warn(f"{error}. Computing with PyTorch instead", UserWarning, stacklevel=3)
        return str(error)
    except ValueError as error:
        return str(error)
    return ""


def choose(
    candidates: Mapping[str, Callable[[Tensor], Any]], images: Tensor, model: object, missing: str = ""
) -> Choice:
    """Measure the candidates on a batch, or remember what an earlier process measured for such a batch.

    Args:
        candidates: by name; all give the same answer.
        images: a batch.
        model: JSON values that tell what the candidates compute, and with what settings, from anything else.
        missing: why there is but one candidate, where that is so.
    """
    if len(candidates) == 1:
        (name,) = candidates
        return Choice(backend=name, seconds={}, reason=f"computing with {name}: {missing}")
    key = _key(model, images)
    known = read_remembered(choices_file())
    with suppress(KeyError, TypeError):
        choice = Choice(**known[key])
        if choice.backend in candidates:
            return choice
    seconds = measure({name: _call(candidate, images) for name, candidate in candidates.items()})
    best = min(seconds, key=seconds.__getitem__)
    times = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in sorted(seconds.items(), key=lambda one: one[1]))
    shape = "x".join(str(size) for size in images.shape)
    reason = f"computing with {best}, the fastest for {shape} on {torch.get_num_threads()} threads: {times}"
    choice = Choice(backend=best, seconds=seconds, reason=reason)
    remember(choices_file(), {**known, key: asdict(choice)})
    return choice


def measure(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each call, taken in turns, after one of each that does not count."""
    slow = max([timed(call) for call in calls.values()]) > LONGEST
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 if slow else ROUNDS):
        for name, call in calls.items():
            times[name].append(timed(call))
    return {name: statistics.median(values) for name, values in times.items()}


def _call(candidate: Callable[[Tensor], Any], images: Tensor) -> Callable[[], object]:
    return lambda: candidate(images)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def choices_file() -> Path:
    """Where choices are kept: `davit/backends.json` in the user's cache folder; it may be deleted at any time."""
    return cache_folder().parent / "backends.json"


def _key(model: object, images: Tensor) -> str:
    parts = (model, list(images.shape), torch.get_num_threads(), torch.__version__, source_key())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
