"""The report of a finished run of detection or segmentation."""

from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from davit.atomic import atomic_write
from davit.explain import charts, drawing
from davit.explain.draw_results import draw_detections, draw_segmentation, draw_truth
from davit.explain.explained import Explained
from davit.explain.explanation import explain_pixels
from davit.explain.explorer import explained_sections, within_budget
from davit.explain.model_card import model_card, notes_of, read_environment
from davit.explain.numbers import numbers_row
from davit.explain.page import make_page
from davit.explain.report import table
from davit.explain.targets import Target, find_targets, likeness
from davit.inference.predictor import Predictor
from davit.models.clip import ImageTextModel
from davit.models.detector import Detector
from davit.models.zero_shot import Embedder
from davit.structures import Detections, Segmentation
from davit.tasks.detection import DetectionMetric
from davit.tasks.segmentation import SegmentationMetric
from davit.train.run import RunResult

SHOWN, EXPLAINED, TARGETS = 12, 3, 3
SIDE = 384  # pixels of the longer side of a drawn picture, at most
THRESHOLD = 0.5

SCORES = {
    "detection": ("Average precision", {"box_ap": "boxes", "mask_ap": "masks"}),
    "segmentation": ("Segmentation", {"miou": "mean IoU", "aacc": "pixel accuracy"}),
}


def write_dense_report(result: RunResult, path: Path) -> None:
    """Write the page."""
    with atomic_write(path) as file:
        file.write(_page(result).encode())


def _page(result: RunResult) -> str:
    metric = result.metric
    assert isinstance(metric, (DetectionMetric, SegmentationMetric))
    title, names = SCORES["detection" if isinstance(result.model, Detector) else "segmentation"]
    result.model.cpu()
    keys = ("count", "seconds", "images_per_second", "parameters", "macs")
    scores = {key: value for key, value in result.metrics.items() if key.startswith(tuple(names))}
    shown = scores | {key: result.metrics[key] for key in keys}
    explained = explained_pictures(result)
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(result))
    sections = {
        "numbers": ("In numbers", numbers_row(shown) + (f'<ul class="notes">{notes}</ul>' if notes else "")),
        "curves": ("Learning curves", charts.learning_curves(result.history, title, names)),
        "classes": ("Classes", _classes(metric.per_class())),
        "pictures": ("Pictures", _gallery(result)),
        **explained_sections(explained),
        "card": ("Model card", table(model_card(result))),
        "environment": ("Environment", table(read_environment(result.folder))),
    }
    key = next(iter(names))
    count = result.metrics["count"]
    score = "Average precision of boxes" if key == "box_ap" else "Mean IoU"
    lead = f"{score}: {charts.percent(result.metrics[key])} on {count:,.0f} pictures it never saw."
    return make_page(f"DaViT run: {result.recipe.name}", lead, sections, [payload for _, payload in explained])


def _classes(rows: dict[str, dict[str, float | None]]) -> str:
    columns = [*next(iter(rows.values()))]
    heads = "".join(
        f'<th scope="col">{escape(column.replace("_", " ").replace(" ap", " AP"))}</th>'
        for column in ("class", *columns)
    )
    order = sorted(rows.items(), key=lambda row: (row[1][columns[0]] is None, row[1][columns[0]] or 0.0))
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="number">{_shown(row[column])}</td>' for column in columns)
        + "</tr>"
        for name, row in order
    )
    table = f'<table class="pairs"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f"<p>Every class, the worst first.</p>{table}"


def _shown(value: float | None) -> str:
    if value is None:
        return "not there"
    return f"{value:,}" if isinstance(value, int) else charts.percent(value)


def _gallery(result: RunResult) -> str:
    images, predictor = result.images.validation, Predictor(result.model, device="cpu")
    cards: list[str] = []
    for index in range(min(SHOWN, len(images))):
        picture, annotation = images[index]
        found = predictor(picture)[0]
        truth = draw_truth(picture, annotation, result.model.classes)
        cards += [_card("True", truth), _card("Found", _drawn(picture, found))]
    told = (
        f"Each picture twice: as it is annotated, and what the model finds in it (objects that score over {THRESHOLD})."
    )
    return f'<p>{told}</p><ul class="gallery">{"".join(cards)}</ul>'


def _drawn(picture: Image.Image, found: object) -> Image.Image:
    if isinstance(found, Segmentation):
        return draw_segmentation(picture, found)
    assert isinstance(found, Detections)
    return draw_detections(picture, found, THRESHOLD)


def _card(name: str, image: Image.Image) -> str:
    return f'<li><img class="photo" alt="{name}" src="{drawing.data_uri(drawing.fit(image, SIDE))}"><p>{name}</p></li>'


def explained_pictures(result: RunResult) -> list[tuple[Explained, dict[str, object]]]:
    """Some validation pictures explained."""
    images, model = result.images.validation, result.model.eval()
    assert model.preprocessing is not None

    def explain(index: int) -> Explained:
        pixels = model.preprocessing(images[index][0])
        targets = _targets(result, pixels, index)
        name = images.name(index)
        return explain_pixels(model, pixels, targets, preprocessing=model.preprocessing, name=name)

    return within_budget(explain(index) for index in range(min(EXPLAINED, len(images))))


def _targets(result: RunResult, pixels: Tensor, index: int) -> list[Target]:
    """The surest of the answer; of an image-text model, which gives none, the likeness to the picture's caption."""
    model, images = result.model, result.images.validation
    if not isinstance(model, ImageTextModel):
        return find_targets(model, pixels, count=TARGETS)
    with torch.no_grad():
        vector = model.embed_texts(images[index][1].tokens[None])[0]
    return [likeness(Embedder(model).eval(), pixels, vector, images.caption(index))]
