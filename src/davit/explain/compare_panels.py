"""The plots of a comparison: accuracy over cost, and cost over the size of the image."""

import math

from davit.explain.charts import plain
from davit.explain.compare_models import Comparison, family, printed_score
from davit.explain.plane import Curve, Mark, Panel, Point
from davit.inference.growth import Growth, grow
from davit.inference.side_by_side import Entry
from davit.weights.published import Published

Size = tuple[int, int]

TONES = {
    "DaViT": "tone-a",
    "Swin": "tone-b",
    "SwinV2": "tone-g",
    "Focal": "tone-d",
    "FocalNet": "tone-d",
    "PVTv2": "tone-c",
    "ViT": "tone-e",
    "MLP-Mixer": "tone-h",
    "ConvNeXt": "tone-f",
}
DASHES = ("", "5 3", "2 3", "8 3 2 3")
EXPONENT = "The number behind a name is e in cost = a * pixels^e: 1 is linear, 2 quadratic."
FORMS = {"global": "tone-e", "window": "tone-a", "channel": "tone-b"}


def accuracy_panels(comparison: Comparison) -> list[Panel]:
    """Published accuracy over parameters, multiply-adds at the published size, and the measured time of a call."""
    scored = [(entry, printed) for entry in comparison.entries if (printed := printed_score(entry))]
    models = {entry.model: (entry, printed) for entry, printed in scored}
    parameters = [_mark(entry, printed, _parameters(comparison, entry, printed)) for entry, printed in models.values()]
    macs = [_mark(entry, printed, _macs(comparison, entry, printed)) for entry, printed in models.values()]
    parameters += [_only_printed(row, row.parameters) for row in comparison.others]
    macs += [_only_printed(row, row.macs) for row in comparison.others if row.macs]
    times = [_timed(comparison, entry, printed) for entry, printed in scored]
    ring = "A ring: published numbers alone." if comparison.others else ""
    panels = [
        _accuracy("Parameters", "millions of parameters", parameters, ring),
        _accuracy("Multiply-adds", "GMACs at the published size", macs, ring),
        _accuracy("Time, measured", f"ms for {_images(comparison.batch)}, median", times, _elsewhere(comparison)),
    ]
    return [panel for panel in panels if panel.marks]


def growth_panels(comparison: Comparison) -> list[Panel]:
    """Measured time, counted multiply-adds and closed forms over pixels, both axes logarithmic, with exponents."""
    times = [(entry, growth) for entry in comparison.entries if (growth := comparison.latency(entry))]
    models = {entry.model: entry for entry in comparison.entries}.values()
    macs = [(entry, growth) for entry in models if (growth := grow(comparison.macs[entry]))]
    forms = [(kind, growth) for kind, costs in comparison.forms.items() if (growth := grow(costs))]
    curves = [
        Curve(name=f"{kind} {growth.exponent:.2f}", points=_points(growth, 1e-9), tone=FORMS[kind])
        for kind, growth in forms
    ]
    seconds = _curves([(_label(comparison, entry), entry, growth) for entry, growth in times], 1e3)
    counted = _curves([(entry.name, entry, growth) for entry, growth in macs], 1e-9)
    panels = [
        _growth("Time, measured", f"ms for {_images(comparison.batch)}, median", seconds),
        _growth("Multiply-adds of the model", "GMACs", counted),
        _growth(f"One attention on {comparison.form_of}'s first map, closed form", "GMACs", tuple(curves)),
    ]
    return [panel for panel in panels if panel.curves]


def tone(entry: Entry) -> str:
    """The colour of an entry's family."""
    return TONES.get(family(entry), "tone-h")


def _accuracy(title: str, across: str, marks: list[Mark], note: str) -> Panel:
    return Panel(title=title, across=across, up="ImageNet-1k top-1, %", marks=tuple(marks), log_x=True, note=note)


def _growth(title: str, up: str, curves: tuple[Curve, ...]) -> Panel:
    pixels = sorted({x for curve in curves for x, _ in curve.points})
    places = tuple((value, f"{math.sqrt(value):.0f}") for value in pixels)
    across = "side of a square image of as many pixels"
    return Panel(title=title, across=across, up=up, curves=curves, log_x=True, log_y=True, places=places)


def _curves(rows: list[tuple[str, Entry, Growth]], unit: float) -> tuple[Curve, ...]:
    used: dict[str, int] = {}
    curves = []
    for name, entry, growth in rows:
        colour = tone(entry)
        dash = DASHES[used.get(colour, 0) % len(DASHES)]
        used[colour] = used.get(colour, 0) + 1
        points = _points(growth, unit)
        curves.append(Curve(name=f"{name} {growth.exponent:.2f}", points=points, tone=colour, dash=dash))
    return tuple(curves)


def _points(growth: Growth, unit: float) -> tuple[Point, ...]:
    return tuple((pixels, cost * unit) for pixels, cost in zip(growth.pixels, growth.costs, strict=True))


def _mark(entry: Entry, printed: Published, x: float) -> Mark:
    told = f"{entry.name}: {plain(x)}, {printed.score:g} % at {printed.size} px, {printed.pretraining}"
    return Mark(name=entry.name, at=(x, printed.score), tone=tone(entry), told=told)


def _only_printed(row: Published, x: float | None) -> Mark:
    assert x is not None
    told = f"{row.model}: {plain(x)}, {row.score:g} % at {row.size} px, as published"
    return Mark(name=row.model, at=(x, row.score), tone=TONES.get(row.family, "tone-h"), hollow=True, told=told)


def _parameters(comparison: Comparison, entry: Entry, printed: Published) -> float:
    size = _nearest(comparison, entry, printed)
    row = comparison.at(entry, size)
    assert row
    return row.counts.parameters / 1e6


def _macs(comparison: Comparison, entry: Entry, printed: Published) -> float:
    """Counted at the published size, if the model computes it."""
    here = comparison.macs[entry][_nearest(comparison, entry, printed)]
    return comparison.printed_macs.get(entry, here) / 1e9


def _timed(comparison: Comparison, entry: Entry, printed: Published) -> Mark:
    size = _nearest(comparison, entry, printed)
    row = comparison.at(entry, size)
    assert row
    x = row.speed.milliseconds["p50"]
    accuracy = f"{printed.score:g} % at {printed.size} px"
    told = f"{entry.name} by {entry.engine} at {size[0]}x{size[1]}: {plain(x)} ms, {accuracy}"
    return Mark(name=_label(comparison, entry), at=(x, printed.score), tone=tone(entry), told=told)


def _nearest(comparison: Comparison, entry: Entry, printed: Published) -> Size:
    """The measured size that is nearest the published one."""
    sizes = [(row.height, row.width) for row in comparison.rows if row.entry == entry]
    return min(sizes, key=lambda size: abs(math.log(size[0] * size[1] / printed.size**2)))


def _elsewhere(comparison: Comparison) -> str:
    """Where the times and the accuracies of a plot are from."""
    found = [(entry, printed) for entry in comparison.entries if (printed := printed_score(entry))]
    nearest = {_nearest(comparison, entry, printed) for entry, printed in found}
    times = " and ".join(f"{height}x{width}" for height, width in sorted(nearest))
    sizes: dict[int, list[str]] = {}
    for entry, printed in found:
        sizes.setdefault(printed.size, []).append(entry.name)
    usual = max(sizes, key=lambda size: len(sizes[size]), default=0)
    others = [f"{size} px: {', '.join(dict.fromkeys(names))}" for size, names in sizes.items() if size != usual]
    rest = f" ({'; '.join(others)})" if others else ""
    return f"Times of {times}; accuracies were published for {usual} px{rest}."


def _label(comparison: Comparison, entry: Entry) -> str:
    """The model, with what computes it where it is measured in several ways."""
    alone = sum(other.model == entry.model for other in comparison.entries) == 1
    return entry.name if alone else f"{entry.name} {entry.engine}"


def _images(batch: int) -> str:
    return "an image" if batch == 1 else f"{batch} images"
