"""Which variants and backends keep to given limits: measured smallest work first, until the answer is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Percentile = Literal["p50", "p90", "p99"]
SLACK = 1.2  # how much faster than the machine's matrix product anything may be expected to compute


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Limits; None where anything goes.

    Attributes:
        latency: seconds that a call may take.
        memory: bytes that a process may have resident, or tensors may take on a graphics card.
        throughput: images a second, at least.
        batch: images in a call.
        percentile: of the calls that has to keep to the latency.
    """

    latency: float | None = None
    memory: int | None = None
    throughput: float | None = None
    batch: int = 1
    percentile: Percentile = "p90"

    def __post_init__(self) -> None:
        """Refuse limits that ask for nothing or cannot be."""
        if self.latency is None and self.memory is None and self.throughput is None:
            raise ValueError(
                "say what must hold: --target-latency 50ms, --memory 2GB or --throughput 20/s, or several of them"
            )
        if self.batch < 1:
            raise ValueError(f"--batch must be at least 1, got {self.batch}")

    @property
    def seconds(self) -> float:
        """What a call may take for the sake of both latency and throughput."""
        by_throughput = math.inf if self.throughput is None else self.batch / self.throughput
        return min(by_throughput, math.inf if self.latency is None else self.latency)


@dataclass(frozen=True, kw_only=True)
class Option:
    """A variant by a backend.

    Attributes:
        variant: its name.
        backend: what computes it.
        head: what stands on the backbone: "mask_rcnn", "retinanet", "upernet"; empty for the classifier.
        macs: multiply-adds of one image; of detectors, those of the backbone.
        weights: bytes of the weights, or of the backbone's.
        score: published, in percent; None where none is.
    """

    variant: str
    backend: str
    head: str
    macs: int
    weights: int
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A measurement.

    Attributes:
        milliseconds: of all calls, percentiles "p50", "p90" and "p99".
        images_per_second: median over rounds.
        calls: how many there were.
        peak: multiply-adds per second of the machine's matrix product, in the best of the same rounds.
        when: date; empty where it was measured just now.
    """

    milliseconds: dict[str, float]
    images_per_second: float
    calls: int
    peak: float
    when: str = ""


class Measure(Protocol):
    """What asks the machine."""

    def time(self, option: Option) -> Timing:
        """Measure how fast an option computes; MemoryError where there is no room for it."""
        ...

    def memory(self, option: Option) -> int | None:
        """Measure the peak memory of a process that computes it; None where the system does not tell."""
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of an option.

    Attributes:
        option: which one.
        timing: as measured; None where it was ruled out before.
        memory: bytes as measured; None where they were not.
        least_seconds: estimated: a call cannot take less; None where it was measured or not estimated.
        least_memory: estimated bytes that it takes at least; None likewise.
        failures: why it does not fit; empty where it does.
        excess: how far it is from fitting: the largest ratio of a value to its limit; at most 1 where it fits.
    """

    option: Option
    timing: Timing | None = None
    memory: int | None = None
    least_seconds: float | None = None
    least_memory: int | None = None
    failures: tuple[str, ...] = ()
    excess: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether it keeps to every limit."""
        return not self.failures


def plan(
    demand: Demand,
    options: Sequence[Option],
    measure: Measure,
    available: float = math.inf,
    tell: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Judge all options: what a smaller one's measurement rules out is not measured.

    Args:
        demand: the limits.
        options: what there is.
        measure: asks the machine.
        available: bytes that the machine has free; what takes more is not tried.
        tell: called with each verdict as it is found.

    Returns:
        Those that fit, the best published score first and the fastest among equals, then the others, the nearest first.
    """
    before: dict[tuple[str, str], Verdict] = {}
    verdicts: list[Verdict] = []
    for option in sorted(options, key=lambda option: (option.macs, option.backend)):
        chain = (option.backend, option.head)
        verdict = _rule_out(demand, option, before.get(chain), available) or _judge(demand, option, measure)
        if verdict.timing is not None:
            before[chain] = verdict
        tell(verdict)
        verdicts.append(verdict)
    return sorted(verdicts, key=_order)


def nearest_miss(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Of the options that do not fit, the one that is nearest to it."""
    return min((verdict for verdict in verdicts if not verdict.fits), key=lambda v: v.excess, default=None)


def _order(verdict: Verdict) -> tuple[float, ...]:
    if not verdict.fits:
        return 1, verdict.excess
    assert verdict.timing
    score = -math.inf if verdict.option.score is None else verdict.option.score
    return 0, -score, verdict.timing.milliseconds["p50"]


def _rule_out(demand: Demand, option: Option, smaller: Verdict | None, available: float) -> Verdict | None:
    """Refuse what cannot fit, given the last smaller option that was measured by the same backend and head."""
    least_memory, least = option.weights, None
    if smaller is not None and smaller.memory is not None:
        least_memory = max(least_memory, smaller.memory + option.weights - smaller.option.weights)
    if smaller is not None and smaller.timing is not None:
        more = demand.batch * (option.macs - smaller.option.macs)
        least = smaller.timing.milliseconds["p50"] / 1e3 + more / (SLACK * smaller.timing.peak)
    limit = available if demand.memory is None else min(available, demand.memory)
    failures: list[str] = []
    if least is not None and least > demand.seconds:
        told, allowed = _apart(show_seconds, least, demand.seconds)
        failures.append(f"a call takes {told} at least (estimated), {allowed} are allowed")
    if least_memory > limit:
        whose = "is the limit" if demand.memory == limit else "this machine has free"
        taken, most = _apart(show_bytes, least_memory, limit)
        failures.append(f"takes {taken} at least (estimated), {most} {whose}")
    if not failures:
        return None
    return Verdict(
        option=option,
        least_seconds=least,
        least_memory=least_memory,
        failures=tuple(failures),
        excess=max(least_memory / limit, 0.0 if least is None else least / demand.seconds),
    )


def _judge(demand: Demand, option: Option, measure: Measure) -> Verdict:
    """Measure an option: its speed, and its memory if the speed is right or memory is all that counts."""
    try:
        timing = measure.time(option)
    except MemoryError:
        why = "takes more memory than this machine has free"
        return Verdict(option=option, failures=(why,), excess=math.inf)
    failures: list[str] = []
    ratios = [0.0]
    if demand.latency is not None:
        taken = timing.milliseconds[demand.percentile] / 1e3
        ratios.append(taken / demand.latency)
        if taken > demand.latency:
            told, allowed = _apart(show_seconds, taken, demand.latency)
            failures.append(f"{demand.percentile} is {told}, {allowed} are allowed")
    if demand.throughput is not None:
        ratios.append(demand.throughput / timing.images_per_second)
        if timing.images_per_second < demand.throughput:
            failures.append(f"{timing.images_per_second:.3g} images/s, {demand.throughput:.3g} are asked for")
    memory = None if failures else measure.memory(option)
    if demand.memory is not None and not failures:
        if memory is None:
            failures.append("its memory cannot be measured on this system")
            ratios.append(math.inf)
        else:
            ratios.append(memory / demand.memory)
            if memory > demand.memory:
                told, most = _apart(show_bytes, memory, demand.memory)
                failures.append(f"takes {told}, {most} is the limit")
    return Verdict(option=option, timing=timing, memory=memory, failures=tuple(failures), excess=max(ratios))


def _apart(show: Callable[[float, int], str], value: float, limit: float) -> tuple[str, str]:
    """A value and the limit that it passes, with as many digits as tell them apart."""
    digits = next((digits for digits in range(3, 16) if show(value, digits) != show(limit, digits)), 16)
    return show(value, digits), show(limit, digits)


def show_seconds(seconds: float, digits: int = 3) -> str:
    """In milliseconds below a second."""
    return f"{1e3 * seconds:.{digits}g} ms" if seconds < 1 else f"{seconds:.{digits}g} s"


def show_bytes(size: float, digits: int = 3) -> str:
    """In MB below a GB."""
    return f"{size / 1e9:.{digits - 1}f} GB" if size >= 1e9 else f"{size / 1e6:.{digits - 3}f} MB"
