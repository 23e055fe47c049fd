"""One run as one HTML page: numbers, curves, mistakes, and what the model attends to."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import torch
from PIL import Image
from torch import Tensor

from davit.explain import charts, drawing, explorer
from davit.explain.attention import record_attention
from davit.models.classifier import Classifier
from davit.weights.atomic import atomic_write

MOST_WRONG = 24
MOST_RIGHT = 12
MOST_EXPLAINED = 8
ATTENTION_BYTES = 2_500_000
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
    """

    image: Image.Image
    pixels: Tensor
    target: int
    prediction: int
    score: float


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """All that a report shows.

    Attributes:
        title: heading of the page.
        model: trained, in eval mode, with its `classes` and `preprocessing`.
        history: lines of the run's log: `step`, `loss`, `learning_rate`; evaluations `top1`, `validation_loss`.
        metrics: final numbers: `top1` and `top5` as shares in 0-1, `count`, `images_per_second`, `parameters`, `macs`.
        confusion: counts; rows are true classes, columns predicted ones.
        samples: pictures to show; the first wrong and right ones are.
        card: lines of the model card, in order.
    """

    title: str
    model: Classifier
    history: list[dict[str, float]]
    metrics: dict[str, float]
    confusion: list[list[int]]
    samples: list[Sample]
    card: dict[str, str]


def write_report(data: ReportInput, path: Path) -> None:
    """Write the page; a reader of `path` sees the old page or the new one, never a part."""
    page = render(data).encode()
    with atomic_write(path) as file:
        file.write(page)


def render(data: ReportInput) -> str:
    """Return the page: self-contained, with no address outside it."""
    explained = _explained(data)
    sections = {
        "numbers": ("In numbers", _numbers(data.metrics)),
        "curves": ("Learning curves", _curves(data)),
        "confusion": ("Confusion matrix", _confusion(data)),
        "predictions": ("Predictions", _gallery(data)),
        **_attention_sections(explained),
        "card": ("Model card", _card(data)),
    }
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, (title, _) in sections.items())
    bodies = [
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(title)}</h2>{body}</section>'
        for key, (title, body) in sections.items()
    ]
    return Template(_asset("page.html")).substitute(
        title=escape(data.title),
        lead=escape(_lead(data)),
        navigation=f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        style=_asset("page.css"),
        sections="\n".join(bodies),
        attention=_script_json([payload for _, payload in explained]),
        script=_asset("page.js"),
    )


def _lead(data: ReportInput) -> str:
    total = sum(map(sum, data.confusion))
    right = sum(row[index] for index, row in enumerate(data.confusion))
    if not total:
        return "No images were evaluated."
    classes = len(data.confusion)
    return f"The model names {right:,} of {total:,} images right, among {classes} class{'es' if classes > 1 else ''}."


def _numbers(metrics: dict[str, float]) -> str:
    shown = [(_label(key), _amount(key, value)) for key, value in metrics.items()]
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in shown)
    return f'<dl class="numbers-row">{items}</dl>'


def _label(key: str) -> str:
    known = {
        "top1": "Top-1 accuracy",
        "top5": "Top-5 accuracy",
        "count": "Test images",
        "seconds": "Training time",
        "images_per_second": "Images per second",
        "parameters": "Parameters",
        "macs": "Multiply-adds",
        "validation_loss": "Validation loss",
    }
    return known.get(key, key.replace("_", " ").capitalize())


def _amount(key: str, value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    if key.startswith("top"):
        return charts.percent(value)
    if key == "seconds":
        return f"{value:.1f} s"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e5, " k")):
        if value >= size:
            return f"{value / (1e3 if size == 1e5 else size):.3g}{suffix}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else charts.plain(value)


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
    told = "<p>What the model said for the pictures of each class. Mistakes lie off the diagonal, in red.</p>"
    if len(data.confusion) > charts.MOST_CLASSES:
        told = "<p>The classes that the model mistakes for one another.</p>"
    return told + charts.confusion_matrix(data.confusion, data.model.classes)


def _gallery(data: ReportInput) -> str:
    wrong = [sample for sample in data.samples if sample.prediction != sample.target][:MOST_WRONG]
    right = [sample for sample in data.samples if sample.prediction == sample.target][:MOST_RIGHT]
    parts = []
    for name, samples, none in (
        ("Wrong", wrong, "No mistakes among the pictures given to this report."),
        ("Right", right, "No right answers among the pictures given to this report."),
    ):
        cards = "".join(_prediction(data.model, sample) for sample in samples)
        listed = f'<ul class="gallery">{cards}</ul>' if cards else f"<p>{none}</p>"
        parts.append(f"<h3>{name}</h3>{listed}")
    return f"<p>The bars are the three classes the model finds most likely.</p>{''.join(parts)}"


def _prediction(model: Classifier, sample: Sample) -> str:
    true, said = _class(model, sample.target), _class(model, sample.prediction)
    right = sample.prediction == sample.target
    verdict = f"<strong>{escape(true)}</strong>" + ("" if right else f" <span>taken for</span> {escape(said)}")
    scores = "".join(
        f"<li><span>{escape(_class(model, index))}</span>{charts.percent(score)}"
        f'<i style="--share:{100 * score:.1f}%"></i></li>'
        for index, score in _top(model, sample.pixels)
    )
    small = "pixel" if max(sample.image.size) <= drawing.CRISP else "photo"
    image = sample.image if sample.image.mode in ("L", "RGB") else sample.image.convert("RGB")
    return (
        f'<li class="{"right" if right else "wrong"}"><img class="{small}" alt="{escape(true)}" '
        f'src="{drawing.data_uri(drawing.fit(image, THUMBNAIL))}"><p class="verdict">{verdict} '
        f'<span>{charts.percent(sample.score)}</span></p><ol class="scores">{scores}</ol></li>'
    )


def _top(model: Classifier, pixels: Tensor) -> list[tuple[int, float]]:
    with torch.no_grad():
        scores = model(pixels[None].to(next(model.parameters())))[0].float().softmax(-1)
    best = scores.topk(min(TOP, len(scores)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _class(model: Classifier, index: int) -> str:
    return model.classes[index] if index < len(model.classes) else str(index)


def _explained(data: ReportInput) -> list[tuple[explorer.Explained, dict[str, object]]]:
    """Samples with their attention, wrong and right in turn, as many as the page should carry."""
    wrong = [sample for sample in data.samples if sample.prediction != sample.target]
    right = [sample for sample in data.samples if sample.prediction == sample.target]
    half = MOST_EXPLAINED // 2
    chosen = wrong[: max(half, MOST_EXPLAINED - len(right))]
    chosen = right[: MOST_EXPLAINED - len(chosen)] + chosen
    explained: list[tuple[explorer.Explained, dict[str, object]]] = []
    size = 0
    for sample in chosen:
        each = explorer.Explained(
            image=drawing.picture(sample.pixels, data.model.preprocessing),
            name=_class(data.model, sample.target),
            right=sample.prediction == sample.target,
            record=record_attention(data.model, sample.pixels),
        )
        payload = explorer.sample_data(each)
        size += len(json.dumps(payload))
        if explained and size > ATTENTION_BYTES:
            break
        explained.append((each, payload))
    return explained


def _attention_sections(explained: Sequence[tuple[explorer.Explained, object]]) -> dict[str, tuple[str, str]]:
    samples = [sample for sample, _ in explained]
    if not samples:
        return {}
    sections: dict[str, tuple[str, str]] = {}
    buttons = explorer.sample_buttons(samples)
    if samples[0].record.windows:
        told = (
            "<p>At each stage, every position of the picture looks only at the positions in its own window. Choose a "
            "position: the bright squares are what it draws on. Later stages see coarser, wider windows.</p>"
        )
        sections["windows"] = ("Window attention", told + buttons + explorer.window_section(samples[0]))
    if samples[0].record.channels:
        told = (
            "<p>Here each channel of the network, a picture of its own, is mixed with the other channels of its group, "
            "over the whole image at once. In the affinity matrix, a row says which channels (columns) a channel takes "
            "from: bright means much.</p>"
        )
        sections["channels"] = ("Channel attention", told + buttons + explorer.channel_section(samples[0]))
    return sections


def _card(data: ReportInput) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in data.card.items()
    )
    return f'<table class="card"><tbody>{rows}</tbody></table>' if rows else "<p>No card was given.</p>"


def _script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _asset(name: str) -> str:
    return resources.files("davit.explain").joinpath(name).read_text(encoding="utf-8")
