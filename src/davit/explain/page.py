"""A page of sections: self-contained, with no address outside it."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from string import Template

_DRAWING = "explorer_draw.js"
_SCRIPTS = (_DRAWING, "page.js", "explorer.js")  # in one module, so that they need not import one another


def make_page(title: str, lead: str, sections: Mapping[str, tuple[str, str]], data: Sequence[object]) -> str:
    """Return the page.

    Args:
        title: heading.
        lead: one line below it.
        sections: (title, HTML) by anchor, in order.
        data: the explained pictures that the page's script draws, as JSON values.
    """
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, (name, _) in sections.items())
    bodies = [
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(name)}</h2>{body}</section>'
        for key, (name, body) in sections.items()
    ]
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        lead=escape(lead),
        navigation=f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        style=_asset("page.css"),
        sections="\n".join(bodies),
        data="\n".join(_data_element(each) for each in data),
        script="\n".join(_asset(name) for name in _SCRIPTS),
    )


def drawing_script() -> str:
    """The JavaScript module that draws what `sample_data` makes, for other pages."""
    return _asset(_DRAWING)


def _data_element(value: object) -> str:
    """An element of its own for each picture, so that a browser reads only the one it shows."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")  # it must not end the element
    return f'<script type="application/json" class="picture-data">{text}</script>'


@cache
def _asset(name: str) -> str:
    return resources.files("davit.explain").joinpath(name).read_text(encoding="utf-8")
