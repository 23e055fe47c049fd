"""Learning curves and the confusion matrix, as SVG and HTML whose text stays text and whose colours follow the page."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, TypeVar

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
MOST_POINTS = 400
SMOOTH_FROM = 60
MOST_CELLS_WITH_TEXT = 20
MOST_CLASSES = 40
MOST_PAIRS = 25

ACCURACY = {"top1": "top-1", "top5": "top-5"}

Point = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: what the key says.
        points: (step, value), in order; a value that is not finite breaks the line.
        tone: CSS class that colours it, `tone-a` to `tone-h`.
        kind: `noisy` values get a moving average, `exact` ones a plain line, `sparse` ones dots with a tooltip.
    """

    name: str
    points: list[Point]
    tone: str
    kind: Literal["noisy", "exact", "sparse"]


def learning_curves(
    history: Sequence[dict[str, float]], title: str = "Validation accuracy", scores: Mapping[str, str] = ACCURACY
) -> str:
    """Figures of losses, validation scores, learning rate, speed and waiting over the steps of a run.

    Args:
        history: the records of the run.
        title: of the figure of scores.
        scores: what to call each score there, by its key, the one that counts first.
    """
    loss = Series(name="training", points=curve(history, "loss"), tone="tone-a", kind="noisy")
    held_out = Series(name="validation", points=curve(history, "validation_loss"), tone="tone-b", kind="sparse")
    scored = [
        Series(name=name, points=curve(history, key), tone=tone, kind="sparse")
        for (key, name), tone in zip(scores.items(), ("tone-b", "tone-a", "tone-c", "tone-d"), strict=False)
    ]
    rate = Series(name="last", points=curve(history, "learning_rate"), tone="tone-a", kind="exact")
    speed = Series(name="last", points=curve(history, "images_per_second"), tone="tone-a", kind="noisy")
    waited = Series(name="last", points=curve(history, "loader_share"), tone="tone-b", kind="noisy")
    drawn = figure("Loss", [loss, held_out]) + figure(title, scored, percent)
    drawn += figure("Learning rate", [rate]) + figure("Images per second", [speed])
    drawn += figure("Time spent waiting for data", [waited], percent)
    if not drawn:
        return '<p class="quiet">This run recorded no history.</p>'
    missing = sum(not math.isfinite(value) for _, value in loss.points)
    note = (
        f'<p class="warning">{missing} logged losses were not finite; the line has gaps there.</p>' if missing else ""
    )
    return f'<div class="charts">{drawn}</div>{note}'


def curve(history: Sequence[dict[str, float]], key: str) -> list[Point]:
    """The (step, value) of the lines that have a value; JSON's null counts as not finite."""
    return [
        (float(line.get("step", index)), math.nan if line[key] is None else float(line[key]))
        for index, line in enumerate(history)
        if key in line
    ]


def percent(share: float) -> str:
    """Show a share as percent: more digits the nearer it is to an end, where they matter."""
    digits = 2 if share > 0.99 and share < 1 else 1
    return f"{100 * share:.{digits}f}".removesuffix(".0") + " %"


def plain(value: float) -> str:
    """Show a number in three significant digits."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    if 1e3 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values that span a range, at steps of 1, 2 or 5."""
    if low == high:  # one value says nothing about scale: show it over zero
        low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - about))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A table of counts, true classes down and predictions across, each cell shaded by its share of the row.

    Above 40 classes, the most confused pairs instead.
    """
    if len(confusion) > MOST_CLASSES:
        return confused_pairs(confusion, classes)
    names = [class_name(classes, index) for index in range(len(confusion))]
    heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    body = "".join(_confusion_row(row, names, index) for index, row in enumerate(confusion))
    size = "dense" if len(names) > MOST_CELLS_WITH_TEXT else "roomy"
    tall = "tall" if max(map(len, names)) > 3 else "flat"
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="Confusion matrix">'
        f'<table class="confusion {size} {tall}"><caption>Rows: true class. Columns: predicted class.</caption>'
        f'<thead><tr><td class="corner"></td>{heads}<th scope="col" class="share">right</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="readout quiet" id="confusion-readout" aria-hidden="true">&nbsp;</p>'
    )


def confused_pairs(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A table of the pairs of classes that are mistaken most often."""
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not pairs:
        return f"<p>No confusions among {len(confusion)} classes.</p>"
    pairs.sort(key=lambda pair: (-pair[0], -pair[0] / sum(confusion[pair[1]])))
    rows = "".join(
        f"<tr><td>{escape(class_name(classes, true))}</td><td>{escape(class_name(classes, predicted))}</td>"
        f'<td class="number">{count}</td><td class="number">{percent(count / sum(confusion[true]))}</td></tr>'
        for count, true, predicted in pairs[:MOST_PAIRS]
    )
    shown = f"The {min(MOST_PAIRS, len(pairs))} most frequent of {len(pairs)} confused pairs"
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="Most confused classes"><table class="pairs">'
        f"<caption>{shown}, among {len(confusion)} classes.</caption>"
        '<thead><tr><th scope="col">True class</th><th scope="col">Predicted as</th>'
        '<th scope="col" class="number">Images</th><th scope="col" class="number">Of its class</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _confusion_row(row: Sequence[int], names: Sequence[str], index: int) -> str:
    total = sum(row) or 1
    cells = []
    for column, count in enumerate(row):
        if not count:
            cells.append('<td class="zero">0</td>')
            continue
        kind = "hit" if column == index else "miss"
        told = f"true {names[index]}, predicted {names[column]}: {count} of {total}"
        share = math.sqrt(count / total)  # a few mistakes among many must still show
        dark = " full" if share > 0.6 else ""
        cells.append(f'<td class="{kind}{dark}" style="--share:{share:.2f}" title="{escape(told)}">{count}</td>')
    right = percent(row[index] / total) if sum(row) else ""
    return f'<tr><th scope="row">{escape(names[index])}</th>{"".join(cells)}<td class="share">{right}</td></tr>'


def class_name(classes: Sequence[str], index: int) -> str:
    """Name of a class, or its number where it has none."""
    return classes[index] if index < len(classes) else str(index)


def figure(title: str, series: Sequence[Series], show: Callable[[float], str] = plain) -> str:
    """One chart under its title and key; nothing, if no series has a finite value."""
    series = [each for each in series if any(math.isfinite(value) for _, value in each.points)]
    if not series:
        return ""
    key = "".join(f'<span class="key {each.tone}">{escape(each.name)} {_last(each, show)}</span>' for each in series)
    told = ", ".join(f"{each.name} ends at {_last(each, show)}" for each in series)
    return (
        f'<figure class="chart"><figcaption><strong>{escape(title)}</strong>{key}</figcaption>'
        f"{_svg(f'{title} over training steps: {told}', series, show)}</figure>"
    )


def _last(series: Series, show: Callable[[float], str]) -> str:
    return show([value for _, value in series.points if math.isfinite(value)][-1])


def _svg(label: str, series: Sequence[Series], show: Callable[[float], str]) -> str:
    finite = [point for each in series for point in each.points if math.isfinite(point[1])]
    across = ticks(min(x for x, _ in finite), max(x for x, _ in finite))
    up = ticks(min(y for _, y in finite), max(y for _, y in finite))
    x0, x1 = min(x for x, _ in finite), max(x for x, _ in finite)

    def place(point: Point) -> Point:
        x = (point[0] - x0) / (x1 - x0) if x1 > x0 else 1.0
        y = (point[1] - up[0]) / (up[-1] - up[0])
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    grid = "".join(_horizontal(place((x0, y))[1], show(y)) for y in up)
    marks = "".join(_vertical(place((x, up[0]))[0], plain(x)) for x in across if x0 <= x <= x1 - 0.2 * (x1 - x0))
    lines = "".join(_line(each, place, show) for each in series)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{grid}{marks}'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step {plain(x1)}</text>{lines}</svg>'
    )


def _horizontal(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _vertical(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{text}</text>'


def _line(series: Series, place: Callable[[Point], Point], show: Callable[[float], str]) -> str:
    """The path of a series: faint with a moving average over it, where it has many points."""
    points = thin(series.points)
    drawn = ""
    if series.kind == "noisy" and len(points) > SMOOTH_FROM:
        drawn = f'<path class="faint {series.tone}" d="{_path(points, place)}"/>'
        points = smooth(points, len(points) // 30)
    drawn += f'<path class="{series.tone}" d="{_path(points, place)}"/>'
    if series.kind != "sparse" and len(points) > 1:
        return drawn
    for step, value in points:
        if math.isfinite(value):
            x, y = place((step, value))
            told = f"<title>step {step:.0f}: {show(value)}</title>"
            drawn += f'<circle class="{series.tone}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">{told}</circle>'
    return drawn


def _path(points: Sequence[Point], place: Callable[[Point], Point]) -> str:
    parts: list[str] = []
    pen = "M"
    for point in points:
        if not math.isfinite(point[1]):
            pen = "M"
            continue
        x, y = place(point)
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(parts)


def thin(points: Sequence[T]) -> list[T]:
    """Keep at most 400, the last among them."""
    step = -(-len(points) // MOST_POINTS)
    return list(points[::-step][::-1])


def smooth(points: Sequence[Point], reach: int) -> list[Point]:
    """Average each finite value with the finite ones up to `reach` before and after it."""
    averaged: list[Point] = []
    for index, (step, value) in enumerate(points):
        near = [v for _, v in points[max(0, index - reach) : index + reach + 1] if math.isfinite(v)]
        averaged.append((step, sum(near) / len(near) if math.isfinite(value) else value))
    return averaged
