"""`davit evaluate`: score a checkpoint on labelled images."""

import os
import sys
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from torch import Tensor

    from davit.data.folder import ClassFolder
    from davit.evaluation.accuracy import Accuracy
    from davit.models.classifier import Classifier

_HELP = """Score a checkpoint on labelled images, one folder for each class.

Folders are matched with the checkpoint's classes by name, WordNet ids included, never by their order. A file that
cannot be decoded ends the evaluation: no image is left out or replaced silently.

  davit evaluate mine.safetensors --data flowers
  davit evaluate davit_tiny.msft_in1k --data imagenet/val --json
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def evaluate(
        checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")],
        data: Annotated[Path, arg(metavar="DIR")],
        size: Annotated[int | None, arg(metavar="PIXELS")] = None,
        crop: Annotated[float | None, arg(metavar="SHARE")] = None,
        batch_size: Annotated[int, arg(metavar="N")] = 32,
        workers: Annotated[int | None, arg(metavar="N")] = None,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        allow_missing: bool = False,
        per_class: bool = False,
        json: bool = False,
    ) -> int:
        """Evaluate.

        Args:
            checkpoint: A checkpoint, or a name of `davit models`.
            data: A folder with a folder for each class; if it holds train/ and val/ instead, val/ is taken.
            size: Side of the images, instead of the checkpoint's.
            crop: Share of the resized image's side that the central crop keeps, instead of the checkpoint's.
            batch_size: Images computed at once.
            workers: Processes that decode images; the scores do not depend on it. By default one per CPU, 8 at most.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            variant: What CHECKPOINT is, where its tensors leave it open: a name of `davit models`.
            allow_missing: Score only the classes that are there, instead of refusing.
            per_class: Print the score of each class as well.
            json: Print the result as JSON, with the score of each class.
        """
        model = _load(checkpoint, variant, size, crop)
        folder = _folder(data, model, allow_missing)
        metric = score(model, folder, batch_size=batch_size, workers=workers, device=device)
        return _print(_report(checkpoint, folder, model, metric), json, per_class)

    return tyro.cli(evaluate, prog="davit evaluate", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def score(
    model: "Classifier",
    folder: "ClassFolder",
    *,
    batch_size: int = 32,
    workers: int | None = None,
    device: str | None = None,
) -> "Accuracy":
    """Count right answers over every image of a folder."""
    from tqdm import tqdm

    from davit.data.loader import evaluation_batches
    from davit.evaluation.accuracy import Accuracy
    from davit.evaluation.evaluate import evaluate
    from davit.inference.backends.eager import EagerBackend

    backend = EagerBackend(model, device)
    metric = Accuracy(model.config.num_classes)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    batches = evaluation_batches(folder, backend.preprocessing, batch_size=batch_size, workers=workers)
    with tqdm(total=len(folder), unit="image", disable=None, leave=False) as bar:

        def counted(images: "Tensor") -> "Tensor":
            bar.update(len(images))
            return backend(images)

        evaluate(counted, batches, metric)
    return metric


def _load(checkpoint: str, variant: str | None, size: int | None, crop: float | None) -> "Classifier":
    """Load a classifier, with the preprocessing it is to be scored with."""
    from davit.models.classifier import Classifier
    from davit.preprocessing import Preprocessing
    from davit.weights.load import load

    model = load(checkpoint, variant=variant)
    if not isinstance(model, Classifier):
        raise ValueError(f"{checkpoint} is a backbone without a classifier, so it has no classes to score")
    preprocessing = model.preprocessing
    if preprocessing is None:
        if size is None:
            raise ValueError(f"{checkpoint} does not say how images are prepared for it: give their side with --size")
        preprocessing = Preprocessing.imagenet(size, model.config.backbone.in_channels)
    if size is not None:
        preprocessing = replace(preprocessing, size=(size, size))
    model.preprocessing = preprocessing if crop is None else replace(preprocessing, fit="crop", crop=crop)
    return model


def _folder(data: Path, model: "Classifier", allow_missing: bool) -> "ClassFolder":
    from davit.data.folder import ClassFolder, validation_root

    root = validation_root(data)
    folder = ClassFolder(root, model.classes, num_classes=model.config.num_classes, allow_missing=allow_missing)
    notes = [f"taking {root}"] if root != data else []
    notes += [folder.note] if folder.note else []
    notes += [f"{len(folder.missing)} of {len(folder.classes)} classes have no images"] if folder.missing else []
    notes += [f"passed over {folder.skipped} files that are no images"] if folder.skipped else []
    for note in notes:
        print(f"davit evaluate: {note}", file=sys.stderr)
    return folder


def _report(checkpoint: str, folder: "ClassFolder", model: "Classifier", metric: "Accuracy") -> dict[str, Any]:
    from davit.records import to_json

    return {
        **metric.compute(),
        "per_class": metric.per_class(folder.classes),
        "missing": list(folder.missing),
        "checkpoint": checkpoint,
        "data": str(folder.root),
        "preprocessing": to_json(model.preprocessing),
    }


def _print(report: dict[str, Any], json: bool, per_class: bool) -> int:
    print(dumps(report, indent=2) if json else _table(report, per_class))
    return 0


def _table(report: dict[str, Any], per_class: bool) -> str:
    height, width = report["preprocessing"]["size"]
    present = {name: entry for name, entry in report["per_class"].items() if entry["count"]}
    lines = [
        f"{report['checkpoint']} on {report['data']}, {width}x{height} pixels",
        "",
        f"  top-1   {100 * report['top1']:6.2f} %",
        f"  top-5   {100 * report['top5']:6.2f} %",
        f"  images  {report['count']:6d}, {len(present)} classes",
    ]
    if per_class:
        wide = max(len("class"), *(len(name) for name in present))
        lines += ["", f"  {'class':<{wide}}   images    top-1"]
        lines += [
            f"  {name:<{wide}}  {entry['count']:7d}  {100 * entry['top1']:6.2f} %" for name, entry in present.items()
        ]
    return "\n".join(lines)
