"""A comparison as files: a page, two plots and its numbers."""

import json
from html import escape
from pathlib import Path
from typing import Any

from davit.atomic import atomic_write
from davit.explain import plane
from davit.explain.compare_models import (
    COUNTED,
    HEAD,
    REMEMBERED,
    TIMED,
    Comparison,
    growth_table,
    line,
    notes,
    sort_keys,
    sources,
    where,
)
from davit.explain.compare_panels import EXPONENT, accuracy_panels, growth_panels
from davit.explain.page import make_page
from davit.explain.plane_png import write_panels
from davit.explain.tables import sortable

LEFT_OUT = "Models without published ImageNet accuracy are not in these plots."


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write compare.html, compare.json, accuracy.png and growth.png into a folder, which is made if need be.

    Returns:
        The files; no plot where there is nothing to draw.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "compare.html", folder / "compare.json"]
    for path, text in zip(written, (render(comparison), json.dumps(comparison.to_json(), indent=2)), strict=True):
        with atomic_write(path) as file:
            file.write(text.encode())
    plots = (("accuracy.png", accuracy_panels(comparison), ""), ("growth.png", growth_panels(comparison), EXPONENT))
    for name, panels, note in plots:
        if panels:
            write_panels(panels, folder / name, note)
            written.append(folder / name)
    return written


def render(comparison: Comparison) -> str:
    """Return the page: self-contained, with no address outside it."""
    told = [*notes(comparison), COUNTED, TIMED, REMEMBERED]
    accuracy = "".join(plane.figure(panel) for panel in accuracy_panels(comparison))
    sections = {"measured": ("Measured", _measured(comparison))}
    if accuracy:
        sections["accuracy"] = ("Accuracy and cost", f'<div class="charts wide">{accuracy}</div>{_quiet(LEFT_OUT)}')
    if growth := "".join(plane.figure(panel) for panel in growth_panels(comparison)):
        drawn = f'<p>{EXPONENT}</p><div class="charts wide">{growth}</div>'
        sections["growth"] = ("Growth with the image", f"{drawn}{_exponents(comparison)}")
    sections["published"] = ("Published", _published(comparison))
    sections["how"] = (
        "How it was measured",
        f'<ul class="notes">{"".join(f"<li>{escape(x)}</li>" for x in told)}</ul>',
    )
    return make_page("DaViT and its peers", where(comparison), sections, [])


def _measured(comparison: Comparison) -> str:
    rows = comparison.rows
    return sortable("Measured", HEAD, [line(row) for row in rows], [sort_keys(row) for row in rows])


def _exponents(comparison: Comparison) -> str:
    head, *rows = growth_table(comparison) or [[]]
    keys = [[None if cell == "-" else cell for cell in row] for row in rows]
    return f"<h3>Exponents</h3>{sortable('Exponents', head, rows, keys)}" if rows else ""


def _published(comparison: Comparison) -> str:
    head = ["model", "top-1", "pixels", "pre-training", "params", "GMACs", "source"]
    rows: list[list[str]] = []
    keys: list[list[Any]] = []
    for name, row in sources(comparison):
        macs = "-" if row.macs is None else f"{row.macs:g}"
        cells = [name, f"{row.score:g}", str(row.size), row.pretraining, f"{row.parameters:g} M", macs, row.source]
        rows.append(cells)
        keys.append([name, row.score, row.size, row.pretraining, row.parameters, row.macs, row.source])
    return sortable("Published", head, rows, keys) if rows else _quiet("Nothing is published of these models.")


def _quiet(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'
