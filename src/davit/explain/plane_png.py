"""Panels as one PNG, by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from davit.atomic import atomic_write
from davit.explain.plane import Curve, Mark, Panel, place_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {  # of page.css on light ground
    "tone-a": "#4b4fc4",
    "tone-b": "#c0392b",
    "tone-c": "#1c8a6b",
    "tone-d": "#b8860b",
    "tone-e": "#8e44ad",
    "tone-f": "#2a7fb8",
    "tone-g": "#d0568f",
    "tone-h": "#7a7a7a",
}
INK, QUIET, HAIR = "#1f1d24", "#67636f", "#e4e1e6"
DPI = 130


def need_matplotlib() -> type["Figure"]:
    """The class of its figures.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots come with matplotlib: pip install 'davit[train]'") from error
    return Figure


def write_panels(panels: Sequence[Panel], path: Path, note: str = "") -> None:
    """Write panels side by side, with a note below.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    high = 4.6 + 0.17 * max(len(panel.curves) for panel in panels)  # the keys stand below
    figure = need_matplotlib()(figsize=(5.6 * len(panels), high), layout="constrained")
    drawn = list(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True))
    for axes, panel in drawn:
        _draw(axes, panel)
    if note:
        figure.supxlabel(note, fontsize=9, color=QUIET)
    figure.canvas.draw()  # places of points in pixels are known from here on
    for axes, panel in drawn:
        _name(axes, panel)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def _draw(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    for curve in panel.curves:
        _draw_curve(axes, curve)
    for mark in panel.marks:
        _draw_mark(axes, mark)
    axes.set_title(panel.title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(panel.across, color=QUIET)
    axes.set_ylabel(panel.up, color=QUIET)
    for axis, log, marked in ((axes.xaxis, panel.log_x, panel.x_ticks), (axes.yaxis, panel.log_y, panel.y_ticks)):
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        axis.set_major_locator(FixedLocator([value for value, _ in marked]))
        axis.set_major_formatter(FixedFormatter([text for _, text in marked]))
        axis.set_minor_locator(NullLocator())
    axes.set_xlim(*_ends([value for value, _ in panel.x_ticks] + [x for x, _ in panel.points]))
    axes.set_ylim(*_ends([value for value, _ in panel.y_ticks]))
    axes.grid(color=HAIR)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0, pad=6)
    for side in axes.spines.values():
        side.set_color(HAIR)
    if panel.curves:
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low * 0.5, high * 2)


def _draw_curve(axes: Any, curve: Curve) -> None:
    dash = tuple(float(part) / 1.8 for part in curve.dash.split())
    axes.plot(
        *zip(*curve.points, strict=True),
        color=COLOURS[curve.tone],
        linestyle=(0, dash) if dash else "-",
        marker="o",
        markersize=3,
        linewidth=1.6,
        label=curve.name,
    )


def _draw_mark(axes: Any, mark: Mark) -> None:
    colour = COLOURS[mark.tone]
    axes.plot(
        *mark.at, "o", markersize=7, color=colour, markerfacecolor="white" if mark.hollow else colour, clip_on=False
    )


def _name(axes: Any, panel: Panel) -> None:
    """Write the names of marks where there is room, found in pixels whose y grows downwards."""
    if not panel.marks:
        return
    spots = [axes.transData.transform(mark.at) for mark in panel.marks]
    box = axes.get_window_extent()
    letter = axes.figure.dpi * 8 / 72 * 0.58  # of 8 points
    down = [(float(x), -float(y)) for x, y in spots]
    names = [mark.name for mark in panel.marks]
    places = place_names(down, names, (box.x0, -box.y1, box.x1, -box.y0), letter)
    sides = {"start": "left", "middle": "center", "end": "right"}
    for name, (x, y, anchor) in zip(names, places, strict=True):
        at = axes.transData.inverted().transform((x, -y))
        axes.text(*at, name, fontsize=8, color=INK, va="baseline", ha=sides[anchor])
