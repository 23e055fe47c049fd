"""`davit compare`: DaViT beside other architectures, on this machine and in print."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from davit.cli.measuring import (
    Size,
    check_measuring,
    choose_place,
    measured_with,
    parse_backends,
    parse_sizes,
)

if TYPE_CHECKING:
    import torch

    from davit.explain.compare_models import Comparison
    from davit.inference.backends import BackendName
    from davit.inference.side_by_side import Entry, Measured, Models

SIZES = "224,384,512"
FAR = (2, 4)  # times the largest size: multiply-adds are counted there too

_HELP = """Compare DaViT with Swin, SwinV2, FocalNet, PVTv2, MLP-Mixer, ViT and ConvNeXt: what they cost on this
machine, beside the accuracy that is published.

  davit compare davit_tiny
  davit compare davit_small davit_base --with swin_small,swin_base,convnext_base --sizes 224,448 --out comparison
  davit compare mine.safetensors --with vit_small,resnet50 --sizes 480x640 --json
  davit compare davit_tiny --with swin_tiny --device cuda --batch 64 --compile

DaViT is computed by our backends, peers by timm with fresh weights, all on noise in float32; the column "by" tells.
All candidates of a size take turns, round by round, so that slow spells of the machine touch all of them.

  params, GMACs      parameters; multiply-adds of one image, counted by torch.utils.flop_counter for all alike
  images/s, p50..    median over rounds; percentiles of all calls, in milliseconds
  memory             what a fresh process grows by while it computes this model alone, weights with it; of tensors on
                     the card where a graphics card computes
  top-1              as published, in percent of ImageNet-1k, at the size and after the training that stands below
  e                  cost = a * pixels^e, fitted to the measured times, and to multiply-adds at these sizes and at twice
                     and four times the largest: 1 is linear in the number of pixels, 2 quadratic

Models of one size, such as Mixer, ViT and Swin, are built anew for each size, which is said below the table.
"""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is to be measured."""

    entries: "list[Entry]"
    sizes: list[Size]
    batch: int
    seconds: float
    memory: bool
    json: bool


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def compare(
        models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...", help_behavior_hint="(required)")],
        *,
        peers: Annotated[str | None, arg(name="with", metavar="NAME,...", help_behavior_hint="")] = None,
        sizes: Annotated[str, arg(metavar="PIXELS,...")] = SIZES,
        batch: Annotated[int, arg(metavar="N")] = 1,
        backends: Annotated[str | None, arg(metavar="NAME,...", help_behavior_hint="")] = None,
        compile: bool = False,
        seconds: Annotated[float, arg(metavar="S")] = 10.0,
        threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
        device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
        no_memory: bool = False,
        out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
        json: bool = False,
    ) -> int:
        """Compare models.

        Args:
            models: Names of `davit models` (variants have fresh weights), checkpoints, files of `davit export`.
            peers: Short names such as swin_tiny, swinv2_tiny, focalnet_tiny, pvt_v2_b2, mixer_b16, vit_small,
                convnext_tiny, or any model of timm; "none" for none. By default one of each family, as large as the
                first model as far as there is one.
            sizes: Sides of square images, or height and width such as 480x640.
            batch: Images computed at once.
            backends: What computes DaViT: eager is PyTorch, native our engine for CPUs. By default both, and eager
                alone on a graphics card.
            compile: Measure PyTorch's compiler too, for all models; that takes a minute or so for each of them.
            seconds: How long each size is measured at least, by all candidates together, with three rounds at least.
            threads: Threads that compute; by default as many as PyTorch takes.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one, and the CPU where native
                is among the backends.
            no_memory: Leave out memory, which takes a fresh process for each line.
            out: Write a page (compare.html), plots (accuracy.png, growth.png) and numbers (compare.json) into a folder.
            json: Print the result as JSON.
        """
        chosen = None if backends is None else parse_backends(backends)
        squares = parse_sizes(sizes)
        if not models:
            raise ValueError("name at least one model: a name of `davit models`, a checkpoint or an exported file")
        if batch < 1:
            raise ValueError(f"--batch must be at least 1, got {batch}")
        check_measuring(seconds, threads)
        if out:
            from davit.explain.plane_png import need_matplotlib

            need_matplotlib()  # now, not after minutes of measuring
        place, names = choose_place(device, chosen)
        opened, entries = _entries(models, peers, names, place, squares[0], compiled=compile)
        request = _Request(
            entries=entries, sizes=squares, batch=batch, seconds=seconds, memory=not no_memory, json=json
        )
        return _finish(_measure(request, opened), out, json=json)

    return tyro.cli(compare, prog="davit compare", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _entries(
    models: Sequence[str],
    peers: str | None,
    backends: "list[BackendName]",
    device: "torch.device",
    size: Size,
    *,
    compiled: bool,
) -> "tuple[Models, list[Entry]]":
    """Open all models of ours and name all peers, so that a wrong name ends the work before it begins."""
    from davit.inference.backends.opening import exported_format
    from davit.inference.peers import timm_name
    from davit.inference.side_by_side import COMPILED, TIMM, TIMM_COMPILED, Entry, Models
    from davit.weights.published import nearest_peers

    asked = "" if peers in (None, "none") else peers
    named = [timm_name(name) for name in asked.split(",") if name]
    opened = Models(device)
    entries: list[Entry] = []
    for model in dict.fromkeys(models):
        format = exported_format(model)
        engines = [format] if format else [*backends, *([COMPILED] if compiled else [])]
        entries += [Entry(model=model, engine=engine) for engine in engines]
    for entry in entries:
        opened.open(entry, size)
    if peers is None:
        named = [row.model for row in nearest_peers(opened.count(entries[0], size).parameters)]
    by_timm = [TIMM, *([TIMM_COMPILED] if compiled else [])]
    return opened, entries + [Entry(model=name, engine=engine) for name in dict.fromkeys(named) for engine in by_timm]


def _measure(request: _Request, models: "Models") -> "Comparison":
    from davit.cli.progress import Progress
    from davit.explain.compare_models import Comparison
    from davit.inference.side_by_side import Measured, Unable, measure
    from davit.weights.published import nearest_published_only

    rows: list[Measured] = []
    unable: list[Unable] = []
    with Progress("comparing", "steps", 2 * len(request.entries) * len(request.sizes)) as progress:
        for size in request.sizes:
            found = measure(
                models,
                request.entries,
                size,
                request.batch,
                seconds=request.seconds,
                memory=request.memory,
                tell=lambda: progress(1),
            )
            for each in found:
                if isinstance(each, Unable):
                    unable.append(each)
                    continue
                rows.append(each)
                if not request.json:
                    _print_row(each, request.entries, first=len(rows) == 1)
            models.close_fixed(size)
    entries = dict.fromkeys(row.entry for row in rows)
    own = next(row.entry for row in rows if not row.entry.is_peer)
    return Comparison(
        rows=tuple(rows),
        unable=tuple(unable),
        macs=_count(models, entries, request.sizes),
        printed_macs=_count_printed(models, entries),
        forms=_forms(models, own, request.sizes),
        form_of=own.model,
        others=tuple(nearest_published_only(models.count(own, request.sizes[0]).parameters)),
        batch=request.batch,
        device=str(models.device),
        environment={**measured_with(["timm", *(row.entry.engine for row in rows)]), "seconds": request.seconds},
    )


def _far(sizes: Sequence[Size]) -> list[Size]:
    """The sizes, and multiples of the largest."""
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    return [*sizes, *((height * times, width * times) for times in FAR)]


def _count(models: "Models", entries: "Iterable[Entry]", sizes: Sequence[Size]) -> "dict[Entry, dict[Size, int]]":
    """Multiply-adds at the sizes and at larger ones, where a model computes them."""
    found: dict[Entry, dict[Size, int]] = {entry: {} for entry in entries}
    for entry, macs in found.items():
        for size in _far(sizes):
            with suppress(ValueError):
                macs[size] = models.count(entry, size).macs
    return found


def _count_printed(models: "Models", entries: "Iterable[Entry]") -> "dict[Entry, int]":
    """Multiply-adds at the size of the published accuracy."""
    from davit.explain.compare_models import printed_score

    found: dict[Entry, int] = {}
    for entry in entries:
        if printed := printed_score(entry):
            with suppress(ValueError):
                found[entry] = models.count(entry, (printed.size, printed.size)).macs
    return found


def _forms(models: "Models", entry: "Entry", sizes: Sequence[Size]) -> dict[str, dict[Size, float]]:
    from davit.inference.growth import closed_forms

    return closed_forms(models.config(entry).backbone, _far(sizes))


def _print_row(row: "Measured", entries: "Sequence[Entry]", *, first: bool) -> None:
    from tqdm import tqdm

    from davit.explain.compare_models import HEAD, line

    wide = max(len(entry.name) for entry in entries), max(len(entry.engine) for entry in entries)
    for cells in (HEAD, line(row)) if first else (line(row),):
        tqdm.write(_columns(cells, wide), file=sys.stdout)
    sys.stdout.flush()


def _columns(cells: Sequence[str], wide: tuple[int, int]) -> str:
    widths = (9, 8, 7, 9, 8, 8, 8, 5, 8, 5)
    rest = "  ".join(cell.rjust(width) for cell, width in zip(cells[2:], widths, strict=True))
    return f"{cells[0]:<{wide[0]}}  {cells[1]:<{wide[1]}}  {rest}"


def _finish(comparison: "Comparison", out: Path | None, *, json: bool) -> int:
    from davit.explain.compare_models import growth_table, notes, source_line, sources, where
    from davit.explain.tables import aligned

    if json:
        print(dumps(comparison.to_json(), indent=2))
    else:
        if rows := growth_table(comparison):
            print("\ngrowth with the image, cost = a * pixels^e (1 linear, 2 quadratic)")
            print("\n".join(f"  {text}" for text in aligned(rows, left={0, 1})))
        print("\npublished")
        for name, row in sources(comparison):
            print(f"  {source_line(name, row)}")
        if told := notes(comparison):
            print("\nnotes\n" + "\n".join(f"  {text}" for text in told))
        print(f"\n{where(comparison)}")
    if out:
        from davit.explain.compare_page import write_comparison

        print(f"wrote {', '.join(map(str, write_comparison(comparison, out)))}", file=sys.stderr)
    return 0
