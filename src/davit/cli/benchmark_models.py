"""`davit benchmark models`: how fast models compute here."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

from davit.cli.measuring import (
    Size,
    check_measuring,
    choose_place,
    measured_with,
    parse_backends,
    parse_numbers,
    parse_sizes,
)

if TYPE_CHECKING:
    import torch

    from davit.inference.backends import BackendName
    from davit.inference.backends.protocol import Backend
    from davit.inference.timing import Memory, Speed

_HELP = """Measure how fast models compute: models x backends x batch x size, on noise, in float32.

  davit benchmark models davit_tiny
  davit benchmark models davit_tiny davit_small --backends eager,native --batch 1,8 --sizes 224,448
  davit benchmark models mine.safetensors mine.onnx --json

Candidates for the same work (backends of a model, and models of one architecture, such as a checkpoint and its export)
take turns of at least a tenth of a second, round by round, so that slow spells of the machine touch all of them. The
table has

  images/s       median over rounds
  p50, p90, p99  percentiles of all calls, in milliseconds; of few calls the last is the slowest
  times first    speed over that of the first candidate in the same round: median (least-most)
  memory         peak resident memory of a fresh process that has opened this model by this backend alone, while it
                 computes; Python and PyTorch, some hundred megabytes, are in it
  GMACs          multiply-adds of one image; unknown for detectors, whose work depends on what they find
  of peak        multiply-adds per second over those of PyTorch's product of two float32 matrices of 2,048 x 2,048 on
                 this machine in the same round: a yardstick, and no limit for code that is not PyTorch's, so that a
                 share may be over 1

--json has all of it with the spread over rounds, hardware and versions.
"""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A batch that several candidates compute; their names are model and backend."""

    candidates: "dict[tuple[str, str], Backend]"
    batch: int
    height: int
    width: int


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def models(
        sources: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...", help_behavior_hint="(required)")],
        *,
        backends: Annotated[str | None, arg(metavar="NAME,...")] = None,
        batch: Annotated[str, arg(metavar="N,...")] = "1,8",
        sizes: Annotated[str | None, arg(metavar="PIXELS,...")] = None,
        seconds: Annotated[float, arg(metavar="S")] = 5.0,
        threads: Annotated[int | None, arg(metavar="N")] = None,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        no_memory: bool = False,
        json: bool = False,
    ) -> int:
        """Measure models.

        Args:
            sources: Names of `davit models` (variants have fresh weights), checkpoints, files of `davit export`.
            backends: What computes weights: eager is PyTorch, native our engine for CPUs. By default both, and eager
                alone on a graphics card. Files of `davit export` have their own engine.
            batch: Images computed at once.
            sizes: Sides of square images, or height and width such as 480x640; by default each model's own.
            seconds: How long each batch and size is measured at least, by all its candidates together, with three
                rounds at least.
            threads: Threads that compute; by default as many as PyTorch takes.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one, and the CPU where native
                is among the backends.
            no_memory: Leave out memory, which takes a fresh process for each line.
            json: Print the result as JSON.
        """
        chosen = None if backends is None else parse_backends(backends)
        batches = parse_numbers("--batch", batch)
        sides = None if sizes is None else parse_sizes(sizes)
        if not sources:
            raise ValueError("name at least one model: a name of `davit models`, a checkpoint or an exported file")
        check_measuring(seconds, threads)
        place, names = choose_place(device, chosen)
        cases = _cases(sources, names, place, batches, sides)
        return _run(cases, place, seconds, memory=not no_memory, json=json)

    return tyro.cli(
        models, prog="davit benchmark models", description=_HELP, args=arguments, config=(FlagCreatePairsOff,)
    )


def _cases(
    sources: tuple[str, ...],
    backends: "list[BackendName]",
    device: "torch.device",
    batches: list[int],
    sizes: list[Size] | None,
) -> list[_Case]:
    """Open all models, so that a wrong name ends the work before it begins, and put together what is comparable."""
    from davit.inference.timing import open_candidates

    groups: list[dict[tuple[str, str], Backend]] = []
    for source in dict.fromkeys(sources):
        opened = open_candidates(source, backends, device)
        config = next(iter(opened.values())).config
        alike = [group for group in groups if next(iter(group.values())).config == config]
        if not alike:
            groups.append({})
        (alike or groups)[-1].update({(source, name): backend for name, backend in opened.items()})
    return [
        _Case(candidates=group, batch=batch, height=height, width=width)
        for group in groups
        for height, width in dict.fromkeys(sizes or [next(iter(group.values())).preprocessing.size])
        for batch in batches
    ]


def _run(cases: list[_Case], device: "torch.device", seconds: float, *, memory: bool, json: bool) -> int:
    from tqdm import tqdm

    from davit.cli.progress import Progress

    wide = max(len(source) for case in cases for source, _ in case.candidates)
    rows: list[dict[str, Any]] = []
    with Progress("measuring", "candidates", sum(len(case.candidates) for case in cases)) as progress:
        for case in cases:
            for row in _measure(case, device, seconds, memory):
                if not (json or rows):
                    tqdm.write(_heading(wide), file=sys.stdout)
                rows.append(row)
                if not json:
                    tqdm.write(_line(row, wide), file=sys.stdout)
                    sys.stdout.flush()
                progress(1)
    report = {
        "device": str(device),
        "environment": measured_with(row["backend"] for row in rows),
        "seconds": seconds,
        "results": rows,
    }
    print(dumps(report, indent=2) if json else _footer(report))
    return 0


def _measure(case: _Case, device: "torch.device", seconds: float, memory: bool) -> Iterator[dict[str, Any]]:

    from davit.inference.timing import caller, measure_memory, multiply_adds, summarise, take_turns
    from davit.records import to_json

    first, *_ = case.candidates
    shape = (case.batch, case.height, case.width)
    try:
        calls = {name: caller(backend, *shape) for name, backend in case.candidates.items()}
        rounds = take_turns(calls, device, seconds)
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a type for full graphics cards only.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise ValueError(f"{first[0]}: not enough memory for {_shape(*shape)}: {str(error).splitlines()[0]}") from error
    macs = multiply_adds(case.candidates[first].config, case.height, case.width)
    for name, backend in case.candidates.items():
        speed: Speed = summarise(rounds, name, first, case.batch, macs)
        taken: Memory | None = measure_memory(*name, backend.device, *shape) if memory else None
        yield {
            "model": name[0],
            "backend": name[1],
            "device": str(backend.device),
            "batch": case.batch,
            "height": case.height,
            "width": case.width,
            "first": list(first),
            "macs": macs,
            **to_json(speed),
            "memory": to_json(taken) if taken else None,
        }


def _shape(batch: int, height: int, width: int) -> str:
    return f"{batch} x {height}x{width}"


def _heading(wide: int) -> str:
    columns = f"{'model':<{wide}}  backend  {'images':<13} {'images/s':>8}"
    times = f"{'p50':>8} {'p90':>8} {'p99':>8} ms"
    return f"{columns}  {times}  {'times first':<18}  {'memory':>8}  {'GMACs':>6}  of peak"


def _line(row: dict[str, Any], wide: int) -> str:
    times = " ".join(f"{value:8.1f}" for value in row["milliseconds"].values())
    ratio = row["times_first"]
    alone = [row["model"], row["backend"]] == row["first"]
    told = "1" if alone else f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"
    memory = f"{row['memory']['peak'] / 1e6:,.0f} MB" if row["memory"] else "-"
    macs = "-" if row["macs"] is None else f"{row['macs'] / 1e9:.2f}"
    share = f"{row['share_of_peak']['median']:.2f}" if row["share_of_peak"] else "-"
    left = f"{row['model']:<{wide}}  {row['backend']:<7}  {_shape(row['batch'], row['height'], row['width']):<13}"
    rate = f"{row['images_per_second']['median']:8,.1f}"
    return f"{left} {rate}  {times}     {told:<18}  {memory:>8}  {macs:>6}  {share:>7}"


def _footer(report: dict[str, Any]) -> str:
    environment, rows = report["environment"], report["results"]
    peaks = [row["peak"]["median"] / 1e9 for row in rows]
    fewest = min(row["rounds"] for row in rows)
    where = environment["processor"] if report["device"] == "cpu" else report["device"]
    return (
        f"\n{where}, PyTorch {environment['torch']}, threads: {environment['threads']}, rounds: {fewest} or more, "
        f"matrix product: {min(peaks):,.0f} to {max(peaks):,.0f} GFLOP/s"
    )
