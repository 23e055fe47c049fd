"""The page of `davit explain`: every picture in full detail, as long as a browser can carry it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from davit.atomic import atomic_write
from davit.explain import drawing
from davit.explain.attention_maps import AttentionRecord
from davit.explain.explained import Explained
from davit.explain.explorer import explained_sections, sample_buttons
from davit.explain.page import make_page
from davit.explain.payload import EVERYTHING, sample_data
from davit.explain.report import table

PAGE_BYTES = 64_000_000  # of pictures' data; browsers of phones begin to fail at some hundred


class ExplainPage:
    """Collects explained pictures and writes them as one page.

    Attributes:
        left_out: names of the pictures that the page has no room for; their folders have everything.
    """

    def __init__(self, title: str, card: Mapping[str, str]) -> None:
        """Begin a page.

        Args:
            title: its heading.
            card: what was explained and how, in order.
        """
        self.title, self.card = title, dict(card)
        self.left_out: list[str] = []
        self._samples: list[tuple[Explained, dict[str, Any]]] = []
        self._links: list[tuple[str, str]] = []
        self._size = 0

    def add(self, sample: Explained, folder: str) -> None:
        """Take a picture in, whose files lie in a folder beside the page."""
        self._links.append((sample.name, folder))
        data = sample_data(sample, EVERYTHING)
        self._size += len(json.dumps(data))
        if self._samples and self._size > PAGE_BYTES:
            self.left_out.append(sample.name)
            return
        if self._samples:  # only the first is drawn without a script; the attention of many would fill the memory
            sample = replace(sample, record=AttentionRecord(windows=(), channels=()), rollout=None)
        self._samples.append((sample, data))

    def write(self, path: Path) -> int:
        """Write the page whole, or leave what was there; return its bytes.

        Raises:
            OSError: it cannot be written.
        """
        page = self._render().encode()
        with atomic_write(path) as file:
            file.write(page)
        return len(page)

    def _render(self) -> str:
        count = len(self._links)
        lead = f"{count} picture{'s' if count != 1 else ''} explained." if count else "No picture could be explained."
        sections: dict[str, tuple[str, str]] = {}
        if self._samples:
            sections["pictures"] = ("Pictures", self._pictures())
            sections |= explained_sections(self._samples, strip=False)
        sections["files"] = ("Files", self._files() + table(self.card))
        return make_page(self.title, lead, sections, [data for _, data in self._samples])

    def _pictures(self) -> str:
        first = self._samples[0][0]
        strip = sample_buttons([sample for sample, _ in self._samples]) if len(self._samples) > 1 else ""
        answer = "".join(
            f'<li><span>{escape(label)}</span>{share:.3f}<i style="--share:{100 * share:.1f}%"></i></li>'
            for label, share in first.answer
        )
        return (
            f'{strip}<div class="answered"><div class="view pad"><img src="{drawing.data_uri(first.image)}" '
            f'alt="{escape(first.name, quote=True)}"></div><div><h3 data-name>{escape(first.name)}</h3>'
            f'<ol class="scores" data-answer>{answer}</ol></div></div>'
        )

    def _files(self) -> str:
        rows = "".join(f'<li><a href="{quote(folder)}/">{escape(name)}</a></li>' for name, folder in self._links)
        left = len(self.left_out)
        note = (
            f'<p class="warning">The page had no room for {left} more; their folders have all PNGs.</p>' if left else ""
        )
        return f'{note}<p>Each picture has a folder of PNGs beside this page.</p><ul class="files">{rows}</ul>'
