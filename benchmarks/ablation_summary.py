"""Tables and a plot of the runs of `ablation.py`."""

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablation_models import BARE, LAYOUTS, MODELS, PEERS
from ablation_statistics import Difference, holm, paired_difference

Run = dict[str, Any]
DUAL = "window-channel"
COMPARISONS: tuple[tuple[str, str], ...] = (  # chosen before any run was seen
    (DUAL, "window"),
    (DUAL, "channel"),
    (DUAL, "channel-window"),
    (DUAL, "parallel"),
    (DUAL + BARE, "window" + BARE),
    (DUAL + BARE, "channel" + BARE),
    *((name, name + BARE) for name in LAYOUTS),
    *((DUAL, peer) for peer in PEERS),
)
SHARED = ("data", "steps", "optimizer", "batch_size", "image_size")


def read_runs(path: Path) -> list[Run]:
    """The finished runs of a file, one a line; a line that was being written when the power went is passed over."""
    runs = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return runs


def append_run(path: Path, run: Run) -> None:
    """Add a finished run, on a line of its own whatever the file ends with."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(run) + "\n")


def summarise(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """For each data set and length of runs: scores of each model, and the differences between models.

    Pilot runs do not count. Differences are between the seeds that both models have; p is adjusted (Holm) for all
    differences of a data set.

    Raises:
        ValueError: a model has two runs of one seed.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if not run["pilot"]:
            groups.setdefault(tuple(run[key] for key in SHARED), []).append(run)
    return [dict(zip(SHARED, key, strict=True)) | _compare(group) for key, group in groups.items()]


def _compare(runs: list[Run]) -> dict[str, Any]:
    by_model: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = by_model.setdefault(run["model"], {})
        if run["seed"] in seeds:
            raise ValueError(
                f"{run['model']} has two runs of seed {run['seed']} that count; take one of their lines out"
            )
        seeds[run["seed"]] = run
    models = {name: _scores(by_model[name]) for name in MODELS if name in by_model}
    pairs = [(a, b) for a, b in COMPARISONS if by_model.get(a, {}).keys() & by_model.get(b, {}).keys()]
    return {
        "models": models,
        "differences": {score: _differences(by_model, pairs, score) for score in ("top1", "validation_loss")},
    }


def _scores(runs: dict[int, Run]) -> dict[str, Any]:
    ordered = [runs[seed] for seed in sorted(runs)]
    found: dict[str, Any] = {"seeds": sorted(runs)}
    for score in ("top1", "validation_loss", "train_loss"):
        values = [run[score] for run in ordered]
        found[score] = {
            "each": values,
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
        }
    images = ordered[0]["steps"] * ordered[0]["batch_size"]
    return found | {
        "rates": sorted({(run["rate"], run["matrix_rate"]) for run in ordered}),
        "parameters": ordered[0]["parameters"],
        "multiply_adds": ordered[0]["multiply_adds"],
        "images_per_cpu_second": round(images / statistics.median(run["cpu_seconds"] for run in ordered)),
    }


def _differences(by_model: dict[str, dict[int, Run]], pairs: list[tuple[str, str]], score: str) -> list[dict[str, Any]]:
    found: list[Difference] = []
    for first, second in pairs:
        seeds = sorted(by_model[first].keys() & by_model[second].keys())
        found.append(paired_difference(*([by_model[name][s][score] for s in seeds] for name in (first, second))))
    adjusted = holm([difference.p for difference in found])
    return [
        {
            "first": first,
            "second": second,
            "each": list(difference.each),
            "mean": difference.mean,
            "interval": [difference.low, difference.high] if math.isfinite(difference.low) else None,
            "p": difference.p,
            "p_adjusted": p,
            "larger_than_noise": difference.larger_than_noise,
        }
        for (first, second), difference, p in zip(pairs, found, adjusted, strict=True)
    ]


def pilots(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Scores of the pilot runs at each rate."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        if run["pilot"]:
            names = (*SHARED, "seed", "model")
            key = tuple(run[name] for name in names)
            entry = found.setdefault(key, dict(zip(names, key, strict=True)) | {"scores": []})
            entry["scores"].append({k: run[k] for k in ("rate", "matrix_rate", "top1", "validation_loss")})
    return list(found.values())


def table(summary: dict[str, Any]) -> str:
    """A summary in Markdown, accuracies in percent."""
    lines = [
        f"{summary['data']}: {summary['steps']} steps of {summary['batch_size']} images of {summary['image_size']} px, "
        + summary["optimizer"],
        "",
        "| Model | Parameters | Multiply-adds | Images/CPU s | Rate "
        "| Seeds | Top-1 | Deviation | Loss | Training loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in summary["models"].items():
        deviation = row["top1"]["deviation"]
        rates = ", ".join(f"{rate:g} x {factor:g}" for rate, factor in row["rates"])
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['multiply_adds'] / 1e6:.2f} M | {row['images_per_cpu_second']} "
            f"| {rates} | {len(row['seeds'])} | {100 * row['top1']['mean']:.1f} | {_points(deviation)} "
            f"| {row['validation_loss']['mean']:.3f} | {row['train_loss']['mean']:.3f} |"
        )
    lines += [
        "",
        "| Difference | Each seed | Top-1 | 95 % interval | p, adjusted | Loss | 95 % interval | p, adjusted |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    differences = summary["differences"]
    for points, loss in zip(differences["top1"], differences["validation_loss"], strict=True):
        each = ", ".join(f"{100 * value:+.1f}" for value in points["each"])
        lines.append(
            f"| {points['first']} less {points['second']} | {each} {_cells(points, 100, 1)}{_cells(loss, 1, 3)}|"
        )
    return "\n".join(lines)


def _cells(row: dict[str, Any], factor: float, digits: int) -> str:
    """Mean, interval and adjusted p; in bold where the interval leaves out zero."""
    mean = f"{factor * row['mean']:+.{digits}f}"
    span = " to ".join(f"{factor * end:+.{digits}f}" for end in row["interval"]) if row["interval"] else "none"
    bold = "**" if row["larger_than_noise"] else ""
    return f"| {mean} | {bold}{span}{bold} | {row['p_adjusted']:.3f} "


def _points(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}"


def plot(summaries: list[dict[str, Any]], path: Path) -> None:
    """Draw every run as a dot, means as bars, and the differences with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5.5 * len(summaries)), layout="constrained")
    axes = figure.subplots(len(summaries), 2, squeeze=False)
    for (left, right), summary in zip(axes, summaries, strict=True):
        names = list(summary["models"])
        for place, name in enumerate(names):
            values = [100 * value for value in summary["models"][name]["top1"]["each"]]
            left.scatter(values, [place] * len(values), s=18, color="#2563eb")
            left.plot([statistics.fmean(values)] * 2, [place - 0.35, place + 0.35], color="#111827")
        left.set(yticks=range(len(names)), yticklabels=names, xlabel="top-1, %", title=summary["data"])
        left.invert_yaxis()
        rows = summary["differences"]["top1"]
        for place, row in enumerate(rows):
            low, high = (100 * end for end in row["interval"] or (row["mean"], row["mean"]))
            colour = "#b91c1c" if row["larger_than_noise"] else "#6b7280"
            right.plot([low, high], [place, place], color=colour)
            right.scatter([100 * row["mean"]], [place], s=22, color=colour)
        right.axvline(0, color="#111827", linewidth=0.8)
        labels = [f"{row['first']} less {row['second']}" for row in rows]
        right.set(yticks=range(len(rows)), yticklabels=labels, xlabel="points of top-1, with 95 % interval")
        right.invert_yaxis()
    figure.savefig(path, dpi=100)
