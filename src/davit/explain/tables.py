"""Tables of text: aligned for a terminal, and sortable for a page."""

from collections.abc import Collection, Sequence
from html import escape
from typing import Any


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Lines whose columns stand below each other; those in `left` begin at their left edge, the others end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def sortable(label: str, head: Sequence[str], rows: Sequence[Sequence[str]], keys: Sequence[Sequence[Any]]) -> str:
    """A table whose headings sort it.

    Args:
        label: what it shows, for those who do not see it.
        head: a name for each column.
        rows: cells.
        keys: what each cell sorts by; None stays last.
    """
    heads = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in head)
    body = "".join(f"<tr>{_cells(row, key)}</tr>" for row, key in zip(rows, keys, strict=True))
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}"><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Sequence[str], keys: Sequence[Any]) -> str:
    pairs = zip(row, keys, strict=True)
    return "".join(
        f'<td data-key="{"" if key is None else escape(str(key))}">{escape(cell)}</td>' for cell, key in pairs
    )
