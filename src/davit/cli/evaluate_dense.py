"""`davit evaluate` for detectors and segmenters."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from davit.cpus import usual_workers

if TYPE_CHECKING:
    from torch import Tensor

    from davit.data.scenes import Scenes
    from davit.evaluation.views import Views
    from davit.inference.backends.protocol import Backend
    from davit.tasks.detection import DetectionMetric
    from davit.tasks.segmentation import SegmentationMetric


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """How a detector or segmenter is scored.

    Attributes:
        batch_size: pictures of one size computed at once.
        workers: processes that decode; None for one per CPU, 8 at most.
        class_list: names of the labels of index masks.
        ignore: labels that stand for no class.
        views: how a segmenter looks at a picture.
        allow_missing: leave out pictures that cannot be decoded.
    """

    batch_size: int
    workers: int | None
    class_list: Path | None
    ignore: tuple[int, ...]
    views: "Views"
    allow_missing: bool = False

    @property
    def processes(self) -> int:
        """How many decode."""
        return usual_workers() if self.workers is None else self.workers


def evaluate_dense(
    backend: "Backend", checkpoint: str, data: str, options: DenseOptions, *, json: bool, per_class: bool
) -> int:
    """Score a model on COCO annotations or index masks, and print the scores."""
    from davit.data.readable import readable
    from davit.records import to_json

    detects = backend.kind == "detection"
    if detects and not options.views.plain:
        raise ValueError("--scales, --flip and --window are for segmenters, and this is a detector")
    images, metric = open_dense(backend, data, options)
    chosen, left_out = list(range(len(images))), list[str]()
    if options.allow_missing:
        chosen, left_out = readable(images, options.processes)
    for fault in left_out:
        print(f"davit evaluate: left out: {fault}", file=sys.stderr)
    scores = score_dense(backend, images, chosen, metric, options)
    report = {
        **scores,
        "left_out": left_out,
        **({} if detects else {"views": options.views.to_json()}),
        "per_class": metric.per_class(),
        "checkpoint": checkpoint,
        "data": data,
        "preprocessing": to_json(backend.preprocessing),
    }
    print(dumps(report, indent=2) if json else _table(report, per_class))
    return 0


def open_dense(
    backend: "Backend", data: str, options: DenseOptions
) -> "tuple[Any, DetectionMetric | SegmentationMetric]":
    """Find the labelled pictures of a model's kind, and what adds up its scores on them."""
    return (_detection if backend.kind == "detection" else _segmentation)(backend, data, options)


def _detection(backend: "Backend", data: str, options: DenseOptions) -> "tuple[Any, DetectionMetric]":
    from davit.cli.builtin import is_builtin, scenes_of_test
    from davit.data.coco import CocoImages, find_coco
    from davit.models.detector_config import DetectorConfig
    from davit.tasks.detection import DetectionConfig, DetectionMetric, DetectionTask

    assert isinstance(backend.config, DetectorConfig)
    masks = backend.config.head.kind == "mask_rcnn"
    images: CocoImages | Scenes
    if is_builtin(data):
        images = scenes_of_test(data, "detection", backend.classes)
    else:
        images = CocoImages(*find_coco(data).validation, masks=masks, classes=backend.classes or None)
    task = DetectionTask(DetectionConfig(masks=masks), images.classes, images.ground_truth(), images.category_ids)
    return images, DetectionMetric(task, allow_missing=options.allow_missing)


def _segmentation(backend: "Backend", data: str, options: DenseOptions) -> "tuple[Any, SegmentationMetric]":
    from davit.cli.builtin import is_builtin, scenes_of_test
    from davit.data.masks import MaskFolder, mask_parts
    from davit.tasks.segmentation import SegmentationMetric

    if is_builtin(data):
        if options.ignore or options.class_list is not None:
            raise ValueError(f"--ignore and --class-list are for folders of index masks, and {data} is built in")
        scenes = scenes_of_test(data, "segmentation", backend.classes)
        return scenes, SegmentationMetric(scenes.classes)
    part = "val" if "val" in mask_parts(data) else next(iter(mask_parts(data)))
    images = MaskFolder(data, part, backend.classes or None, class_list=options.class_list, ignore=options.ignore)
    return images, SegmentationMetric(images.classes)


def score_dense(
    backend: "Backend", images: Any, chosen: list[int], metric: Any, options: DenseOptions
) -> dict[str, float]:
    """Score a model on the chosen pictures of `open_dense`."""
    from tqdm import tqdm

    from davit.data.evaluation_loader import equal_sizes, picture_batches
    from davit.evaluation.evaluate import evaluate

    preprocessing = options.views.prepared(backend.preprocessing)
    at_once = options.batch_size if options.views.plain else 1  # scores of whole pictures are large
    order = equal_sizes(images, preprocessing, chosen, at_once)
    batches = picture_batches(images, preprocessing, order=order, workers=options.processes)
    look = options.views.of(backend, backend.preprocessing)
    with tqdm(total=len(chosen), unit="image", disable=None, leave=False) as bar:

        def counted(pixels: "Tensor") -> Any:
            bar.update(len(pixels))
            return look(pixels if options.views.plain else pixels.to(backend.device))

        return evaluate(counted, batches, metric)


def _table(report: Mapping[str, Any], per_class: bool) -> str:
    scores = {name: value for name, value in report.items() if isinstance(value, (int, float))}
    lines = [f"{report['checkpoint']} on {report['data']}{_told(report.get('views'))}", ""]
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


def _told(views: Mapping[str, Any] | None) -> str:
    """How pictures were looked at, where it was not once and whole."""
    if views is None:
        return ""
    told = [f"at {len(views['scales'])} sizes"] * (views["scales"] != [1.0]) + ["mirrored too"] * views["flip"]
    if views["window"]:
        told.append("through windows of {}x{}".format(*views["window"]))
    return "".join(f", {part}" for part in told)


def _shown(value: float | None) -> str:
    """Counts as they are, fractions as percent."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.2f} %"
