"""The report of a finished training run."""

import heapq
from collections.abc import Iterator
from pathlib import Path

import torch

from davit.data.evaluation_loader import evaluation_batches
from davit.data.folder import ClassFolder
from davit.data.loader import ClassifiedImages, Part
from davit.data.shards import Shards
from davit.explain import drawing
from davit.explain.contrastive_report import write_contrastive_report
from davit.explain.dense_report import write_dense_report
from davit.explain.model_card import model_card, notes_of, read_environment
from davit.explain.report import THUMBNAIL, ReportInput, Sample, write_report
from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.preprocessing import as_mode
from davit.tasks.classification import ClassificationMetric
from davit.train.device import pick_device, pick_workers
from davit.train.run import RunResult

SEARCHED = 2_000  # images looked through for mistakes worth showing, on a CPU
SEARCHED_BY_GPU = 50_000
BATCH = 32
RIGHT, WRONG = 12, 24

Found = tuple[float, int, int, int]  # (score, image, target, prediction)


def write_run_report(result: RunResult) -> Path:
    """Write `report.html` into the run folder and return its path."""
    path = result.folder / "report.html"
    if isinstance(result.model, ImageTextModel):
        write_contrastive_report(result, path)
        return path
    if not isinstance(result.metric, ClassificationMetric) or not isinstance(result.model, Classifier):
        write_dense_report(result, path)
        return path
    accuracy = result.metric.accuracy
    keys = ("top1", "top5", "count", "seconds", "images_per_second", "parameters", "macs")
    samples, searched = choose_samples(result)
    write_report(
        ReportInput(
            title=f"DaViT run: {result.recipe.name}",
            model=result.model.cpu(),
            history=result.history,
            metrics={key: result.metrics[key] for key in keys},
            confusion=accuracy.confusion.tolist() if accuracy.confusion is not None else [],
            counts=list(zip(accuracy.count.tolist(), accuracy.top1.tolist(), strict=True)),
            samples=samples,
            searched=searched if searched < len(result.images.validation) else 0,
            card=model_card(result),
            environment=read_environment(result.folder),
            notes=notes_of(result),
        ),
        path,
    )
    return path


def choose_samples(result: RunResult) -> tuple[list[Sample], int]:
    """Wrong predictions first, the surest of them leading, then right ones of as many classes as possible.

    Returns:
        The samples, and how many images they were chosen from.
    """
    images = result.images.validation
    device = pick_device(result.recipe.runtime.device)
    limit = SEARCHED if device.type == "cpu" else SEARCHED_BY_GPU
    looked_at = list(range(0, len(images), max(1, -(-len(images) // limit))))
    wrong: list[Found] = []
    right: dict[int, list[Found]] = {}
    for found in _predictions(result, looked_at, device):
        score, index, target, prediction = found
        if prediction != target:
            heapq.heappush(wrong, (score, -index, target, prediction))  # among equals the first image stays
            if len(wrong) > WRONG:
                heapq.heappop(wrong)
        elif len(right.setdefault(target, [])) < RIGHT:
            right[target].append(found)
    surest = [(score, -index, target, prediction) for score, index, target, prediction in sorted(wrong, reverse=True)]
    rounds = [queue[i] for i in range(RIGHT) for queue in right.values() if i < len(queue)]
    return [_sample(result, found) for found in surest + rounds[:RIGHT]], len(looked_at)


def _predictions(result: RunResult, looked_at: list[int], device: torch.device) -> Iterator[Found]:
    model = result.model.to(device)
    assert isinstance(model, Classifier)
    assert model.preprocessing is not None
    part = Part(result.images.validation, looked_at)
    workers = pick_workers(result.recipe.data.workers, device)
    for batch in evaluation_batches(part, model.preprocessing, batch_size=BATCH, workers=workers):
        with torch.inference_mode():
            best = model(batch.images.to(device)).float().softmax(-1).max(-1)
        lines = zip(best.values.tolist(), batch.ids, batch.targets.tolist(), best.indices.tolist(), strict=True)
        for score, position, target, prediction in lines:
            yield score, looked_at[position], target, prediction


def _sample(result: RunResult, found: Found) -> Sample:
    score, index, target, prediction = found
    preprocessing, images = result.model.preprocessing, result.images.validation
    assert preprocessing is not None
    picture, _ = images[index]
    return Sample(
        image=drawing.fit(as_mode(picture, preprocessing.channels), THUMBNAIL),
        pixels=preprocessing(picture),
        target=target,
        prediction=prediction,
        score=score,
        name=file_name(images, index),
    )


def file_name(images: ClassifiedImages, index: int) -> str:
    """Path of an image under its root; empty for images that are no files."""
    if isinstance(images, Part):
        return file_name(images.images, images.indices[index])
    if isinstance(images, ClassFolder):
        return images.paths[index].relative_to(images.root).as_posix()
    return images.name(index) if isinstance(images, Shards) else ""
