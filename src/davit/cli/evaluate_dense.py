"""`davit evaluate` for detectors and segmenters."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from davit.models.detector import Detector
    from davit.models.upernet import Segmenter
    from davit.tasks.detection import DetectionMetric
    from davit.tasks.segmentation import SegmentationMetric


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """How a detector or segmenter is scored.

    Attributes:
        batch_size: pictures of one size computed at once.
        workers: processes that decode; None for one per CPU, 8 at most.
        device: where to compute; None chooses.
        class_list: names of the labels of index masks.
        ignore: labels that stand for no class.
    """

    batch_size: int
    workers: int | None
    device: str | None
    class_list: Path | None
    ignore: tuple[int, ...]


def evaluate_dense(
    model: "Detector | Segmenter", checkpoint: str, data: str, options: DenseOptions, *, json: bool, per_class: bool
) -> int:
    """Score a model on COCO annotations or index masks, and print the scores."""
    from davit.models.detector import Detector
    from davit.records import to_json

    images, metric = _detection(model, data) if isinstance(model, Detector) else _segmentation(model, data, options)
    scores = _score(model, images, metric, options)
    report = {
        **scores,
        "per_class": metric.per_class(),
        "checkpoint": checkpoint,
        "data": data,
        "preprocessing": to_json(model.preprocessing),
    }
    print(dumps(report, indent=2) if json else _table(report, per_class))
    return 0


def _detection(model: "Detector", data: str) -> "tuple[Any, DetectionMetric]":
    from davit.data.coco import CocoImages, find_coco
    from davit.tasks.detection import DetectionConfig, DetectionTask

    masks = model.config.head.kind == "mask_rcnn"
    images = CocoImages(*find_coco(data).validation, masks=masks, classes=model.classes or None)
    task = DetectionTask(DetectionConfig(masks=masks), images.classes, images.ground_truth(), images.category_ids)
    return images, task.metric()


def _segmentation(model: "Segmenter", data: str, options: DenseOptions) -> "tuple[Any, SegmentationMetric]":
    from davit.data.masks import MaskFolder, mask_parts
    from davit.tasks.segmentation import SegmentationMetric

    part = "val" if "val" in mask_parts(data) else next(iter(mask_parts(data)))
    images = MaskFolder(data, part, model.classes or None, class_list=options.class_list, ignore=options.ignore)
    return images, SegmentationMetric(images.classes)


def _score(model: "Detector | Segmenter", images: Any, metric: Any, options: DenseOptions) -> dict[str, float]:
    from tqdm import tqdm

    from davit.data.evaluation_loader import equal_sizes, picture_batches
    from davit.evaluation.evaluate import evaluate
    from davit.inference.backends.eager import EagerBackend

    backend = EagerBackend(model, options.device)
    workers = min(8, os.cpu_count() or 1) if options.workers is None else options.workers
    order = equal_sizes(images, backend.preprocessing, range(len(images)), options.batch_size)
    batches = picture_batches(images, backend.preprocessing, order=order, workers=workers)
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:

        def counted(pixels: "Tensor") -> Any:
            bar.update(len(pixels))
            return backend(pixels)

        return evaluate(counted, batches, metric)


def _table(report: Mapping[str, Any], per_class: bool) -> str:
    scores = {name: value for name, value in report.items() if isinstance(value, (int, float))}
    lines = [f"{report['checkpoint']} on {report['data']}", ""]
    lines += [f"  {name:<14} {_shown(value)}" for name, value in scores.items()]
    if per_class:
        rows: Mapping[str, Mapping[str, float | None]] = report["per_class"]
        columns = [*next(iter(rows.values()))]
        wide = max(len("class"), *(len(name) for name in rows))
        lines += ["", f"  {'class':<{wide}}" + "".join(f" {column:>10}" for column in columns)]
        lines += [
            f"  {name:<{wide}}" + "".join(f" {_shown(row[column]):>10}" for column in columns)
            for name, row in rows.items()
        ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    """Counts as they are, fractions as percent."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.2f} %"
