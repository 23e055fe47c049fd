"""`davit plan`: what fits on this machine, and what training would cost."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from davit.cli.measuring import check_measuring, choose_place, parse_backends, parse_size
from davit.cli.plan_answers import Request, name_of, report
from davit.cli.units import parse_bytes, parse_duration, parse_flops, parse_rate

if TYPE_CHECKING:
    import torch

    from davit.inference.backends import BackendName
    from davit.inference.planning import Verdict

TaskName = Literal["classification", "detection", "segmentation"]

_HELP = """Find the variants and backends that keep to limits on this machine, by measuring them, smallest work first:

  davit plan --target-latency 50ms --size 224
  davit plan --target-latency 2s --memory 2GB --size 512 --task segmentation
  davit plan --throughput 20/s --batch 8 --backends native --json

What fits is ranked by published accuracy. What a smaller variant's measurement rules out is not measured, and is told
as estimated: it takes at least the smaller one's time, and that of its further multiply-adds at a rate that this
machine's matrix product does not reach. Measurements are kept in the user's cache folder; --fresh makes them anew.
Weights are fresh and pictures are noise, where detectors find nothing: the masks of found objects come on top. The exit
code is 1 where nothing fits; the nearest is told.

Or tell what training costs, estimated from the arithmetic of each recipe:

  davit plan --train --devices 8 --device-memory 80GB --flops 312T
  davit plan --train imagenet.davit_base coco.mask_rcnn_1x --devices 16 --device-memory 40GB
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def plan(
        recipes: Annotated[
            Positional[tuple[str, ...]], arg(metavar="[RECIPE...] [FIELD=VALUE...]", help_behavior_hint="")
        ] = (),
        /,
        *,
        target_latency: Annotated[str | None, arg(metavar="50ms", help_behavior_hint="")] = None,
        memory: Annotated[str | None, arg(metavar="2GB", help_behavior_hint="")] = None,
        throughput: Annotated[str | None, arg(metavar="20/s", help_behavior_hint="")] = None,
        size: Annotated[str, arg(metavar="PIXELS")] = "224",
        batch: Annotated[int, arg(metavar="N")] = 1,
        task: TaskName = "classification",
        percentile: Literal["p50", "p90", "p99"] = "p90",
        variants: Annotated[str | None, arg(metavar="NAME,...", help_behavior_hint="")] = None,
        backends: Annotated[str | None, arg(metavar="NAME,...", help_behavior_hint="")] = None,
        seconds: Annotated[float, arg(metavar="S")] = 2.0,
        threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
        device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
        fresh: bool = False,
        train: bool = False,
        devices: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
        device_memory: Annotated[str | None, arg(metavar="80GB", help_behavior_hint="")] = None,
        flops: Annotated[str | None, arg(metavar="312T", help_behavior_hint="")] = None,
        utilisation: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None,
        json: bool = False,
    ) -> int:
        """Plan.

        Args:
            recipes: With --train: recipes, by default all that can be planned, and fields to set otherwise.
            target_latency: What a batch may take, such as 50ms or 0.05s.
            memory: What a process may have resident at most, such as 2GB or 500MiB, Python and PyTorch included; on a
                graphics card, what tensors may take there.
            throughput: Images a second, at least, such as 20/s.
            size: Side of square images, or height and width such as 480x640.
            batch: Images computed at once.
            task: What stands on the backbone: a classifier, Mask R-CNN and RetinaNet, or UPerNet.
            percentile: Of the calls that has to keep to the latency.
            variants: Of `davit models`; by default all but Florence-2's, which have no scores of these tasks.
            backends: eager is PyTorch, native our engine for CPUs. By default both, and eager alone on a graphics card.
            seconds: How long each is measured at least, with three rounds at least.
            threads: Threads that compute; by default as many as PyTorch takes.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one, and the CPU where native
                is among the backends.
            fresh: Measure anew what was measured before.
            train: Tell the costs of training instead.
            devices: With --train: devices, by default 1.
            device_memory: With --train: memory of one; a card sold as 80 GB has about 79GiB.
            flops: With --train: operations a second that the maker of a device states, such as 312T.
            utilisation: With --train: the share of --flops that training reaches; by default 0.205, an A100's.
            json: Print the result as JSON.
        """
        limits = {"--target-latency": target_latency, "--memory": memory, "--throughput": throughput}
        hardware: dict[str, object] = {
            "--devices": devices,
            "--device-memory": device_memory,
            "--flops": flops,
            "--utilisation": utilisation,
        }
        _check_mode(train, recipes, limits, hardware)
        if train:
            from davit.cli.plan_train import plan_training
            from davit.train.training_cost import UTILISATION, Hardware

            return plan_training(
                recipes,
                Hardware(
                    devices=1 if devices is None else devices,
                    memory=None if device_memory is None else parse_bytes("--device-memory", device_memory),
                    flops=None if flops is None else parse_flops("--flops", flops),
                    utilisation=UTILISATION if utilisation is None else utilisation,
                ),
                json=json,
            )
        from davit.inference.planning import Demand

        demand = Demand(
            latency=None if target_latency is None else parse_duration("--target-latency", target_latency),
            memory=None if memory is None else parse_bytes("--memory", memory),
            throughput=None if throughput is None else parse_rate("--throughput", throughput),
            batch=batch,
            percentile=percentile,
        )
        check_measuring(seconds, threads)
        place, names = _place(device, backends)
        request = Request(demand=demand, size=parse_size(size), task=task, device=place, backends=names)
        return report(request, _judge(request, _variants(variants), seconds, fresh=fresh, quiet=json), json=json)

    return tyro.cli(plan, prog="davit plan", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _check_mode(
    train: bool, recipes: Sequence[str], limits: dict[str, str | None], hardware: dict[str, object]
) -> None:
    """Refuse options of the other mode rather than pass them over."""
    if train:
        if given := [flag for flag, value in limits.items() if value is not None]:
            raise ValueError(f"{' and '.join(given)} cannot go with --train, which plans training: leave one out")
        return
    if given := [flag for flag, value in hardware.items() if value is not None]:
        raise ValueError(f"{' and '.join(given)} go with --train")
    if recipes:
        raise ValueError(f"recipes such as {recipes[0]} go with --train")


def _judge(request: Request, variants: list[str], seconds: float, *, fresh: bool, quiet: bool) -> "list[Verdict]":
    """Measure until the answer is known."""
    from davit.cli.progress import Progress
    from davit.inference.memory import available_memory
    from davit.inference.planning import plan
    from davit.inference.stopwatch import Remembering, Stopwatch, options_for

    batch, device = request.demand.batch, request.device
    options = options_for(request.task, variants, request.backends, request.size)
    where = [_device_name(device), batch, *request.size, seconds]
    measure = Remembering(Stopwatch(device, batch, request.size, seconds), where, fresh=fresh)
    with Progress("measuring", "options", len(options)) as progress:

        def tell(verdict: "Verdict") -> None:
            progress(1)
            if not quiet:
                _tell(verdict)

        return plan(request.demand, options, measure, available_memory(), tell)


def _variants(text: str | None) -> list[str]:
    from davit.models.variants import VARIANTS, variant

    if text is None:
        return [name for name in VARIANTS if "florence2" not in name]
    named = list(dict.fromkeys(text.split(",")))
    for name in named:
        variant(name)  # refuses unknown ones
    return named


def _place(device: str | None, backends: str | None) -> "tuple[torch.device, list[BackendName]]":
    """Where to compute, and by what; without a compiler the engine is left out, unless it was asked for."""
    from davit.inference.backends.native.build import NativeError, load_library

    place, names = choose_place(device, None if backends is None else parse_backends(backends))
    if backends is None and "native" in names:
        try:
            load_library()
        except NativeError as error:
            print(f"without the native backend: {error}", file=sys.stderr)
            names.remove("native")
    return place, names


def _device_name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _tell(verdict: "Verdict") -> None:
    """A line for each option as it is judged, on stderr: the answer comes last."""
    from tqdm import tqdm

    said = "fits" if verdict.fits else "; ".join(verdict.failures)
    tqdm.write(f"{name_of(verdict)} by {verdict.option.backend}: {said}", file=sys.stderr)
