"""Points and lines over two axes, each linear or logarithmic: data of a panel, and its SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from davit.explain.charts import plain, ticks

WIDTH, HEIGHT = 420, 290
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 40
APART = 0.07  # of the axis; marks nearer than that keep one name
LETTER, LINE = 6.1, 13.0  # a letter's width and a line's height in the text of charts, about

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its name beside it.

    Attributes:
        name: what stands beside it.
        at: x and y.
        tone: CSS class that colours it, `tone-a` to `tone-h`.
        hollow: drawn as a ring.
        told: of the tooltip.
    """

    name: str
    at: Point
    tone: str
    hollow: bool = False
    told: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line through points.

    Attributes:
        name: what the key says.
        points: x and y, ascending in x.
        tone: CSS class that colours it.
        dash: lengths of strokes and gaps, such as "4 3"; empty for a whole line.
    """

    name: str
    points: tuple[Point, ...]
    tone: str
    dash: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A plot.

    Attributes:
        title: above it.
        across: what the x axis shows, with its unit.
        up: what the y axis shows.
        marks: named points.
        curves: lines; they are named in a key.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is.
        places: values of the x axis that are marked, with what stands there; None for round ones.
        note: below it; empty for none.
    """

    title: str
    across: str
    up: str
    marks: tuple[Mark, ...] = ()
    curves: tuple[Curve, ...] = ()
    log_x: bool = False
    log_y: bool = False
    places: tuple[tuple[float, str], ...] | None = None
    note: str = ""

    @property
    def points(self) -> list[Point]:
        """All of them."""
        return [mark.at for mark in self.marks] + [point for curve in self.curves for point in curve.points]

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Marked values of the x axis."""
        if self.places is not None:
            return self._apart(self.places)
        return [(value, plain(value)) for value in axis_ticks([x for x, _ in self.points], log=self.log_x)]

    def _apart(self, places: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
        """Leave out names that would stand on another's, the ends last."""
        low, high = places[0][0], places[-1][0]
        kept = [places[0]]
        for value, text in places[1:-1]:
            share = share_of(value, low, high, log=self.log_x)
            if share - share_of(kept[-1][0], low, high, log=self.log_x) > APART and share < 1 - APART:
                kept.append((value, text))
        return [*kept, *places[1:][-1:]]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Marked values of the y axis."""
        return [(value, plain(value)) for value in axis_ticks([y for _, y in self.points], log=self.log_y)]


def axis_ticks(values: Sequence[float], *, log: bool) -> list[float]:
    """Round values from below the least to above the greatest; 1, 2 and 5 of each power of ten on logarithmic axes."""
    low, high = min(values), max(values)
    if not log:
        return ticks(low, high) if low < high else [low - 1, low, low + 1]
    if low < high < 3 * low:  # too few of those would lie in between
        return [value for value in ticks(low, high) if value > 0]
    powers = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    candidates = [step * 10.0**power for power in powers for step in steps]
    first = max(index for index, value in enumerate(candidates) if value <= low * (1 + 1e-9))
    last = min(index for index, value in enumerate(candidates) if value >= high * (1 - 1e-9))
    return candidates[first : max(last, first + 1) + 1]


def figure(panel: Panel) -> str:
    """The panel under its title and key; nothing, if it has no points."""
    if not panel.points:
        return ""
    key = "".join(f'<span class="key {curve.tone}">{escape(curve.name)}</span>' for curve in panel.curves)
    note = f'<p class="quiet">{escape(panel.note)}</p>' if panel.note else ""
    return (
        f'<figure class="chart"><figcaption><strong>{escape(panel.title)}</strong>'
        f"<span>{escape(panel.up)}</span>{key}</figcaption>"
        f"{_svg(panel)}{note}</figure>"
    )


def _svg(panel: Panel) -> str:
    x_ticks, y_ticks = panel.x_ticks, panel.y_ticks
    xs = [value for value, _ in x_ticks] + [x for x, _ in panel.points]
    ys = [value for value, _ in y_ticks]

    def place(point: Point) -> Point:
        across = share_of(point[0], min(xs), max(xs), log=panel.log_x)
        up = share_of(point[1], min(ys), max(ys), log=panel.log_y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    grid = "".join(_level(place((xs[0], value))[1], text) for value, text in y_ticks)
    grid += "".join(_upright(place((value, ys[0]))[0], text) for value, text in x_ticks)
    across = f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(panel.across)}'
    lines = "".join(_curve(curve, [place(point) for point in curve.points]) for curve in panel.curves)
    spots = [place(mark.at) for mark in panel.marks]
    names = [mark.name for mark in panel.marks]
    labels = place_names(spots, names, (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    dots = "".join(_mark(mark, spot) for mark, spot in zip(panel.marks, spots, strict=True))
    texts = "".join(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
        for name, (x, y, anchor) in zip(names, labels, strict=True)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_told(panel))}">{grid}{across}</text>'
        f"{lines}{dots}{texts}</svg>"
    )


def place_names(
    spots: Sequence[Point], names: Sequence[str], room: tuple[float, float, float, float], letter: float = LETTER
) -> "list[Label]":
    """Find a place beside each point for its name, where it covers neither points nor names, as far as that goes.

    Args:
        spots: of the points; y grows downwards.
        names: one for each.
        room: left, top, right and bottom edge.
        letter: width of a letter.

    Returns:
        The place of each name.
    """
    line = LINE * letter / LETTER
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    found: list[Label] = []
    for (x, y), name in zip(spots, names, strict=True):
        wide = letter * len(name)
        rows = [y + 4 + shift for shift in (0, -13, 12, -26, 25, -39, 38)]
        sides = [(x + 8, "start", x + 8), (x - 8, "end", x - 8 - wide), (x, "middle", x - wide / 2)]
        places = [(at, row, anchor, left) for row in rows for at, anchor, left in sides]
        boxes = [(left, row - line + 3, left + wide, row + 3) for _, row, _, left in places]
        costs = [sum(_shared(box, other) for other in taken) + 10 * _outside(box, room) for box in boxes]
        best = min(range(len(costs)), key=lambda index: (costs[index] > 0, costs[index], index))
        taken.append(boxes[best])
        found.append(places[best][:3])
    return found


Label = tuple[float, float, str]  # x and y of the base line, and which of its ends x is: "start", "middle" or "end"
Box = tuple[float, float, float, float]  # left, top, right, bottom


def _shared(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, room: Box) -> float:
    inside = _shared(box, room)
    return (box[2] - box[0]) * (box[3] - box[1]) - inside


def share_of(value: float, low: float, high: float, *, log: bool) -> float:
    """How far along an axis a value lies, from 0 at `low` to 1 at `high`."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5


def _level(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'


def _upright(x: float, text: str) -> str:
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    return f'{line}<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(text)}</text>'


def _curve(curve: Curve, spots: Sequence[Point]) -> str:
    dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    dots = "".join(
        f'<circle class="{curve.tone}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{escape(curve.name)}: {plain(value)}'
        "</title></circle>"
        for (x, y), (_, value) in zip(spots, curve.points, strict=True)
    )
    return f'<path class="{curve.tone}" d="M{path}"{dash}/>{dots}'


def _mark(mark: Mark, spot: Point) -> str:
    hollow = " hollow" if mark.hollow else ""
    title = f"<title>{escape(mark.told or mark.name)}</title>"
    return f'<circle class="{mark.tone}{hollow}" cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="4">{title}</circle>'


def _told(panel: Panel) -> str:
    """What a reader hears who does not see it."""
    parts = [f"{mark.name} at {plain(mark.at[0])}, {plain(mark.at[1])}" for mark in panel.marks]
    parts += [
        f"{curve.name} from {plain(curve.points[0][1])} to {plain(curve.points[-1][1])}" for curve in panel.curves
    ]
    return f"{panel.title}: {panel.up} by {panel.across}. {'; '.join(parts)}"
