"""`davit evaluate --probe`: what a backbone's features are worth, without fine-tuning."""

import sys
from dataclasses import replace
from json import dumps
from typing import TYPE_CHECKING, Any, Literal

from davit.cpus import usual_workers
from davit.inference.backends import BackendName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from davit.inference.backends.protocol import Backend
    from davit.structures import Batch

Probe = Literal["knn", "linear", "both"]
HELD_OUT = 0.2  # of the training images, on which penalties of the linear classifier are compared


def evaluate_probe(
    checkpoint: str,
    data: str,
    probe: Probe,
    *,
    variant: str | None,
    size: int | None,
    batch_size: int,
    workers: int | None,
    device: str | None,
    backend: BackendName,
    json: bool,
) -> int:
    """Fit on the training images' vectors, score on the validation images', and print the scores."""
    from davit.evaluation.accuracy import Accuracy
    from davit.evaluation.probe import NEIGHBOURS, fit_linear, nearest_neighbours
    from davit.records import to_json
    from davit.train.build import build_images
    from davit.train.recipe import DataRecipe

    embedder = _embedder(checkpoint, variant, size, device, backend)
    images = build_images(DataRecipe(source="folder", root=data), 0)
    for note in images.notes:
        print(f"davit evaluate: {note}", file=sys.stderr)
    classes = images.train.classes
    count = usual_workers() if workers is None else workers
    train, labels = _features(embedder, images.train, batch_size, count)
    queries, wanted = _features(embedder, images.validation, batch_size, count)
    report: dict[str, Any] = {}

    def score(name: str, scores: "Tensor") -> None:
        metric = Accuracy(len(classes))
        metric.update(scores, wanted)
        report.update({f"{name}_{key}": value for key, value in metric.compute().items() if key.startswith("top")})

    if probe in ("knn", "both"):
        score("knn", nearest_neighbours(train, labels, queries, len(classes)))
        report["neighbours"] = min(NEIGHBOURS, len(train))
    if probe in ("linear", "both"):
        fitted, decay = fit_linear(train, labels, len(classes), _held_out(labels))
        score("linear", fitted(queries))
        report["decay"] = decay
    report |= {"count": len(wanted), "train_count": len(labels), "classes": len(classes), "embedding": train.shape[1]}
    report |= {"checkpoint": checkpoint, "data": data, "preprocessing": to_json(embedder.preprocessing)}
    print(dumps(report, indent=2) if json else _table(report))
    return 0


def _embedder(
    checkpoint: str, variant: str | None, size: int | None, device: str | None, backend: BackendName
) -> "Backend":
    from davit.inference.embedding import load_embedder

    opened = load_embedder(checkpoint, variant=variant, size=size, device=device, backend=backend, tell=_tell)
    preprocessing = opened.preprocessing
    if size is not None:
        opened.preprocessing = replace(preprocessing, size=(size, size))
    return opened


def _tell(choice: str) -> None:
    print(f"davit evaluate: {choice}", file=sys.stderr)


def _features(embedder: "Backend", images: Any, batch_size: int, workers: int) -> "tuple[Tensor, Tensor]":
    from tqdm import tqdm

    from davit.data.evaluation_loader import evaluation_batches
    from davit.evaluation.probe import features

    batches = evaluation_batches(images, embedder.preprocessing, batch_size=batch_size, workers=workers)
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:

        def counted() -> "Iterator[Batch]":
            for batch in batches:
                yield batch
                bar.update(len(batch.images))

        return features(embedder, counted())


def _held_out(labels: "Tensor") -> list[int]:
    """A fifth of the training images of each class, at random by a fixed seed; none of a class with a single one."""
    import torch

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    members: dict[int, list[int]] = {}
    for index in order:
        members.setdefault(int(labels[index]), []).append(index)
    chosen = [
        i for indices in members.values() for i in indices[: max(round(HELD_OUT * len(indices)), len(indices) > 1)]
    ]
    return chosen or order[:1]


def _table(report: dict[str, Any]) -> str:
    height, width = report["preprocessing"]["size"]
    lines = [f"frozen {report['checkpoint']} on {report['data']}, {width}x{height} pixels", ""]
    told = {
        "knn": f"{report.get('neighbours')} nearest neighbours",
        "linear": f"linear classifier, penalty {report.get('decay')}",
    }
    for name, what in told.items():
        if f"{name}_top1" in report:
            lines.append(f"  {name:<7}top-1 {100 * report[f'{name}_top1']:6.2f} %  ({what})")
    lines.append(
        f"  images {report['train_count']} to learn from, {report['count']} scored, {report['classes']} classes"
    )
    return "\n".join(lines)
