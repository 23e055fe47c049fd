"""Runs side by side: one table, the settings in which they differ, one plot of their curves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from davit.atomic import atomic_write
from davit.explain import charts
from davit.explain.numbers import is_share
from davit.explain.page import make_page
from davit.explain.run_folder import RunFolder, find_runs, read_run
from davit.explain.tables import sortable
from davit.naming import unknown_name
from davit.records import differences

MOST_LINES = 8  # runs in the plot, for as many colours are told apart
TONES = tuple(f"tone-{letter}" for letter in "abcdefgh")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs, best first.

    Attributes:
        metric: what they are compared by.
        runs: the runs; those without a score come last.
    """

    metric: str
    runs: tuple[RunFolder, ...]

    @property
    def lower_is_better(self) -> bool:
        """Losses fall, scores rise."""
        return self.metric.endswith("loss")

    def best(self, run: RunFolder) -> float | None:
        """Best value of the metric in a run."""
        values = [value for _, value in run.values(self.metric) if math.isfinite(value)]
        return (min if self.lower_is_better else max)(values) if values else None

    def last(self, run: RunFolder) -> float | None:
        """Its last value."""
        values = run.values(self.metric)
        return values[-1][1] if values else None

    def settings(self) -> dict[str, list[Any]]:
        """Values of the settings that are not the same in all runs, in the order of the runs; None for absent ones."""
        recipes = [run.recipe for run in self.runs if run.recipe]
        paths = dict.fromkeys(
            line.partition(":")[0] for other in recipes[1:] for line in differences(recipes[0], other)
        )
        return {path: [_at(run.recipe, path) for run in self.runs] for path in paths}

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "metric": self.metric,
            "runs": [self._row(run) for run in self.runs],
            "settings": self.settings(),
        }

    def keys(self) -> list[list[Any]]:
        """What the columns of `table` after the first sort by."""
        rows = [self._row(run) for run in self.runs]
        return [[value for name, value in row.items() if name != "epochs"] for row in rows]

    def _row(self, run: RunFolder) -> dict[str, Any]:
        return {
            "folder": str(run.path),
            "recipe": run.name,
            "variant": run.variant,
            "parameters": run.parameters,
            "epochs_done": run.epochs_done,
            "epochs": run.epochs,
            "best": self.best(run),
            "last": self.last(run),
            "loss": run.loss,
            "seconds": run.seconds,
            "images_per_second": run.images_per_second,
            "state": run.state,
        }


USUAL = ("top1", "box_ap", "miou")  # what decides, of those that the runs have


def compare(roots: Sequence[Path], metric: str = "") -> Comparison:
    """Read all runs in and below some folders.

    Raises:
        ValueError: a folder without runs, or a metric that no run has recorded while they have others.
    """
    runs = [read_run(path) for path in find_runs(list(roots))]
    known = dict.fromkeys(
        key for run in runs for record in run.history for key in record if key not in ("step", "epoch")
    )
    metric = metric or next((name for name in USUAL if name in known), USUAL[0])
    if known and metric not in known:
        raise unknown_name("metric", metric, known)
    unsorted = Comparison(metric=metric, runs=tuple(runs))

    def key(run: RunFolder) -> tuple[bool, float]:
        best = unsorted.best(run)
        return best is None, 0.0 if best is None else best if unsorted.lower_is_better else -best

    return Comparison(metric=metric, runs=tuple(sorted(runs, key=key)))


def table(comparison: Comparison) -> list[list[str]]:
    """Head and rows, as text; the first column numbers the runs."""
    metric = comparison.metric
    show = charts.percent if is_share(metric) else charts.plain
    head = [
        "",
        "run",
        "recipe",
        "variant",
        "params",
        "epochs",
        f"best {metric}",
        "last",
        "loss",
        "time",
        "img/s",
        "state",
    ]
    rows = [
        [
            str(number),
            str(run.path),
            run.name,
            run.variant,
            _or_dash(run.parameters, _millions),
            f"{_or_dash(run.epochs_done, charts.plain)}/{_or_dash(run.epochs, charts.plain)}",
            _or_dash(comparison.best(run), show),
            _or_dash(comparison.last(run), show),
            _or_dash(run.loss, charts.plain),
            _or_dash(run.seconds, _time),
            _or_dash(run.images_per_second, charts.plain),
            run.state,
        ]
        for number, run in enumerate(comparison.runs, 1)
    ]
    return [head, *rows]


def settings_lines(comparison: Comparison) -> list[str]:
    """A line for each setting that differs: which value has which runs."""
    lines = []
    for path, values in comparison.settings().items():
        users: dict[str, list[str]] = {}
        for number, value in enumerate(values, 1):
            users.setdefault(str(value) or "''", []).append(str(number))
        lines.append(f"{path}: " + "; ".join(f"{value} ({', '.join(runs)})" for value, runs in users.items()))
    return lines


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a page (.html) or the plot alone (.png).

    Raises:
        ValueError: another ending, or matplotlib is not installed for a PNG.
        OSError: the file cannot be written.
    """
    if path.suffix == ".html":
        with atomic_write(path) as file:
            file.write(render(comparison).encode())
    elif path.suffix == ".png":
        _plot(comparison, path)
    else:
        raise ValueError(f"{path}: the name must end in .html or .png")


def render(comparison: Comparison) -> str:
    """Return the page: self-contained, with no address outside it."""
    head, *rows = table(comparison)
    keys = [[number, *each] for number, each in enumerate(comparison.keys(), 1)]
    runs = sortable("Runs", [name or "#" for name in head], rows, keys)
    lines = "".join(f"<li>{escape(line)}</li>" for line in settings_lines(comparison))
    settings = f'<ul class="notes">{lines}</ul>' if lines else "<p>None: all runs have the same settings.</p>"
    more = len(comparison.runs) - MOST_LINES
    note = f'<p class="quiet">The best {MOST_LINES} runs are drawn, {more} are not.</p>' if more > 0 else ""
    drawn = "".join(charts.figure(title, series, show) for title, series, show in _curves(comparison))
    sections = {
        "runs": ("Runs", runs),
        "curves": ("Curves", f'<div class="charts wide">{drawn}</div>{note}'),
        "settings": ("Settings that differ", settings),
    }
    best = f"best first by {comparison.metric}"
    return make_page("DaViT runs", f"{len(rows)} run{'s' if len(rows) > 1 else ''}, {best}", sections, [])


def _curves(comparison: Comparison) -> list[tuple[str, list[charts.Series], Callable[[float], str]]]:
    """Title, lines and formatter of each chart: the metric, and the training loss."""
    show = charts.percent if is_share(comparison.metric) else charts.plain
    shown = list(zip(range(1, MOST_LINES + 1), TONES, comparison.runs, strict=False))
    return [
        (
            title,
            [charts.Series(name=f"run {n}", points=run.values(key), tone=tone, kind=kind) for n, tone, run in shown],
            formatter,
        )
        for title, key, kind, formatter in (
            (comparison.metric, comparison.metric, "sparse", show),
            ("loss", "loss", "exact", charts.plain),
        )
        if key != "loss" or comparison.metric != "loss" or kind == "sparse"
    ]


def _plot(comparison: Comparison, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots come with matplotlib: pip install 'davit[train]', or name an .html file") from error
    curves = _curves(comparison)
    figure = Figure(figsize=(6.5 * len(curves), 4.5), layout="constrained")
    for axes, (title, series, _) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for line in series:
            if line.points:
                axes.plot(*zip(*line.points, strict=True), marker="o" if line.kind == "sparse" else "", markersize=3)
                axes.lines[-1].set_label(line.name)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130)


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _or_dash(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f} M"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
