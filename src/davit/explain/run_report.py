"""The report of a finished training run."""

import os
from pathlib import Path

import torch

from davit.explain.report import ReportInput, Sample, write_report
from davit.preprocessing import as_mode
from davit.train.run import RunResult, environment

CANDIDATES = 2000  # images looked through for mistakes worth showing
RIGHT, WRONG = 12, 24


def write_run_report(result: RunResult) -> Path:
    """Write `report.html` into the run folder and return its path."""
    path = result.folder / "report.html"
    confusion = result.metric.accuracy.confusion
    keys = ("top1", "top5", "count", "seconds", "images_per_second", "parameters", "macs")
    write_report(
        ReportInput(
            title=f"DaViT run: {result.recipe.name}",
            model=result.model.cpu(),
            history=result.history,
            metrics={key: result.metrics[key] for key in keys},
            confusion=confusion.tolist() if confusion is not None else [],
            samples=choose_samples(result),
            card=model_card(result),
        ),
        path,
    )
    return path


def choose_samples(result: RunResult) -> list[Sample]:
    """Wrong predictions first, the surest of them leading, then right ones of as many classes as possible."""
    model, images = result.model, result.images.validation
    assert model.preprocessing is not None
    wrong: list[Sample] = []
    right: dict[int, list[Sample]] = {}
    stride = max(1, len(images) // CANDIDATES)
    for index in range(0, len(images), stride):
        picture, target = images[index]
        pixels = model.preprocessing(picture)
        with torch.inference_mode():
            scores = model(pixels[None]).softmax(-1)[0]
        prediction = int(scores.argmax())
        shown = as_mode(picture, model.preprocessing.channels)
        sample = Sample(image=shown, pixels=pixels, target=target, prediction=prediction, score=float(scores.max()))
        if prediction != target:
            wrong.append(sample)
        elif len(right.setdefault(target, [])) < RIGHT:
            right[target].append(sample)
    wrong.sort(key=lambda sample: -sample.score)
    rounds = [queue[i] for i in range(RIGHT) for queue in right.values() if i < len(queue)]
    return wrong[:WRONG] + rounds[:RIGHT]


def model_card(result: RunResult) -> dict[str, str]:
    """What the model is, what it learned from, what it took."""
    recipe, metrics, machine = result.recipe, result.metrics, environment()
    size = recipe.data.image_size
    return {
        "Variant": recipe.model.variant + (f", started from {recipe.model.init}" if recipe.model.init else ""),
        "Parameters": f"{metrics['parameters']:,}",
        "Multiply-adds per image": f"{metrics['macs']:,}",
        "Image size": f"{size} x {size}, {recipe.data.channels} channel{'s' if recipe.data.channels > 1 else ''}",
        "Data": recipe.data.root or "the built-in handwritten digits (scikit-learn), fixed split",
        "Training": f"{recipe.schedule.total_epochs} epochs, {metrics['steps']} steps of {recipe.data.batch_size}",
        "Time": f"{metrics['seconds']:.0f} s, {metrics['images_per_second']:.0f} images/s, evaluation included",
        "Hardware": ", ".join(machine["gpus"]) or f"{machine['processor']}, {os.cpu_count()} CPUs",
        "Versions": f"davit {machine['davit']}, torch {machine['torch']}, Python {machine['python']}",
        "Command": machine["command"],
        "Seed": str(recipe.runtime.seed),
    }
