"""The report of a finished image-text run: what is found for pictures, for captions, and how similar all are."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davit.atomic import atomic_write
from davit.data.evaluation_loader import evaluation_batches
from davit.data.loader import Part
from davit.explain import charts, drawing
from davit.explain.dense_report import explained_pictures
from davit.explain.explorer import explained_sections
from davit.explain.model_card import model_card, notes_of, read_environment
from davit.explain.numbers import numbers_row
from davit.explain.page import make_page
from davit.explain.report import table
from davit.models.clip import ImageTextModel
from davit.train.run import RunResult

SEARCHED = 200  # pairs among which is searched
ASKED, FOUND = 8, 4  # queries shown each way, and answers of each
IN_MATRIX = 16
SIDE = 256  # pixels of the longer side of a picture, at most
BATCH = 32
SCORES = {"image_to_text_r1": "captions of pictures, first", "text_to_image_r1": "pictures of captions, first"}


@dataclass(frozen=True, kw_only=True)
class _Space:
    """The pairs searched, the similarity of each picture (row) with each caption, and what belongs together."""

    result: RunResult
    captions: list[str]
    similar: Tensor
    own: Tensor

    def picture(self, index: int) -> str:
        """A picture as an element of the page."""
        image = drawing.fit(self.result.images.validation[index][0], SIDE)
        text = escape(self.captions[index], quote=True)
        return f'<img class="photo" alt="{text}" src="{drawing.data_uri(image)}">'


def write_contrastive_report(result: RunResult, path: Path) -> None:
    """Write the page."""
    space = _search(result)
    explained = explained_pictures(result)
    keys = ("count", "seconds", "images_per_second", "parameters", "macs")
    shown = {key: result.metrics[key] for key in (*SCORES, "image_to_text_r5", "text_to_image_r5", *keys)}
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(result))
    sections = {
        "numbers": ("In numbers", numbers_row(shown) + (f'<ul class="notes">{notes}</ul>' if notes else "")),
        "curves": ("Learning curves", charts.learning_curves(result.history, "Found first", SCORES)),
        "captions": ("From a picture to captions", _to_captions(space)),
        "pictures": ("From a caption to pictures", _to_pictures(space)),
        "matrix": ("Similarities", _matrix(space)),
        **explained_sections(explained),
        "card": ("Model card", table(model_card(result))),
        "environment": ("Environment", table(read_environment(result.folder))),
    }
    lead = (
        f"{charts.percent(result.metrics['image_to_text_r1'])} of {result.metrics['count']:,.0f} pictures it never saw "
        "find their caption first among all."
    )
    page = make_page(f"DaViT run: {result.recipe.name}", lead, sections, [payload for _, payload in explained])
    with atomic_write(path) as file:
        file.write(page.encode())


def _search(result: RunResult) -> _Space:
    model, images = result.model.cpu(), result.images.validation
    assert isinstance(model, ImageTextModel)
    assert model.preprocessing is not None
    part: Any = Part(images, list(range(min(SEARCHED, len(images)))))
    found: list[tuple[Tensor, ...]] = []
    for batch in evaluation_batches(part, model.preprocessing, batch_size=BATCH, workers=0):
        with torch.inference_mode():
            found.append((*model(batch.images, batch.texts)[:2], batch.targets[:, 0]))
    pictures, texts, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    captions = [images.caption(index) for index in range(len(part))]
    return _Space(result=result, captions=captions, similar=pictures @ texts.T, own=labels[:, None] == labels)


def _to_captions(space: _Space) -> str:
    cards: list[str] = []
    for index in range(min(ASKED, len(space.captions))):
        answers: dict[str, tuple[float, bool]] = {}  # equal captions are one answer
        for place in space.similar[index].argsort(descending=True).tolist():
            answers.setdefault(
                space.captions[place], (float(space.similar[index, place]), bool(space.own[index, place]))
            )
            if len(answers) == FOUND:
                break
        rows = "".join(_answer(text, similar, right) for text, (similar, right) in answers.items())
        title = f"<p>{escape(space.captions[index])}</p>"
        cards.append(f'<li>{space.picture(index)}{title}<ul class="scores sentences">{rows}</ul></li>')
    told = f"Each picture with its caption, and the {FOUND} most similar captions of {len(space.captions)} pairs."
    return f'<p>{told} A tick marks its own.</p><ul class="gallery">{"".join(cards)}</ul>'


def _answer(text: str, similar: float, right: bool) -> str:
    mark = "&#10003; " if right else ""
    share = max(similar, 0.0)
    named = escape(text, quote=True)
    return f'<li><span title="{named}">{mark}{named}</span>{similar:.2f}<i style="--share:{share:.0%}"></i></li>'


def _to_pictures(space: _Space) -> str:
    rows: list[str] = []
    for index in range(min(ASKED, len(space.captions))):
        best = space.similar[:, index].argsort(descending=True)[:FOUND].tolist()
        cards = "".join(
            f"<li>{space.picture(place)}<p>{'&#10003; ' if space.own[place, index] else ''}"
            f"{float(space.similar[place, index]):.2f}</p></li>"
            for place in best
        )
        rows.append(f'<h3>{escape(space.captions[index])}</h3><ul class="gallery">{cards}</ul>')
    told = f"Each caption with the {FOUND} most similar pictures of {len(space.captions)}. A tick marks its own."
    return f"<p>{told}</p>{''.join(rows)}"


def _matrix(space: _Space) -> str:
    count = min(IN_MATRIX, len(space.captions))
    values = space.similar[:count, :count]
    heads = "".join(f'<th scope="col">{column + 1}</th>' for column in range(count))
    body = "".join(
        f'<tr><th scope="row">{row + 1}. {escape(space.captions[row])}</th>'
        + "".join(_cell(float(values[row, column]), bool(space.own[row, column])) for column in range(count))
        + "</tr>"
        for row in range(count)
    )
    told = (
        f"The first {count} pictures (columns) by their captions (rows): the cosine of each with each, times 100. "
        "What belongs together is blue."
    )
    grid = f'<table class="confusion"><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<p>{told}</p><div class="scroll">{grid}</div>'


def _cell(value: float, own: bool) -> str:
    share = max(value, 0.0)
    full = " full" if share > 0.6 else ""
    if not own and share < 0.2:
        return f'<td class="quiet">{100 * value:.0f}</td>'
    return f'<td class="{"hit" if own else "miss"}{full}" style="--share:{share:.2f}">{100 * value:.0f}</td>'
