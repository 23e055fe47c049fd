"""How fast backends compute, in turns and beside the machine's own matrix product; and what memory that takes."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from davit.inference.backends import BackendName
from davit.inference.backends.choosing import make_backend, timed
from davit.inference.backends.opening import exported_format, load_with_head, open_exported
from davit.inference.backends.protocol import Backend, Config
from davit.inference.counting import count_by_torch
from davit.inference.memory import Memory, answer, ask, watch
from davit.models.complexity import count_macs
from davit.models.config import ClassifierConfig
from davit.models.create import Model, create_model, make_model
from davit.models.segmenter_config import SegmenterConfig
from davit.models.variants import VARIANTS
from davit.preprocessing import Preprocessing

SIDE = 2048  # of the matrices
LEAST_ROUNDS = 3
TURN = 0.1  # seconds that a turn lasts at least; quick models are called many times in it
PRODUCTS = 2  # in each round, of which the faster counts
USUAL = 224  # pixels, for weights that do not say how images are prepared for them

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Round:
    """A turn of every candidate, one after the other.

    Attributes:
        product: seconds of the matrix product.
        turns: seconds of each call in the turn of each candidate.
    """

    product: float
    turns: Mapping[Any, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A value of each round: the median, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum up."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a candidate computes a batch.

    Attributes:
        images_per_second: from the mean time of a call in each round.
        milliseconds: of all calls, percentiles "p50", "p90" and "p99".
        times_first: speed over that of the first candidate in the same round; over 1 is faster.
        share_of_peak: multiply-adds per second over those of the matrix product in the same round; None where the
            multiply-adds are not known.
        peak: of the matrix product, in floating-point operations per second.
        rounds: how many there were.
        calls: in all of them.
    """

    images_per_second: Spread
    milliseconds: dict[str, float]
    times_first: Spread
    share_of_peak: Spread | None
    peak: Spread
    rounds: int
    calls: int


def open_candidates(source: str, backends: Sequence[BackendName], device: torch.device) -> dict[str, Backend]:
    """Put one model behind each backend; a file of `davit export` has its own, named as its format.

    Args:
        source: a name of `davit models`, with fresh weights for a variant, or a file.
        backends: what computes it, see `make_backend`.
        device: where to compute.

    Raises:
        ValueError: an unknown name, unusable weights, or a backend that cannot be had.
        OSError: the file cannot be read.
    """
    if format := exported_format(source):
        return {format: open_exported(source, format, device)}
    model = open_model(source)
    try:
        return {name: make_backend(model, name, device) for name in backends}
    except ValueError as error:
        if source in str(error):
            raise
        raise ValueError(f"{source}: {error}") from error


def open_model(source: str) -> Model:
    """Weights with a head, or a variant with fresh weights, in evaluation mode and with some preprocessing.

    Raises:
        ValueError: an unknown name or unusable weights.
        OSError: the file cannot be read.
    """
    model = create_model(source) if source in VARIANTS else load_with_head(source)
    if model.preprocessing is None:  # its size is all that is of use here
        model.preprocessing = Preprocessing.imagenet(USUAL, model.config.backbone.in_channels)
    return model.eval()


def caller(backend: Backend, batch: int, height: int, width: int) -> Callable[[], object]:
    """A call of a backend on noise that lies where it computes; it ends when the answer is there."""
    return call_on_noise(backend, backend.device, (batch, backend.config.backbone.in_channels, height, width))


def call_on_noise(
    compute: Callable[[Tensor], object], device: torch.device, shape: tuple[int, int, int, int]
) -> Callable[[], object]:
    """A call of anything that computes images of a shape (B, C, H, W); it ends when the answer is there."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    return partial(_finish, lambda: compute(images), device)


def take_turns(calls: Mapping[Any, Callable[[], object]], device: torch.device, seconds: float = 5.0) -> list[Round]:
    """Call the candidates in rounds, each for a turn, after one call of each that does not count.

    Args:
        calls: the candidates by name.
        device: where the matrix product of each round is computed, in float32.
        seconds: how long to go on at least; never fewer than three rounds.
    """
    square = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    product = partial(_finish, lambda: square @ square, device)
    for call in (product, *calls.values()):
        call()
    rounds: list[Round] = []
    started = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or time.perf_counter() - started < seconds:
        fastest = min(timed(product) for _ in range(PRODUCTS))
        rounds.append(Round(product=fastest, turns={name: _turn(call) for name, call in calls.items()}))
    return rounds


def summarise(rounds: Sequence[Round], name: object, first: object, batch: int, macs: int | None) -> Speed:
    """Sum up the rounds of one candidate.

    Args:
        rounds: of all candidates.
        name: which one.
        first: the candidate that it is compared with.
        batch: images in a call.
        macs: multiply-adds of an image, where known.
    """
    calls = [seconds for one in rounds for seconds in one.turns[name]]
    means = [statistics.fmean(one.turns[name]) for one in rounds]
    ratios = [statistics.fmean(one.turns[first]) / mean for one, mean in zip(rounds, means, strict=True)]
    peaks = [2 * SIDE**3 / one.product for one in rounds]
    shares = [2 * batch * (macs or 0) / mean / peak for mean, peak in zip(means, peaks, strict=True)]
    percentiles = np.percentile(calls, (50, 90, 99)).tolist()
    return Speed(
        images_per_second=Spread.of([batch / mean for mean in means]),
        milliseconds={f"p{p}": 1e3 * value for p, value in zip((50, 90, 99), percentiles, strict=True)},
        times_first=Spread.of(ratios),
        share_of_peak=None if macs is None else Spread.of(shares),
        peak=Spread.of(peaks),
        rounds=len(rounds),
        calls=len(calls),
    )


def multiply_adds(config: Config, height: int, width: int) -> int | None:
    """Multiply-adds of one image; None for detectors, whose work depends on what they find."""
    if isinstance(config, ClassifierConfig):
        return count_macs(config.backbone, height, width, config.num_classes)
    if not isinstance(config, SegmenterConfig):
        return None
    with torch.device("meta"):
        model = make_model(config)
    return count_by_torch(model, config.backbone.in_channels, height, width)


def measure_memory(
    source: str, backend: str, device: torch.device, batch: int, height: int, width: int
) -> Memory | None:
    """Open a model behind one backend in a fresh process, compute a batch three times, and ask the system.

    A process that has computed anything before keeps memory of it, so that each question takes a process of its own.

    Returns:
        What it took; None where the system does not tell (Linux does).

    Raises:
        ValueError: the process failed, as for want of memory.
    """
    question = [source, backend, str(device), torch.get_num_threads(), batch, height, width]
    return ask("davit.inference.timing", question, f"{source} by {backend}, {batch} x {height}x{width}")


def _answer(
    source: str, backend: BackendName, device: str, threads: int, batch: int, height: int, width: int
) -> Memory | None:
    """What `measure_memory` asks, in the fresh process."""
    torch.set_num_threads(threads)
    place = torch.device(device)

    def opened() -> Callable[[], object]:
        (one,) = open_candidates(source, (backend,), place).values()
        return caller(one, batch, height, width)

    return watch(opened, place)


def _finish(work: Callable[[], T], device: torch.device) -> T:
    """Compute without gradients and wait for the result."""
    with torch.inference_mode():
        result = work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return result


def _turn(call: Callable[[], object]) -> list[float]:
    seconds = [timed(call)]
    while sum(seconds) < TURN:
        seconds.append(timed(call))
    return seconds


if __name__ == "__main__":
    answer(_answer(*json.loads(sys.argv[1])))
