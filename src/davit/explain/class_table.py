"""How each class fares, the worst first, as a table that can be sorted."""

from collections.abc import Sequence
from html import escape

from davit.explain import charts

MOST_ROWS = 1000

_HEADS = (
    ("Class", "ascending"),
    ("Images", "descending"),
    ("Top-1", "ascending"),
    ("Most often taken for", "ascending"),
)


def class_table(counts: Sequence[tuple[int, int]], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A row for each class, at most the 1,000 worst.

    Args:
        counts: (images, right answers) of each class.
        confusion: counts of true by predicted class, or nothing.
        classes: names.
    """
    order = worst_first(counts)
    rows = "".join(_row(index, counts[index], confusion, classes) for index in order[:MOST_ROWS])
    heads = "".join(
        f'<th scope="col" data-first="{first}"{_SORTED if name == "Top-1" else ""}{_number(name)}>'
        f'<button type="button">{name}</button></th>'
        for name, first in _HEADS
    )
    more = (
        f'<p class="quiet">The {MOST_ROWS:,} worst of {len(counts):,} classes.</p>' if len(counts) > MOST_ROWS else ""
    )
    return (
        '<div class="tall-box" tabindex="0" role="group" aria-label="Classes"><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def worst_first(counts: Sequence[tuple[int, int]]) -> list[int]:
    """Class indices by rising share of right answers, larger classes first among equals, empty ones at the end."""

    def key(index: int) -> tuple[bool, float, int]:
        images, right = counts[index]
        return not images, right / images if images else 0.0, -images

    return sorted(range(len(counts)), key=key)


def counts_of(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(images, right answers) of each class."""
    return [(sum(row), row[index]) for index, row in enumerate(confusion)]


def most_confused(row: Sequence[int], index: int) -> tuple[int, int] | None:
    """The class that class `index` is most often taken for, and how often; None where it never is for another."""
    count, other = max(((count, -other) for other, count in enumerate(row) if other != index), default=(0, 0))
    return (-other, count) if count else None


_SORTED = ' aria-sort="ascending"'


def _number(name: str) -> str:
    return ' class="number"' if name == "Images" else ""


def _row(index: int, counts: tuple[int, int], confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    images, right = counts
    share = right / images if images else None
    shown = "no images" if share is None else f'<i style="--share:{100 * share:.1f}%"></i>{charts.percent(share)}'
    taken = most_confused(confusion[index], index) if confusion else None
    told = f"{escape(charts.class_name(classes, taken[0]))} ({taken[1]:,})" if taken else ""
    return (
        f'<tr><th scope="row">{escape(charts.class_name(classes, index))}</th>'
        f'<td class="number" data-key="{images}">{images:,}</td>'
        f'<td data-key="{"" if share is None else f"{share:.6f}"}">{shown}</td><td>{told}</td></tr>'
    )
