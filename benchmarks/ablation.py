"""The paper's argument at a small scale: do window and channel attention do better together than either alone?

    python benchmarks/ablation.py --data DIR --runs FILE [--steps 150] [--seeds 0 1 2] [--only MODEL ...]
    python benchmarks/ablation.py --data DIR --runs FILE --pilot --rate 1e-2 2e-3x10 --seeds 1000 [--only MODEL ...]
    python benchmarks/ablation.py --runs FILE --summary [--out FILE] [--plot FILE]

Trains models of equal size with equal data, steps and seeds: window attention alone, channel attention alone, both in
either order and in parallel, each with and without position convolutions; and timm's Swin, PVTv2 and ViT. DIR holds
train/ and val/ with class folders. Every finished run is a line of FILE and is not done again, so that the script can
be stopped and called again; it goes seed by seed through all models, so that a run cut short stays balanced. Pilot runs
show how much the learning rate matters, on seeds that do not count. `--summary` prints tables of all runs in FILE.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ablation_models import BARE, IMAGE_SIZES, MODELS, family
from ablation_summary import SHARED, Run, append_run, pilots, plot, read_runs, summarise, table
from ablation_training import Settings, decode, make_recipe, train
from record import write_record

Rate = tuple[float, float]  # and a factor on it for the matrices of Muon
Job = tuple[str, int, Settings]
RATES: dict[str, Rate] = {  # the least validation loss of pilot runs on a seed that does not count (docs/ablation.md)
    "layouts": (2e-3, 10.0),
    "layouts" + BARE: (1e-2, 1.0),
    "swin": (1e-2, 1.0),
    "pvt_v2": (1e-2, 1.0),
    "vit": (1e-2, 1.0),
}


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """What was asked for, seed by seed.

    Raises:
        ValueError: several rates for runs that count, none for AdamW, or a model that there is none of.
    """
    if len(options.rate) > 1 and not options.pilot:
        raise ValueError("runs that count have one rate, got several; --pilot tries several")
    if options.optimizer != "muon" and not options.rate:
        raise ValueError(f"the rates known here are Muon's: give --rate for {options.optimizer}")
    unknown = set(options.only) - set(MODELS)
    if unknown:
        raise ValueError(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    names = options.only or MODELS
    jobs = [(s, name, rate) for s in options.seeds for name in names for rate in options.rate or [RATES[family(name)]]]
    shared = {key: getattr(options, key) for key in ("optimizer", "steps", "batch_size", "image_size")}
    return [(name, seed, Settings(rate=rate, matrix_rate=factor, **shared)) for seed, name, (rate, factor) in jobs]


def rate_of(text: str) -> Rate:
    """Read `2e-3x10`: the rate, and by how much it is larger for the matrices of Muon."""
    rate, _, factor = text.partition("x")
    return float(rate), float(factor or 1)


def identity(run: Run) -> tuple[object, ...]:
    """What makes two runs the same."""
    keys = ("model", "seed", "pilot", "rate", "matrix_rate", *SHARED)
    return tuple(run[key] for key in keys)


def work(options: argparse.Namespace) -> None:
    """Train what is not in the file yet."""
    jobs = jobs_of(options)
    data = Path(options.data).name
    heads = [{"data": data, "model": m, "seed": s, "pilot": options.pilot, **asdict(given)} for m, s, given in jobs]
    finished = read_runs(options.runs)
    known = {identity(run) for run in finished}
    waiting = [(job, head) for job, head in zip(jobs, heads, strict=True) if identity(head) not in known]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are in {options.runs}", flush=True)
    if not waiting:
        return
    pixels = decode(make_recipe(waiting[0][0][2], options.data, 0))
    spent: list[float] = []
    for done, ((name, seed, settings), head) in enumerate(waiting, 1):
        started = time.perf_counter()
        run = head | train(name, pixels, make_recipe(settings, options.data, seed))
        append_run(options.runs, run)
        spent.append(time.perf_counter() - started)
        left = statistics.fmean(spent) * (len(waiting) - done) / 60
        print(
            f"{done}/{len(waiting)} {data} seed {seed} {name} rate {settings.rate:g} x {settings.matrix_rate:g}: "
            f"top-1 {run['top1']:.3f}, loss {run['validation_loss']:.3f}, {spent[-1]:.0f} s, about {left:.0f} min left",
            flush=True,
        )


def show(options: argparse.Namespace) -> None:
    """Print the tables, and write what was asked for."""
    runs = read_runs(options.runs)
    summaries, trials = summarise(runs), pilots(runs)
    for entry in trials:
        scores = ", ".join(
            f"{tried['rate']:g} x {tried['matrix_rate']:g}: {100 * tried['top1']:.1f} ({tried['validation_loss']:.3f})"
            for tried in entry["scores"]
        )
        print(f"pilot, {entry['data']}, {entry['steps']} steps, seed {entry['seed']}, {entry['model']}: {scores}")
    for summary in summaries:
        print("\n" + table(summary))
    if options.plot:
        plot(summaries, options.plot)
    write_record({"summaries": summaries, "pilots": trials}, options.out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train/ and val/ of class folders")
    parser.add_argument("--runs", type=Path, required=True, help="file of finished runs, a JSON object a line")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument(
        "--rate",
        type=rate_of,
        nargs="+",
        default=[],
        help="peak rate (1e-2) or, with a factor on it "
        "for the matrices of Muon, 2e-3x10; by default what was best for the model's family in pilot runs",
    )
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--image-size", type=int, choices=IMAGE_SIZES, default=32, help="a window has a 16th")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pilot", action="store_true", help="mark the runs as trials that do not count")
    parser.add_argument("--summary", action="store_true", help="print tables of the runs in the file")
    parser.add_argument("--out", type=Path, help="with --summary: write them as JSON, too")
    parser.add_argument("--plot", type=Path, help="with --summary: draw them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    try:
        if options.summary:
            show(options)
        elif options.data:
            work(options)
        else:
            raise ValueError("say which images to train on: --data DIR, with train/ and val/; or --summary")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
