"""One run as one HTML page: numbers, curves, mistakes, and what the model attends to."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from davit.atomic import atomic_write
from davit.explain import charts, drawing
from davit.explain.class_table import class_table, counts_of
from davit.explain.explained import Explained
from davit.explain.explanation import explain_pixels
from davit.explain.explorer import explained_sections, within_budget
from davit.explain.numbers import numbers_row
from davit.explain.page import make_page
from davit.explain.targets import find_targets
from davit.models.classifier import Classifier

MOST_WRONG = 24
MOST_RIGHT = 12
MOST_EXPLAINED = 8
THUMBNAIL = 256
TOP = 3


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One evaluated picture.

    Attributes:
        image: the picture itself, any size.
        pixels: what the model was given, (C, H, W), normalised.
        target: index of the true class.
        prediction: index of the predicted class.
        score: its probability.
        name: of its file, where it has one.
    """

    image: Image.Image
    pixels: Tensor
    target: int
    prediction: int
    score: float
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """All that a report shows.

    Attributes:
        title: heading of the page.
        model: trained, in eval mode, with its `classes` and `preprocessing`.
        history: lines of the run's log: `step`, `loss`, `learning_rate`; evaluations `top1`, `validation_loss`.
        metrics: final numbers: `top1` and `top5` as shares in 0-1, `count`, `images_per_second`, `parameters`, `macs`.
        confusion: counts; rows are true classes, columns predicted ones; empty where there are too many classes.
        samples: pictures to show; the first wrong and right ones are.
        card: lines of the model card, in order.
        counts: (images, right answers) of each class; those of `confusion`, if not given.
        environment: what the run ran on, in order.
        notes: what else to know: skipped steps, replaced files, held-out images.
        searched: how many evaluated images the mistakes were chosen from; 0 for all.
    """

    title: str
    model: Classifier
    history: list[dict[str, float]]
    metrics: dict[str, float]
    confusion: list[list[int]]
    samples: list[Sample]
    card: dict[str, str]
    counts: list[tuple[int, int]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    searched: int = 0


def write_report(data: ReportInput, path: Path) -> None:
    """Write the page; a reader of `path` sees the old page or the new one, never a part."""
    page = render(data).encode()
    with atomic_write(path) as file:
        file.write(page)


def render(data: ReportInput) -> str:
    """Return the page: self-contained, with no address outside it."""
    explained = _explained(data)
    sections = {
        "numbers": ("In numbers", numbers_row(data.metrics) + _notes(data)),
        "curves": ("Learning curves", _curves(data)),
        "classes": ("Classes", _classes(data)),
        "confusion": ("Confusion matrix", _confusion(data)),
        "predictions": ("Predictions", _gallery(data)),
        **explained_sections(explained),
        "card": ("Model card", table(data.card) or "<p>No card was given.</p>"),
    }
    if data.environment:
        sections["environment"] = ("Environment", table(data.environment))
    return make_page(data.title, _lead(data), sections, [payload for _, payload in explained])


def _lead(data: ReportInput) -> str:
    counts = _counts(data)
    total, right = sum(images for images, _ in counts), sum(hits for _, hits in counts)
    if not total:
        return "No images were evaluated."
    classes = len(counts)
    return f"The model names {right:,} of {total:,} images right, among {classes:,} class{'es' if classes > 1 else ''}."


def _counts(data: ReportInput) -> list[tuple[int, int]]:
    return data.counts or counts_of(data.confusion)


def _notes(data: ReportInput) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in data.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _classes(data: ReportInput) -> str:
    told = "<p>Every class, the least often right first; a click on a heading sorts by it.</p>"
    return told + class_table(_counts(data), data.confusion, data.model.classes)


def _curves(data: ReportInput) -> str:
    lines = [line for line in data.history if "top1" in line]
    told = (
        "<p>The loss the model was trained on, the share of unseen pictures it names right, and how fast it was "
        "allowed to change. Where a line is doubled, the thin one is the log and the thick one averages it.</p>"
    )
    if len(lines) < 2:
        return told + charts.learning_curves(data.history)
    rows = "".join(
        f"<tr><td>{line.get('step', 0):.0f}</td><td>{charts.percent(line['top1'])}</td>"
        f"<td>{charts.plain(line['validation_loss']) if 'validation_loss' in line else ''}</td></tr>"
        for line in charts.thin(lines)
    )
    table = (
        '<table class="pairs"><thead><tr><th scope="col">Step</th><th scope="col">Top-1</th>'
        f'<th scope="col">Validation loss</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    details = f"<details><summary>The evaluations as a table</summary>{table}</details>"
    return told + charts.learning_curves(data.history) + details


def _confusion(data: ReportInput) -> str:
    if not data.confusion:
        return "<p>Pairs of classes were not counted, for there are too many classes.</p>"
    told = "<p>What the model said for the pictures of each class. Mistakes lie off the diagonal, in red.</p>"
    if len(data.confusion) > charts.MOST_CLASSES:
        told = "<p>The classes that the model mistakes for one another.</p>"
    return told + charts.confusion_matrix(data.confusion, data.model.classes)


def _gallery(data: ReportInput) -> str:
    wrong = [sample for sample in data.samples if sample.prediction != sample.target][:MOST_WRONG]
    right = [sample for sample in data.samples if sample.prediction == sample.target][:MOST_RIGHT]
    parts = []
    for name, samples, none in (
        ("Worst mistakes", wrong, "No mistakes among the pictures given to this report."),
        ("Right", right, "No right answers among the pictures given to this report."),
    ):
        cards = "".join(_prediction(data.model, sample) for sample in samples)
        listed = f'<ul class="gallery">{cards}</ul>' if cards else f"<p>{none}</p>"
        parts.append(f"<h3>{name}</h3>{listed}")
    among = f" They were chosen among {data.searched:,} of the images." if data.searched else ""
    told = "The surest mistakes first. The bars are the three classes the model finds most likely."
    return f"<p>{told}{among}</p>{''.join(parts)}"


def _prediction(model: Classifier, sample: Sample) -> str:
    true, said = charts.class_name(model.classes, sample.target), charts.class_name(model.classes, sample.prediction)
    right = sample.prediction == sample.target
    verdict = f"<strong>{escape(true)}</strong>" + ("" if right else f" <span>taken for</span> {escape(said)}")
    scores = "".join(
        f"<li><span>{escape(charts.class_name(model.classes, index))}</span>{charts.percent(score)}"
        f'<i style="--share:{100 * score:.1f}%"></i></li>'
        for index, score in _top(model, sample.pixels)
    )
    small = "pixel" if max(sample.image.size) <= drawing.CRISP else "photo"
    image = sample.image if sample.image.mode in ("L", "RGB") else sample.image.convert("RGB")
    file = f'<p class="file" title="{escape(sample.name)}">{escape(sample.name)}</p>' if sample.name else ""
    return (
        f'<li class="{"right" if right else "wrong"}"><img class="{small}" alt="{escape(true)}" '
        f'src="{drawing.data_uri(drawing.fit(image, THUMBNAIL))}"><p class="verdict">{verdict} '
        f'<span>{charts.percent(sample.score)}</span></p><ol class="scores">{scores}</ol>{file}</li>'
    )


def _top(model: Classifier, pixels: Tensor) -> list[tuple[int, float]]:
    with torch.no_grad():
        scores = model(pixels[None].to(next(model.parameters())))[0].float().softmax(-1)
    best = scores.topk(min(TOP, len(scores)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _explained(data: ReportInput) -> list[tuple[Explained, dict[str, object]]]:
    """Samples explained, wrong and right in turn, as many as the page should carry."""
    wrong = [sample for sample in data.samples if sample.prediction != sample.target]
    right = [sample for sample in data.samples if sample.prediction == sample.target]
    half = MOST_EXPLAINED // 2
    chosen = wrong[: max(half, MOST_EXPLAINED - len(right))]
    chosen = right[: MOST_EXPLAINED - len(chosen)] + chosen
    return within_budget(_explain(data.model, sample) for sample in chosen)


def _explain(model: Classifier, sample: Sample) -> Explained:
    """What the model said is explained, and the true class beside it."""
    classes = dict.fromkeys((sample.prediction, sample.target))
    targets = [target for index in classes for target in find_targets(model, sample.pixels, class_index=index)]
    return explain_pixels(
        model,
        sample.pixels,
        targets,
        preprocessing=model.preprocessing,
        name=charts.class_name(model.classes, sample.target),
        right=sample.prediction == sample.target,
    )


def table(lines: dict[str, str]) -> str:
    """A table of two columns."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in lines.items()
    )
    return f'<table class="card"><tbody>{rows}</tbody></table>' if rows else ""
