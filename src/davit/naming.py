"""Errors for names that do not exist, with the nearest ones that do."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> ValueError:
    """Make the error for an unknown `kind` of thing: it names the value, the nearest names and all choices."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    shown = names[: 12 if near else 60]
    listed = ", ".join(shown) + (f", and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
    return ValueError(f"unknown {kind} {name!r}.{hint} Choices: {listed}")
