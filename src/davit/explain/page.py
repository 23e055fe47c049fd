"""A page of sections: self-contained, with no address outside it."""

import json
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from string import Template


def make_page(title: str, lead: str, sections: Mapping[str, tuple[str, str]], data: object) -> str:
    """Return the page.

    Args:
        title: heading.
        lead: one line below it.
        sections: (title, HTML) by anchor, in order.
        data: what the page's script reads, as JSON values.
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
        attention=_script_json(data),
        script=f"{drawing_script()}\n{_asset('page.js')}",
    )


def drawing_script() -> str:
    """The JavaScript module that draws the data of `sample_data`; the page's own script follows it in one element."""
    return _asset("attention.js")


def _script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _asset(name: str) -> str:
    return resources.files("davit.explain").joinpath(name).read_text(encoding="utf-8")
