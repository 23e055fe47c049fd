"""`davit evaluate` for image-text models: retrieval among captions, and classes by their names alone."""

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from davit.cpus import usual_workers

if TYPE_CHECKING:
    from torch import Tensor

    from davit.data.caption_files import CaptionFiles
    from davit.data.caption_shards import CaptionShards
    from davit.models.zero_shot import ZeroShotClassifier


def is_image_text(source: str) -> bool:
    """Whether a file is a checkpoint of an image-text model, going by its header."""
    from davit.weights.checkpoint import is_checkpoint, read_header
    from davit.weights.source import find_file

    if not Path(source).exists():
        return False
    path = find_file(source)
    return is_checkpoint(path) and read_header(path).kind == "image_text"


def zero_shot_on(checkpoint: str, variant: str | None, data: str, templates: str | None) -> "ZeroShotClassifier":
    """An image-text model as a classifier of the class folders or shards of `data`.

    Raises:
        ValueError: another kind of model, no such data, or templates without a place for a name.
        OSError: a file cannot be read.
    """
    from davit.data.images import find_images
    from davit.data.spoken import spoken
    from davit.inference.backends.opening import load_zero_shot
    from davit.inference.zero_shot import Labels, parse_templates

    source = find_images(data)
    classes = source.open(source.validation).classes
    labels = Labels(names=spoken(classes), templates=parse_templates(templates), classes=tuple(classes))
    return load_zero_shot(checkpoint, labels, variant)


def evaluate_pairs(
    checkpoint: str,
    data: str,
    *,
    size: int | None,
    batch_size: int,
    workers: int | None,
    device: str | None,
    json: bool,
) -> int:
    """Score retrieval both ways over pictures with captions, and print the scores."""
    from dataclasses import replace

    from tqdm import tqdm

    from davit.cli.builtin import captions_of_test, is_builtin
    from davit.data.captions import Pairs
    from davit.data.evaluation_loader import evaluation_batches
    from davit.evaluation.evaluate import evaluate
    from davit.evaluation.retrieval import RetrievalMetric
    from davit.inference.backends.eager import choose_device
    from davit.inference.embedding import load_features
    from davit.models.clip import ImageTextModel
    from davit.records import to_json

    model = load_features(checkpoint, size=size)
    assert isinstance(model, ImageTextModel)
    assert model.preprocessing is not None
    preprocessing = model.preprocessing if size is None else replace(model.preprocessing, size=(size, size))
    found = captions_of_test(data, preprocessing.size[0]) if is_builtin(data) else _captions(data)
    for note in found.notes:
        print(f"davit evaluate: {note}", file=sys.stderr)
    where = choose_device(device)
    model = model.to(where)
    pairs = Pairs(found, model.config.head.text.context)
    batches = evaluation_batches(
        pairs, preprocessing, batch_size=batch_size, workers=usual_workers() if workers is None else workers
    )
    with tqdm(total=len(pairs), unit="pair", disable=None, leave=False) as bar:

        def counted(images: "Tensor", texts: "Tensor") -> Any:
            bar.update(len(images))
            return model(images.to(where), texts.to(where))

        scores = evaluate(counted, batches, RetrievalMetric())
    report = {**scores, "checkpoint": checkpoint, "data": data, "preprocessing": to_json(preprocessing)}
    report |= {"captions": len(pairs)}
    print(dumps(report, indent=2) if json else _table(report))
    return 0


def _captions(data: str) -> "CaptionFiles | CaptionShards":
    """Those of `val/`, where there is such a part."""
    from davit.data.caption_files import find_captions
    from davit.data.caption_shards import CaptionShards, caption_parts

    if parts := caption_parts(data):
        return CaptionShards(data, "val" if "val" in parts else parts[0])
    part = Path(data) / "val"
    if part.is_dir():
        print(f"davit evaluate: taking {part}", file=sys.stderr)
    return find_captions(part if part.is_dir() else data)


def _table(report: dict[str, Any]) -> str:
    lines = [f"{report['checkpoint']} on {report['data']}: {report['count']} images, {report['captions']} captions", ""]
    lines += ["                   R@1      R@5     R@10"]
    for name in ("image_to_text", "text_to_image"):
        scores = "".join(f" {100 * report[f'{name}_r{k}']:6.2f} %" for k in (1, 5, 10))
        lines.append(f"  {name.replace('_', ' '):<13}{scores}")
    return "\n".join(lines)
