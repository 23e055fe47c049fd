"""What `davit export --int8` fits a model to, and judges it by."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from davit.cpus import usual_workers

if TYPE_CHECKING:
    from PIL.Image import Image

    from davit.data.images import LabelledImages
    from davit.inference.backends.protocol import Backend
    from davit.inference.export import Int8
    from davit.models.classifier import Classifier
    from davit.weights.load import LoadedModel

COMPARED = 64  # pictures on which answers are compared and speed is measured


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Where the images for int8 come from.

    Attributes:
        data: a folder: of class folders, of pictures with objects or masks as `davit evaluate` takes them, or of any.
        fitted: images to fit to.
        judged: labelled images to score.
        max_drop: points of a hundred that the score may lose.
    """

    data: Path
    fitted: int
    judged: int
    max_drop: float


def find_int8(model: "LoadedModel", calibration: Calibration) -> "Int8":
    """Find images to fit to and to judge by: labelled ones where the folder has them for this model.

    Raises:
        ValueError: no images, or a model that does not say how they are prepared.
        OSError: an image cannot be read.
    """
    from davit.models.classifier import Classifier

    if model.preprocessing is None:
        raise ValueError("this model does not say how images are prepared for it, so it cannot be fitted to any")
    try:
        return _labelled(model, calibration) if isinstance(model, Classifier) else _dense(model, calibration)
    except ValueError as error:
        print(f"davit export: no labels are used: {error}", file=sys.stderr)
    return _unlabelled(model, calibration)


def _labelled(model: "Classifier", calibration: Calibration) -> "Int8":
    from davit.data.images import find_images
    from davit.inference.export import Int8

    source = find_images(calibration.data)
    part = "train" if "train" in source.parts else source.validation
    settings: dict[str, Any] = {"num_classes": model.config.num_classes, "allow_missing": True}
    judged = source.open(source.validation, model.classes, **settings)
    fitted = judged if part == source.validation else source.open(part, model.classes, **settings)
    for_fit = spread(len(fitted), calibration.fitted)
    taken = set(for_fit) if fitted is judged and len(judged) > calibration.fitted else set()
    left = [index for index in range(len(judged)) if index not in taken]
    for_score = [left[place] for place in spread(len(left), calibration.judged)]
    compared = [for_score[place] for place in spread(len(for_score), COMPARED)]
    prepare = _preparing(model)
    return Int8(
        images=[prepare(fitted[index][0]) for index in for_fit],
        pictures=[prepare(judged[index][0]) for index in compared],
        score=lambda backend: _score(backend, judged, for_score),
        max_drop=calibration.max_drop,
    )


def _dense(model: "LoadedModel", calibration: Calibration) -> "Int8":
    """Pictures with annotated objects or index masks."""
    from davit.cli.evaluate_dense import DenseOptions, open_dense, score_dense
    from davit.cli.evaluate_views import parse_views
    from davit.inference.backends.eager import EagerBackend
    from davit.inference.export import Int8

    views = parse_views(None, False, None, None)
    options = DenseOptions(batch_size=8, workers=0, class_list=None, ignore=(), views=views, allow_missing=True)
    found, _ = open_dense(EagerBackend(model, "cpu"), str(calibration.data), options)
    for_fit = spread(len(found), calibration.fitted)
    taken = set(for_fit) if len(found) > calibration.fitted else set()
    left = [index for index in range(len(found)) if index not in taken]
    for_score = [left[place] for place in spread(len(left), calibration.judged)]

    def score(backend: "Backend") -> tuple[str, int, float]:
        images, metric = open_dense(backend, str(calibration.data), options)
        scores = score_dense(backend, images, for_score, metric, options)
        name = next(name for name in ("mask_ap", "box_ap", "miou") if name in scores)
        return name, int(scores["count"]), scores[name]

    prepare = _preparing(model)
    return Int8(
        images=[prepare(found[index][0]) for index in for_fit],
        pictures=[prepare(found[for_score[place]][0]) for place in spread(len(for_score), COMPARED)],
        score=score,
        max_drop=calibration.max_drop,
    )


def _unlabelled(model: "LoadedModel", calibration: Calibration) -> "Int8":
    from davit.cli.predict import find_images
    from davit.decoding import read_image
    from davit.inference.export import Int8

    paths = find_images([str(calibration.data)])
    for_fit = spread(len(paths), calibration.fitted)
    taken = set(for_fit) if len(paths) > calibration.fitted else set()
    left = [index for index in range(len(paths)) if index not in taken]
    prepare = _preparing(model)
    return Int8(
        images=[prepare(read_image(paths[index])) for index in for_fit],
        pictures=[prepare(read_image(paths[left[place]])) for place in spread(len(left), COMPARED)],
        max_drop=calibration.max_drop,
    )


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the first `count` numbers, evenly spread."""
    return [place * count // most for place in range(most)] if count > most else list(range(count))


def _preparing(model: "LoadedModel") -> Any:
    assert model.preprocessing is not None
    return model.preprocessing


class _Some:
    """Some of the images of a data set."""

    def __init__(self, images: "LabelledImages", indices: Sequence[int]) -> None:
        self.images, self.indices = images, indices

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> "tuple[Image, int]":
        return self.images[self.indices[index]]


def _score(backend: "Backend", images: "LabelledImages", indices: Sequence[int]) -> tuple[str, int, float]:
    from davit.data.evaluation_loader import evaluation_batches
    from davit.evaluation.accuracy import Accuracy
    from davit.evaluation.evaluate import evaluate

    workers = usual_workers() if len(indices) > 500 else 0
    batches = evaluation_batches(_Some(images, indices), backend.preprocessing, batch_size=32, workers=workers)
    scores = evaluate(backend, batches, Accuracy(backend.config.num_classes))
    return "top1", int(scores["count"]), scores["top1"]
