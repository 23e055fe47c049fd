"""What `davit plan` answers: a ranked table, or JSON."""

from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING, Any

from davit.cli.measuring import Size, measured_with

if TYPE_CHECKING:
    import torch

    from davit.inference.backends import BackendName
    from davit.inference.planning import Demand, Verdict
    from davit.weights.published import Task

METRICS: "dict[Task, str]" = {"classification": "top-1", "detection": "box AP", "segmentation": "mIoU"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked of this machine.

    Attributes:
        demand: the limits.
        size: height and width of the images.
        task: what stands on the backbone.
        device: where it computes.
        backends: what may compute it.
    """

    demand: "Demand"
    size: Size
    task: "Task"
    device: "torch.device"
    backends: "list[BackendName]"


def report(request: Request, verdicts: "list[Verdict]", *, json: bool) -> int:
    """Print the answer.

    Returns:
        0, or 1 where nothing fits.
    """
    fitting = [verdict for verdict in verdicts if verdict.fits]
    if json:
        print(dumps(_to_json(request, verdicts), indent=2))
    else:
        print("\n".join(_lines(request, fitting, [verdict for verdict in verdicts if not verdict.fits])))
    return 0 if fitting else 1


def _to_json(request: Request, verdicts: "list[Verdict]") -> dict[str, Any]:
    from davit.inference.planning import nearest_miss
    from davit.records import to_json
    from davit.weights.published import published

    def row(verdict: "Verdict") -> dict[str, Any]:
        printed = published(verdict.option.variant, request.task, verdict.option.head)
        return {
            **to_json(verdict),
            "fits": verdict.fits,
            "published": printed and to_json(printed),
            "public_weights": _public_weights(verdict.option.variant, request.task),
        }

    miss = None if any(verdict.fits for verdict in verdicts) else nearest_miss(verdicts)
    return {
        "device": str(request.device),
        "environment": measured_with(request.backends),
        "task": request.task,
        "size": list(request.size),
        "demand": to_json(request.demand),
        "results": [row(verdict) for verdict in verdicts],
        "nearest": miss and row(miss),
    }


def _lines(request: Request, fitting: "list[Verdict]", others: "list[Verdict]") -> list[str]:
    from davit.explain.tables import aligned
    from davit.inference.planning import nearest_miss

    lines = [_asked(request), ""]
    if fitting:
        head = ["", "variant", "by", "p50 ms", "p90", "p99", "images/s", "memory", METRICS[request.task], "weights"]
        rows = [_row(rank, verdict, request) for rank, verdict in enumerate(fitting, 1)]
        lines += ["fits, best published score first:", *aligned([head, *rows], left={1, 2, 9})]
    else:
        miss = nearest_miss(others)
        assert miss is not None
        lines += [f"nothing fits. Nearest, {miss.excess:.2f} times a limit: {name_of(miss)} by {miss.option.backend}"]
    if others:
        lines += ["", "does not fit, nearest first:"]
        lines += [f"  {name_of(one)} by {one.option.backend}: {'; '.join(one.failures)}" for one in others]
    return [*lines, "", *_sources(fitting, request), _measured(fitting + others), _where(request)]


def _row(rank: int, verdict: "Verdict", request: Request) -> list[str]:
    from davit.inference.planning import show_bytes
    from davit.weights.published import published

    timing, option = verdict.timing, verdict.option
    assert timing is not None
    printed = published(option.variant, request.task, option.head)
    score = "none" if printed is None else f"{printed.score:g} at {printed.size} px"
    times = [f"{timing.milliseconds[name]:,.1f}" for name in ("p50", "p90", "p99")]
    memory = "-" if verdict.memory is None else show_bytes(verdict.memory)
    weights = ", ".join(_public_weights(option.variant, request.task)) or "none public"
    rate = f"{timing.images_per_second:,.1f}"
    return [str(rank), name_of(verdict), option.backend, *times, rate, memory, score, weights]


def name_of(verdict: "Verdict") -> str:
    """The variant and what stands on it."""
    option = verdict.option
    return f"{option.variant} {option.head}".rstrip()


def _public_weights(variant: str, task: "Task") -> list[str]:
    """Names of `davit models` that give answers to this task."""
    from davit.weights.catalog import WEIGHTS

    return [
        name
        for name, entry in WEIGHTS.items()
        if task == "classification" and entry.variant == variant and entry.num_classes
    ]


def _asked(request: Request) -> str:
    from davit.inference.planning import show_bytes, show_seconds

    demand = request.demand
    told = [f"{request.task}, {demand.batch} x {request.size[0]}x{request.size[1]}"]
    if demand.latency is not None:
        told.append(f"{demand.percentile} at most {show_seconds(demand.latency)}")
    if demand.memory is not None:
        told.append(f"memory at most {show_bytes(demand.memory)}")
    if demand.throughput is not None:
        told.append(f"at least {demand.throughput:.3g} images/s")
    return ", ".join(told)


def _sources(fitting: "list[Verdict]", request: Request) -> list[str]:
    from davit.weights.published import published

    printed = [published(one.option.variant, request.task, one.option.head) for one in fitting]
    told = dict.fromkeys(f"{row.pretraining}: {row.source}" for row in printed if row)
    return [f"published, trained on {text}" for text in told]


def _measured(verdicts: "list[Verdict]") -> str:
    timings = [verdict.timing for verdict in verdicts if verdict.timing]
    known = [timing.when for timing in timings if timing.when]
    since = f" (since {min(known)}; --fresh measures anew)" if known else ""
    estimated = len(verdicts) - len(timings)
    return f"measured now: {len(timings) - len(known)}, before: {len(known)}{since}; ruled out by estimate: {estimated}"


def _where(request: Request) -> str:
    found = measured_with(request.backends)
    place = found["processor"] if request.device.type == "cpu" else str(request.device)
    return f"{place}, {found['threads']} threads, PyTorch {found['torch']}, davit {found['davit']}, float32"
